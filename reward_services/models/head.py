"""The linear head that ImageReward and the LAION aesthetic predictor share."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

_HIDDEN = (1024, 128, 64, 16)


class RewardHead(nn.Module):
    """Five linear maps with dropout between the first four and no activation."""

    def __init__(self, width: int, hidden: Sequence[int] = _HIDDEN):
        super().__init__()
        a, b, c, d = hidden
        self.layers = nn.Sequential(
            nn.Linear(width, a),
            nn.Dropout(0.2),
            nn.Linear(a, b),
            nn.Dropout(0.2),
            nn.Linear(b, c),
            nn.Dropout(0.1),
            nn.Linear(c, d),
            nn.Linear(d, 1),
        )

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch 1"]:
        """Return the reward before standardisation."""
        return self.layers(features)


def head_of(state: Mapping[str, Tensor]) -> RewardHead:
    """Return an untrained head of the widths of a published state dict; KeyError if a layer is missing."""
    weights = [state[f"layers.{layer}.weight"] for layer in (0, 2, 4, 6)]
    return RewardHead(weights[0].shape[-1], [weight.shape[0] for weight in weights])
