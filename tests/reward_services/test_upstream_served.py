"""`backend: upstream` as it is deployed: replicas of a Ray cluster in the packages' own environments."""

from pathlib import Path

import pytest

from workbench.parity.check import by_service

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.ray
@pytest.mark.slow
def test_served_upstream_packages_score_and_differentiate_as_the_native_rewards(cluster: None):
    """Installs the packages where `make parity` does, unless they are there."""
    found = list(by_service(ROOT / "outputs" / "parity"))
    assert [row.upstream["package"] for row in found] == ["image-reward==1.5", "hpsv2x==1.2.0"]
    assert all(row.equal for row in found), "\n".join(map(str, found))
