"""What the README says of adding a reward, done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ray import serve

from reward_services.client import ServeClient
from reward_services.deployment import RewardService, options
from reward_services.models import load
from reward_services.spec import RewardSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A directory with the README's two files."""
    section = (ROOT / "reward_services" / "README.md").read_text().split("## Add a reward")[1]
    reward, test = (part.split("```")[0] for part in section.split("```python\n")[1:])
    (tmp_path / "colour.py").write_text(reward)
    (tmp_path / "test_colour.py").write_text(test)
    return tmp_path


def test_the_test_of_the_readmes_reward_passes(written: Path):
    path = os.pathsep.join([str(written), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(written / "test_colour.py")]
    done = subprocess.run(command, cwd=written, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.ray
def test_the_readmes_reward_is_served_by_the_name_of_its_class(cluster: None, written: Path):
    torch.save({"weight": torch.tensor([1.0, 0.0, -1.0])}, written / "colour.pt")
    spec = RewardSpec(name="colour", model="colour:Colour", checkpoint=str(written), num_cpus=0.0)
    path = os.pathsep.join([str(written), os.environ["PYTHONPATH"]])
    actor = options(spec)["ray_actor_options"] | {"runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    application = serve.deployment(**options(spec) | {"ray_actor_options": actor})(RewardService)
    serve.run(application.bind(spec.model_dump()), name=spec.app_name, route_prefix=None)
    try:
        images = torch.rand(2, 3, 8, 8)
        scores, _ = ServeClient("colour").submit(images, ["red", "redder"]).result()
        torch.testing.assert_close(scores, (images[:, 0] - images[:, 2]).mean(dim=(1, 2)))
    finally:
        serve.delete(spec.app_name)


def test_a_class_that_cannot_be_imported_is_named_with_the_remedy():
    for model in ("nowhere:Colour", "reward_services.protocol:Colour"):
        with pytest.raises(ValueError, match=rf"reward 'colour': model='{model}' cannot be imported here .*PYTHONPATH"):
            load(RewardSpec(name="colour", model=model, checkpoint="anything"))
