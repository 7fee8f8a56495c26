"""Registered models: what a stranger's process gets from MLflow, and which version is called the best."""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from slingstone.config.tree import Registry
from slingstone.export import registry
from slingstone.networks.latent_diffusion import load
from slingstone.networks.sampling import one_step_sampler
from slingstone.tracking import Run, create_run

PROMPTS, SEEDS = ["a red disc", "a white ring", "a red disc"], [7, 8, 9]
UTILITY = Registry(name="pictures", metric="utility")

# A stranger's process: it draws, and says which packages it has loaded.
STRANGER = """
import io, json, sys
import mlflow, numpy, pandas, PIL.Image
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/pictures/latest")
drawn = model.predict(pandas.DataFrame(json.loads(sys.argv[2])))
alone = model.predict(pandas.DataFrame({"prompt": ["a red disc"]}))
pictures = [numpy.asarray(PIL.Image.open(io.BytesIO(png))).tolist() for png in [*drawn["png"], *alone["png"]]]
print(json.dumps({"pictures": pictures, "slingstone": "slingstone" in sys.modules}))
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"


@pytest.fixture
def run(uri) -> Run:
    return create_run(uri, "registry", "run", {}, {}, Path(uri.removeprefix("sqlite:///")).parent)


def aliases(run: Run, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in run.client.get_registered_model(name).aliases.items()}


def test_a_process_without_slingstone_draws_the_generators_pictures_by_the_alias(run, uri, micro_checkpoints, tmp_path):
    family = load(str(micro_checkpoints / "reference"), str(micro_checkpoints / "generator"), generator_timestep=625)
    family.pipeline.save(family.generator, tmp_path / "pipeline", torch.float32)
    registry.publish(run, tmp_path / "pipeline", "pipeline")
    registry.register(run, UTILITY, "pipeline", {"utility": 0.5}, {}, initial=False)

    table = json.dumps({"prompt": PROMPTS, "seed": SEEDS})
    command = [sys.executable, "-c", STRANGER, uri, table]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=300)
    found = json.loads(said.stdout.splitlines()[-1])
    assert not found["slingstone"]
    ours = one_step_sampler(family, family.generator)([*PROMPTS, "a red disc"], [*SEEDS, 0]).images
    levels = (ours.permute(0, 2, 3, 1) * 255).numpy()
    assert np.abs(np.asarray(found["pictures"], dtype=float) - levels).max() <= 0.51, "rounded to 8 bits"


def test_the_signature_names_prompt_seed_and_png(run, uri, tmp_path):
    files = tmp_path / "files"
    registry._write_model(files)
    signature = mlflow.models.Model.load(str(files)).signature
    assert signature.inputs.input_names() == ["prompt", "seed"]
    assert signature.inputs.required_input_names() == ["prompt"]
    assert signature.outputs.input_names() == ["png"]


def test_aliases_say_where_training_started_and_what_is_best_of_what_may_be_compared(run):
    settings = Registry(name="ladder", metric="utility")

    def add(utility: float, initial: bool = False, evaluation: str = "same") -> str:
        tags = {"evaluation": evaluation, "generator": "start"}
        return registry.register(run, settings, "pipeline", {"utility": utility}, tags, initial)

    first = add(0.5, initial=True)
    assert aliases(run, "ladder") == {"init": first, "best": first}
    worse, better = add(0.4), add(0.6)
    assert aliases(run, "ladder") == {"init": first, "best": better}
    add(0.55)
    assert aliases(run, "ladder") == {"init": first, "best": better}
    other = add(0.9, evaluation="other")
    assert aliases(run, "ladder") == {"init": first, "best": better}, "no comparable number"
    assert run.client.get_registered_model("ladder").latest_versions[0].version == int(other)
    assert int(worse) < int(better)
    assert registry.known(run, settings, "init", "generator", "start")
    assert not registry.known(run, settings, "init", "generator", "elsewhere")
    assert not registry.known(run, Registry(name="absent", metric="utility"), "init", "generator", "start")


@pytest.mark.parametrize(("mode", "expected"), [("max", True), ("min", False)])
def test_better_is_what_the_mode_says(mode, expected):
    settings = Registry(name="pictures", metric="utility", mode=mode)
    assert registry.beats(settings, {"utility": "0.6"}, {"utility": "0.5"}) == expected
    assert not registry.beats(settings, {}, None)
    for lost in ("nan", "inf", "-inf"):
        assert not registry.beats(settings, {"utility": lost}, None)
        assert not registry.beats(settings, {"utility": lost}, {"utility": "0.5"})
        assert registry.beats(settings, {"utility": "0.5"}, {"utility": lost})
