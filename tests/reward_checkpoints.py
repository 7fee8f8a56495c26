"""Tiny random rewards, written in the layouts in which the real ones are published.

Imports the project only inside the fixture, see micro_run.py.
"""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rewards_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one published checkpoint a kind."""
    from workbench.parity.tiny import write_checkpoints

    root = tmp_path_factory.mktemp("rewards")
    write_checkpoints(root)
    return root
