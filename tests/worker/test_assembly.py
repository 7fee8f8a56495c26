"""What the configuration says is what the trainer gets."""

from pathlib import Path

import pytest
import torch

from slingstone.config import Experiment, load
from slingstone.engines.family import load_family, round_frozen
from slingstone.objectives import divergence
from slingstone.prompts.files import read_prompts
from slingstone.worker.assembly import step_settings, text_encoder
from slingstone.worker.measure import held_out
from tests import tiny

SCENES = Path(__file__).resolve().parents[2] / "configs" / "align" / "scenes.yaml"


@pytest.mark.parametrize(
    ("section", "distance"),
    [
        ("{kind: pseudo_huber, constant: 0.25, per: element}", divergence.PseudoHuber(0.25, "element")),
        ("{kind: squared_l2}", divergence.SquaredL2()),
        ("{kind: kl}", divergence.IntegralKL()),
    ],
)
def test_each_kind_of_distance_becomes_that_distance(section, distance):
    assert step_settings(load(SCENES, [f"objective.distance={section}"]), 2).divergence.distance == distance


def test_the_numbers_of_a_step_are_those_of_the_configuration():
    overrides = [
        *("objective.guidance={kind: outer, scale: 2.5}", "objective.weighting=inverse_sigma"),
        *("objective.flow=detach_distance", "objective.gradient=recomputed", "objective.reward_weight=3"),
        *("objective.generator_timesteps={low: 1, high: 2}", "objective.assistant_timesteps={low: 3, high: 4}"),
        *("training.batch_size=12", "training.assistant_updates=5", "training.warmup_images=24"),
        "training.ema_half_life_images=77",
    ]
    found = step_settings(load(SCENES, overrides), 2)
    assert found.divergence.guidance == divergence.Guidance("outer", 2.5)
    assert (found.divergence.weighting, found.divergence.flow) == ("inverse_sigma", "detach_distance")
    assert (found.divergence.gradient, found.reward_weight) == ("recomputed", 3.0)
    assert (found.generator_timesteps.low, found.generator_timesteps.high) == (1, 2)
    assert (found.assistant_timesteps.low, found.assistant_timesteps.high) == (3, 4)
    assert (found.batch_size, found.world_size) == (6, 2), "the trainer counts its own rank's images"
    assert (found.assistant_updates, found.warmup_images) == (5, 24)
    assert found.ema_half_life_images == 77.0


def sparing(tmp_path: Path, *overrides: str) -> Experiment:
    directory = tiny.write_pipeline(tmp_path / "pipeline")
    prompts = tiny.write_prompts(tmp_path / "prompts.txt")
    paths = [f"models.reference={directory}", f"models.generator={directory}", f"storage={tmp_path}"]
    paths += [f"evaluation.prompts={prompts}", f"data.prompts={prompts}", "evaluation.num_prompts=3"]
    saving = ["runtime.precision=bf16", "runtime.gradient_checkpointing=true", "models.decode_chunk=3"]
    saving += ["models.keep_text_encoder=false", "models.generator_timestep=625"]
    return load(SCENES, [*paths, *saving, *overrides])


def test_a_sparing_run_loads_a_reference_like_its_assistant_and_meets_every_prompt_before_the_first_step(tmp_path):
    run = sparing(tmp_path)
    family = load_family(run, torch.device("cpu"))
    round_frozen(family, run)
    assert next(family.reference.parameters()).dtype == torch.bfloat16
    assert family.decoder.chunk == 3
    for network in (family.generator, family.assistant, family.reference):
        assert network.network.is_gradient_checkpointing
    texts, evaluated = read_prompts(run.data.prompts, None), held_out(run.evaluation)
    exact = family.text_encoder.encode(evaluated)["text"]
    encoder = text_encoder(run, family, texts, rank=0, world=1)
    for weight in encoder.parameters():
        weight.data.fill_(torch.nan)
    assert encoder.encode(texts)["text"].dtype == torch.bfloat16
    assert encoder.encode(texts)["text"].isfinite().all()
    assert torch.equal(family.text_encoder.encode(evaluated)["text"], exact), "evaluated as exported: in fp32"
    assert len(list((tmp_path / "embeddings").rglob("*.safetensors"))) == 2


def test_more_embeddings_than_there_is_room_for_are_encoded_as_training_goes(tmp_path, monkeypatch):
    run = sparing(tmp_path)
    family = load_family(run, torch.device("cpu"))
    monkeypatch.setattr("slingstone.worker.assembly.EMBEDDINGS_LIMIT", 1000)
    encoder = text_encoder(run, family, ["a red disc", "a white ring"], rank=0, world=1)
    assert encoder.encode(["one that was never seen"])["text"].isfinite().all()
    assert not (tmp_path / "embeddings").exists()
