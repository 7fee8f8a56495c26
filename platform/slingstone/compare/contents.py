"""Names of results by content: what is computed from the same bytes has the same name, wherever they lie."""

from pathlib import Path
from typing import Any

from reward_services.contents import digest as digest
from reward_services.contents import digest_of


def by_content(facts: Any) -> Any:
    """Return plain values with a digest of what lies there in the place of each absolute path; a hub id stays."""
    if isinstance(facts, dict):
        return {name: by_content(value) for name, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [by_content(value) for value in facts]
    if isinstance(facts, str) and Path(facts).is_absolute() and Path(facts).exists():
        return digest_of(Path(facts))
    return facts
