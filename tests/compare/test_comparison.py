"""Evaluations of several models: resumable shards, one protocol with training, tables with the paper's rows."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from reward_services import contents
from slingstone.compare import results, schedule, table
from slingstone.compare.evaluator import Evaluator, read_shard, read_sheet
from slingstone.compare.shards import directory, prepare, shards_of
from slingstone.config import Comparison, ConfigError, kind_of, load_as, to_yaml
from slingstone.config.fitting import RewardComparison
from slingstone.driver import run_lease
from slingstone.driver.launch import RunFailed
from slingstone.evaluation.protocol import merge
from slingstone.networks.latent_diffusion import load
from slingstone.worker.measure import Measure
from slingstone.worker.rewards import clients


@pytest.fixture
def aligned(micro, tmp_path) -> Path:
    """The directory of a run that has ended: its configuration and its export, whose weights moved."""
    run = micro("rewards.backend=in_process")
    family = load(run.models.reference, run.models.generator, generator_timestep=625)
    with torch.no_grad():
        for weight in family.generator.parameters():
            weight.mul_(1.01)
    directory = tmp_path / "align" / "micro"
    family.pipeline.save(family.generator, directory / "pipeline", torch.float32)
    (directory / "config.yaml").write_text(to_yaml(run))
    return directory


@pytest.fixture
def write_comparison(micro, aligned, tmp_path):
    """Write the YAML of an evaluation of the run and of what it started from; return its path."""

    def write(**changes) -> Path:
        run = micro("rewards.backend=in_process")
        prompts = tmp_path / "prompts.tsv"
        lines = Path(run.evaluation.prompts).read_text().splitlines()[:6]
        prompts.write_text("prompt\tkind\n" + "".join(f"{line}\t{line.split()[-1]}\n" for line in lines))
        tree = {
            "name": "both",
            "storage": str(tmp_path),
            "models": [
                {"kind": "generator", "name": "init", "models": run.models.model_dump(mode="json")},
                {"kind": "run", "name": "aligned", "run": str(aligned)},
            ],
            "prompts": [{"name": "kinds", "path": str(prompts), "groups": ["kind"], "published": "parti"}],
            "rewards": run.rewards.model_dump(mode="json"),
            "images_per_prompt": 2,
            "batch_size": 4,
            "sheet_prompts": 2,
            "latency": None,
        }
        path = tmp_path / "evaluate.yaml"
        path.write_text(yaml.safe_dump(tree | changes))
        return path

    return write


ROOT = Path(__file__).resolve().parents[2]


def planned(path: Path) -> Comparison:
    return prepare(load_as(Comparison, path))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "evaluate").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path):
    assert load_as(RewardComparison if kind_of(path) == "rewards" else Comparison, path).name == path.stem


def test_a_finished_run_is_evaluated_to_the_digit_as_it_was_in_training(micro, aligned, write_comparison, tmp_path):
    run = micro("rewards.backend=in_process")
    family = load(run.models.reference, str(aligned / "pipeline"), generator_timestep=625)
    asked = clients(run.rewards, torch.device("cpu"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        measure = Measure(run.evaluation, family, asked, tmp_path / "evaluation", 0, 1)
        within = measure.aligned(family.generator)
    finally:
        dist.destroy_process_group()

    both = planned(write_comparison())
    evaluator = Evaluator(both)
    shards = [shard for shard in shards_of(both) if shard.model == "aligned"]
    for shard in reversed(shards):
        evaluator.evaluate(shard)
    after = merge([read_shard(shard) for shard in shards]).summary()
    times = {"seconds_per_image"}
    for summary in (within, after):
        summary["standard_errors"].pop("seconds_per_image")
    assert {key: value for key, value in after.items() if key not in times} == {
        key: value for key, value in within.items() if key not in times
    }
    assert after["rewards"].keys() == {"pickscore", "hps"}


def test_a_second_submission_of_a_comparison_is_told_who_is_at_work(write_comparison):
    comparison = planned(write_comparison())
    with run_lease.held(directory(comparison), print), pytest.raises(ValueError, match="at work already, by process"):
        schedule.compare(comparison, print)


def test_what_is_done_stays_done_until_the_model_or_its_settings_change(write_comparison, aligned):
    both = planned(write_comparison(batch_size=2, images_per_prompt=1))
    assert len(shards_of(both)) == 2 * 1
    small = planned(write_comparison(batch_size=1, images_per_prompt=1))
    shards = shards_of(small)
    assert [(shard.model, shard.number, shard.total) for shard in shards] == [
        ("init", 0, 2),
        ("init", 1, 2),
        ("aligned", 0, 2),
        ("aligned", 1, 2),
    ]
    more = planned(write_comparison(batch_size=1, images_per_prompt=1, workers={"num_workers": 3}))
    assert shards_of(more) == shards, "the number of workers is no setting of the results"
    for change in ({"seed": 1}, {"images_per_prompt": 2}, {"oracle": "scenes"}, {"rewards": {}}):
        changed = planned(write_comparison(**({"batch_size": 1, "images_per_prompt": 1} | change)))
        assert not {shard.path for shard in shards_of(changed)} & {shard.path for shard in shards}
    weights = aligned / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights)
    paths = [shard.path for shard in shards_of(more)]
    assert paths[:2] == [shard.path for shard in shards[:2]]
    assert not {*paths[2:]} & {shard.path for shard in shards}, "the run was repeated in the meantime"


def test_other_weights_of_the_same_size_and_time_are_other_weights(write_comparison, aligned):
    before = [shard.path for shard in shards_of(planned(write_comparison()))]
    weights = aligned / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    was = weights.stat()
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    os.utime(weights, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    contents._of_file.cache_clear()  # as in the next process
    after = [shard.path for shard in shards_of(planned(write_comparison()))]
    assert before[0] == after[0], "the initial generator"
    assert before[1] != after[1], "the run"


def test_another_copy_of_everything_and_what_changes_no_score_draw_nothing_again(write_comparison, aligned, tmp_path):
    before = shards_of(planned(write_comparison()))
    tree = yaml.safe_load(write_comparison().read_text())
    shutil.copytree(tree["models"][0]["models"]["generator"], tmp_path / "generator")
    shutil.copytree(tree["rewards"]["services"][0]["checkpoint"], tmp_path / "reward")
    aligned.rename(tmp_path / "align" / "moved")
    tree["models"][0]["models"]["generator"] = str(tmp_path / "generator")
    tree["models"][1] |= {"run": str(tmp_path / "align" / "moved"), "parameters": "1K"}
    tree["rewards"]["services"][0] |= {"checkpoint": str(tmp_path / "reward"), "deadline_s": 7, "num_replicas": 3}
    assert shards_of(planned(write_comparison(**tree))) == before


def test_mistakes_are_named_together_before_anything_starts(write_comparison, tmp_path):
    twice = [{"kind": "pipeline", "name": "sdxl", "location": "a/b", "steps": 0, "guidance": 5}] * 2
    with pytest.raises(ConfigError, match=r"models.sdxl.steps = 0"):
        load_as(Comparison, write_comparison(models=twice))
    twice[0]["steps"] = 50
    with pytest.raises(ConfigError, match=r"models = 'sdxl': is the name of two models; rename one"):
        load_as(Comparison, write_comparison(models=twice))
    models = [
        {"kind": "run", "name": "no-run", "run": str(tmp_path)},
        {"kind": "pipeline", "name": "gone", "location": "./no/such", "steps": 1, "guidance": 0},
    ]
    prompts = [{"name": "absent", "path": "absent.txt"}]
    with pytest.raises(ValueError, match="holds no exported pipeline") as caught:
        planned(write_comparison(models=models, prompts=prompts))
    assert "models.gone = './no/such': does not exist" in str(caught.value)
    assert "prompts.absent: prompts file 'absent.txt' does not exist" in str(caught.value)


def test_a_set_of_one_picture_is_refused_before_it_is_drawn_where_distances_are_asked_for(write_comparison, tmp_path):
    path = yaml.safe_load(write_comparison().read_text())["prompts"][0]["path"]
    one = [{"name": "kinds", "path": path, "num_prompts": 1}]
    features = {"kind": "clip", "checkpoint": "owner/clip", "images": str(tmp_path)}
    with pytest.raises(ValueError, match=r"prompts\.kinds: a single picture has neither FID nor KID"):
        planned(write_comparison(prompts=one, images_per_prompt=1, features=features))
    planned(write_comparison(prompts=one, images_per_prompt=2, features=features))


def test_the_shards_add_up_to_rows_groups_win_rates_and_distances(write_comparison, rewards_root, tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    features = {"kind": "clip", "checkpoint": str(rewards_root / "pickscore"), "images": str(folder)}
    both = planned(write_comparison(features=features))
    evaluator, real = Evaluator(both), tmp_path / "real.pt"
    for shard in shards_of(both):
        evaluator.evaluate(shard)
    evaluator.real_features(real)
    summary = results.collect(both, shards_of(both), {"init": {}, "aligned": {}}, real)

    rows = parquet.read_table(directory(both) / "results.parquet").to_pylist()
    assert len(rows) == 2 * 6 * 2
    mine = [row["rewards/hps"] for row in rows if row["model"] == "aligned"]
    found = summary["sets"]["kinds"]
    assert found["models"]["aligned"]["rewards/hps"]["mean"] == pytest.approx(np.mean(mine), rel=1e-12)
    discs = [row["rewards/hps"] for row in rows if row["model"] == "aligned" and row["kind"] == "disc"]
    assert found["groups"]["kind"]["disc"]["aligned"]["rewards/hps"]["mean"] == pytest.approx(np.mean(discs), rel=1e-12)
    assert {(rate["model"], rate["against"]) for rate in found["win_rates"]} == {("init", "aligned")}
    assert torch.load(real, weights_only=True).shape == (5, 16)
    for model in ("init", "aligned"):
        assert found["models"][model]["fid"]["mean"] > 0

    evaluator.sheets([("aligned", ["a red disc"], tmp_path / "sheet.pt")])
    assert read_sheet(tmp_path / "sheet.pt").shape == (1, 3, 48, 48)
    written = re.sub(" +", " ", table.markdown(both, summary))
    assert "clip features of" in written
    assert "| DI* † | 1 | 2.6B | 1.067 | 5.74 | .2304 | 32.82 | 2.22 |" in written
    assert written.index("DI* †") < written.index("| **aligned** | 1 |")


def test_the_published_rows_are_whole_and_never_without_their_mark():
    published = table.published_scores()
    for name in ("parti", "hpsv2"):
        of_all = len(["model", "steps", "params"]) + len(published[name]["headings"]) + len(["last"])
        assert all(len(row) == of_all for row in published[name]["rows"])
        assert all(isinstance(cell, str) for row in published[name]["rows"] for cell in row), "as they are printed"
    for _, _, _, *scores, average in published["hpsv2"]["rows"]:
        assert float(average) == pytest.approx(np.mean([float(score) for score in scores]), abs=0.011)


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_give_the_numbers_of_one_and_a_second_call_draws_nothing(cluster, write_comparison, tmp_path):
    both = planned(write_comparison(workers={"num_workers": 2}, batch_size=2, images_per_prompt=1))
    said: list[str] = []
    summary = schedule.compare(both, said.append)
    shard = shards_of(both)[-1]
    known = read_shard(shard)
    shard.path.unlink()
    Evaluator(both).evaluate(shard)
    times = ("seconds_per_image",)
    for mine, theirs in zip(read_shard(shard).rows, known.rows, strict=True):
        assert {k: v for k, v in mine.values.items() if k not in times} == {
            k: v for k, v in theirs.values.items() if k not in times
        }
    for name in ("results.parquet", "table.md", "summary.json", "sheets/kinds.png"):
        assert (directory(both) / name).is_file(), name
    assert json.loads((directory(both) / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert "No prompt is cut" in (directory(both) / "table.md").read_text()
    again = schedule.compare(both, said.append)
    assert "2 models, 2 shards, 2 of them known" in said
    assert again["sets"]["kinds"]["win_rates"] == summary["sets"]["kinds"]["win_rates"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_lost_process_costs_its_shard_a_second_try_and_two_name_the_shard(
    cluster, write_comparison, tmp_path, monkeypatch
):
    both = planned(write_comparison(batch_size=1, images_per_prompt=1, sheet_prompts=1))

    class Dying(Evaluator):
        """Dies in the first model's second shard, as often as there are files to take away."""

        def evaluate(self, shard):
            deaths = sorted(tmp_path.glob("death-*"))
            if deaths and (shard.model, shard.number) == ("init", 1):
                deaths[0].unlink()
                os._exit(1)
            return super().evaluate(shard)

    monkeypatch.setattr(schedule, "Evaluator", Dying)
    said: list[str] = []
    for number in range(2):
        (tmp_path / f"death-{number}").touch()
    with pytest.raises(RunFailed, match=r"models\.init on prompts\.kinds: two processes died of it"):
        schedule.compare(both, said.append)
    assert [shard.done for shard in shards_of(both)] == [True, False, False, False], "what is done stays done"
    (tmp_path / "death-0").touch()
    schedule.compare(both, said.append)
    assert "2 models, 4 shards, 1 of them known" in said
    assert not list(tmp_path.glob("death-*"))
    assert any("12/12 images" in line for line in said)
