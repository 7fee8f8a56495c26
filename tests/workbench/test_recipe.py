from pathlib import Path

import pytest
import torch

from reward_services.models import load
from reward_services.spec import RewardSpec
from slingstone.config import load_as
from slingstone.preferences.parquet import write_parquet
from slingstone.world.drawing import SIZE
from workbench.recipe.autoencoder import encode, new_autoencoder, reconstruction_loss
from workbench.recipe.preferences import drawn_candidates
from workbench.recipe.reference import train_reference
from workbench.recipe.rewards import agreement, new_reward, write_reward
from workbench.recipe.settings import Preferences, Reference, WorldBuild
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
    build = load_as(WorldBuild, ROOT / "configs/world/scenes.yaml").model_copy(update={"work": tmp_path})
    write_reward(new_reward(name, tmp_path / "tokenizer", seed=0), tmp_path / "untrained")
    write_parquet(tmp_path / "votes.parquet", all_votes(candidates, seed=0))
    settings = Preferences(steps=100, batch=8, learning_rate=1e-3, captions=40, candidates=4)
    fitted = fit_reward(build, name, "drawn", tmp_path / "untrained", tmp_path / "votes.parquet", settings)
    reward = load(RewardSpec(name=name, model=name, checkpoint=str(fitted)))
    assert agreement(reward.score, candidates, range(8)) > 0.7  # 0.5 is chance; choices are noisy, the model is small


def test_the_autoencoder_makes_a_cell_of_four_by_four_pixels_and_its_loss_is_zero_only_at_the_target():
    vae = new_autoencoder().eval()
    pictures = torch.rand(2, 3, SIZE, SIZE)
    assert encode(vae, pictures).shape == (2, 4, SIZE // 4, SIZE // 4)
    assert reconstruction_loss(pictures, pictures) == 0
    assert reconstruction_loss(pictures, 1 - pictures) > 0.1


def test_the_reference_is_trained_into_an_ordinary_pipeline(tmp_path):
    vae = new_autoencoder().eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0)
    settings = Reference(pictures=4, steps=2, batch=4, learning_rate=2e-3)
    pipeline = train_reference(vae, settings, seed=0, directory=tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    caption = "a red circle above a blue square on a gray background"
    pictures = torch.as_tensor(pipeline([caption], num_inference_steps=1, output_type="pt").images)
    assert pictures.shape == (1, 3, SIZE, SIZE)
    assert pictures.isfinite().all()


def test_the_shipped_build_settings_are_complete():
    build = load_as(WorldBuild, ROOT / "configs/world/scenes.yaml")
    assert (ROOT / build.generator).is_file()
