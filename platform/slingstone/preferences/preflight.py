"""What would fail after a fitting or comparison of rewards has started, found before. Imports neither torch nor ray."""

from slingstone.config import RewardComparison, RewardFit
from slingstone.config.paths import resolved
from slingstone.driver import preflight
from slingstone.preferences.locations import absent


def prepare(fitting: RewardFit) -> RewardFit:
    """Return the fitting with absolute paths.

    Raises:
        ValueError: something that it names is not there.
    """
    found = resolved(fitting)
    mistakes = list(preflight.absent("reward.checkpoint", found.reward.checkpoint))
    for field in ("train", "test"):
        if (place := getattr(found.votes, field)) is not None:
            mistakes += absent(f"votes.{field}", place)
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return found


def prepare_comparison(comparison: RewardComparison) -> RewardComparison:
    """Return the comparison with absolute paths.

    Raises:
        ValueError: something that it names is not there.
    """
    found = resolved(comparison)
    mistakes = list(preflight.absent_rewards(found.rewards))
    mistakes += [line for entry in found.votes for line in absent(entry.name, entry.path)]
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return found
