import contextlib
from pathlib import Path

import pytest
import torch

from reward_services.models import load
from reward_services.spec import RewardSpec
from slingstone.config import load_as
from slingstone.preferences.parquet import write_parquet
from slingstone.world.editions import EDITIONS
from workbench.recipe.autoencoder import encode, new_autoencoder, reconstruction_loss
from workbench.recipe.fit import fit
from workbench.recipe.preferences import drawn_candidates
from workbench.recipe.reading import teach_reading
from workbench.recipe.reference import train_reference
from workbench.recipe.rewards import agreement, new_reward, write_reward
from workbench.recipe.settings import Preferences, Towers, Training, WorldBuild
from workbench.recipe.stages import fit_reward
from workbench.recipe.votes import all_votes

ROOT = Path(__file__).resolve().parents[2]
REWARDS = ["pickscore", "hps", "imagereward"]


@pytest.fixture(scope="module")
def candidates():
    return drawn_candidates(40, 4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", REWARDS)
def test_a_new_reward_is_fitted_by_the_job_for_rewards_and_written_in_its_published_layout(name, candidates, tmp_path):
    build = _build("scenes").model_copy(update={"work": tmp_path})
    write_reward(new_reward(name, getattr(Towers(), name), 48, tmp_path / "tokenizer", seed=0), tmp_path / "untrained")
    write_parquet(tmp_path / "votes.parquet", all_votes(candidates, seed=0))
    settings = Preferences(steps=100, batch=8, learning_rate=1e-3, captions=40, candidates=4)
    fitted = fit_reward(build, name, "drawn", tmp_path / "untrained", tmp_path / "votes.parquet", settings)
    reward = load(RewardSpec(name=name, model=name, checkpoint=str(fitted)))
    assert agreement(reward.score, candidates, range(8)) > 0.7  # 0.5 is chance; choices are noisy, the model is small


def test_the_autoencoder_makes_a_cell_of_four_by_four_pixels_and_its_loss_is_zero_only_at_the_target():
    vae = new_autoencoder(_build("scenes").autoencoder, 48).eval()
    pictures = torch.rand(2, 3, 48, 48)
    assert encode(vae, pictures).shape == (2, 4, 12, 12)
    assert reconstruction_loss(pictures, pictures) == 0
    assert reconstruction_loss(pictures, 1 - pictures) > 0.1


@pytest.mark.parametrize("edition", EDITIONS)
def test_the_reference_is_trained_into_an_ordinary_pipeline(edition, tmp_path):
    build, size = _build(edition), EDITIONS[edition].size
    vae = new_autoencoder(build.autoencoder, size).eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0)
    changes = {"pictures": 4, "steps": 2, "batch": 4, "text": build.reference.text and _few(2)}
    settings = build.reference.model_copy(update=changes)
    pipeline = train_reference(vae, EDITIONS[edition], settings, seed=0, directory=tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    caption = "a red circle above a blue square on a gray background"
    pictures = torch.as_tensor(pipeline([caption], num_inference_steps=1, output_type="pt").images)
    assert pictures.shape == (1, 3, size, size)
    assert pictures.isfinite().all()


def test_a_training_that_was_interrupted_ends_with_the_same_weights(tmp_path):
    def trained(steps, kept):
        torch.manual_seed(0)
        layer, rng = torch.nn.Linear(3, 1), torch.Generator().manual_seed(0)

        def loss(step):
            if step == steps:
                raise KeyboardInterrupt
            return (layer(torch.randn(4, 3)) - torch.randn(4, 1, generator=rng)).square().mean()

        settings = Training(steps=6, batch=4, learning_rate=0.1, keep_every=2)
        with contextlib.suppress(KeyboardInterrupt):
            fit(list(layer.parameters()), loss, settings, "test", kept=kept, streams=[rng])
        return layer.weight

    whole = trained(6, None)
    trained(5, tmp_path / "state.pt")
    assert torch.equal(trained(6, tmp_path / "state.pt"), whole)


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_that_was_taught_to_read_still_scores(name, tmp_path):
    reward = new_reward(name, getattr(_build("open_scenes").towers, name), 64, tmp_path, seed=0)
    before = [weight.clone() for weight in reward.parameters()]
    teach_reading(reward, EDITIONS["open_scenes"], _few(2), seed=0)
    moved = [not torch.equal(old, new) for old, new in zip(before, reward.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert reward.score(torch.rand(2, 3, 64, 64), ["a small red circle on a white background"] * 2).isfinite().all()


def _few(steps):
    return Training(steps=steps, batch=4, learning_rate=1e-3)


def _build(edition):
    return load_as(WorldBuild, ROOT / f"configs/world/{edition}.yaml")


@pytest.mark.parametrize("edition", EDITIONS)
def test_the_shipped_build_settings_are_complete(edition):
    build = _build(edition)
    assert build.edition == edition
    assert (ROOT / build.generator).is_file()
