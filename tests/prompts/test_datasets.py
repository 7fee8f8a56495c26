"""Prompts from datasets of the hub and from directories of tables."""

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from huggingface_hub import constants
from pyarrow import parquet

from slingstone.config import ConfigError, Sweep, load, load_as
from slingstone.driver.preflight import prepare
from slingstone.prompts.files import read_prompts
from slingstone.prompts.hub import HubAway, local_copy
from slingstone.prompts.sampler import PromptSampler
from slingstone.sweep import trials
from tests.prompts import fake_hub

ROOT = Path(__file__).resolve().parents[2]
SCENES = ROOT / "configs" / "align" / "scenes.yaml"


def table(prompts: list[str], column: str = "prompt", **more: list[bytes]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table({"id": list(range(len(prompts))), column: prompts, **more}), file)
    return file.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.Hub]:
    with fake_hub.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture
def prompts_of(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    return lambda location: read_prompts(local_copy(location, (None,), str(tmp_path)))


def test_a_hub_dataset_gives_its_training_split_in_the_order_of_its_files(hub, prompts_of) -> None:
    split = {"data/train-1.parquet": ["c"], "data/train-0.parquet": ["a", "b"], "data/test-0.parquet": ["x"]}
    hub.files["me/prompts"] = {"main": {name: table(prompts) for name, prompts in split.items()}}
    assert prompts_of("hf://datasets/me/prompts") == ("a", "b", "c")
    assert prompts_of("hf://datasets/me/prompts/data/test") == ("x",)


def test_a_dataset_without_parquet_of_its_own_is_read_from_the_hubs_conversion(hub, prompts_of) -> None:
    converted = {"default/train/0000.parquet": table(["a"]), "default/train/0001.parquet": table(["b"])}
    hub.files["me/texts"] = {"main": {"all.csv": b"prompt\na"}, "refs/convert/parquet": converted}
    assert prompts_of("hf://datasets/me/texts") == ("a", "b")


def test_a_revision_is_the_one_that_is_read(hub, prompts_of) -> None:
    hub.files["me/prompts"] = {"main": {"all.parquet": table(["new"])}, "v1": {"all.parquet": table(["old"])}}
    assert prompts_of("hf://datasets/me/prompts@v1") == ("old",)
    assert prompts_of("hf://datasets/me/prompts") == ("new",)


def test_of_a_dataset_with_pictures_the_prompts_alone_are_downloaded_once_and_their_size_is_told(
    hub, tmp_path, capfd
) -> None:
    noise = random.Random(0)
    pictures = [noise.randbytes(100_000) for _ in range(40)]
    whole = table([f"a red circle {number}" for number in range(40)], picture=pictures)
    hub.files["me/pictures"] = {"main": {"train.parquet": whole}}
    asked = ["data.prompts=hf://datasets/me/pictures", "evaluation.prompts=hf://datasets/me/pictures"]
    run = prepare(load(SCENES, [*asked, f"storage={tmp_path}"]))
    assert len(whole) > 4_000_000
    assert hub.sent_bytes < 300_000
    told = capfd.readouterr().err
    assert told == "reading prompt of hf://datasets/me/pictures: 0.0 MiB in 1 files\n"
    requests = hub.requests
    assert prepare(load(SCENES, [*asked, f"storage={tmp_path}"])) == run, "as a dry run and then the job"
    assert read_prompts(run.data.prompts)[3] == read_prompts(run.evaluation.prompts)[3] == "a red circle 3"
    assert hub.requests == requests, "nor is it asked again by ranks and evaluations"


def test_a_sweep_over_datasets_reads_each_before_its_trials_start(hub, write_run, tmp_path) -> None:
    locations = [f"hf://datasets/me/{name}" for name in ("cats", "dogs")]
    hub.files |= {f"me/{name}": {"main": {"all.parquet": table([f"a {name}"])}} for name in ("cats", "dogs")}
    tree = {"name": "few", "storage": str(tmp_path), "run": str(write_run()), "search": {"kind": "grid"}}
    tree |= {"space": {"data.prompts": {"kind": "choice", "values": locations}}}
    tree |= {"objectives": [{"metric": "diversity"}], "signal": {"metric": "rewards/hps"}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    few = trials.prepare(load_as(Sweep, tmp_path / "sweep.yaml"))
    few.begin()
    requests = hub.requests
    for location, prompt in zip(locations, ("a cats", "a dogs"), strict=True):
        assert read_prompts(few.trial("any", {"data.prompts": location}).data.prompts) == (prompt,)
    assert hub.requests == requests


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("hf://me/prompts", r"is no dataset of the hub; write hf://datasets/owner/name"),
        ("hf://datasets/me/absent", r"the hub does not give it; mend the name, or log in"),
        ("hf://datasets/me/prompts@v9", r"the hub does not give it"),
        ("hf://datasets/me/prompts/nowhere", r"has no parquet files 'nowhere'"),
        ("hf://datasets/me/prompts/other", r"has no column 'prompt'.* among 'id', 'text'; name one of these"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_said(hub, prompts_of, location, message) -> None:
    hub.files["me/prompts"] = {"main": {"all.parquet": table(["a"]), "other.parquet": table(["a"], "text")}}
    with pytest.raises(ValueError, match=f"prompts '{location}': {message}"):
        prompts_of(location)


def test_a_hub_that_does_not_answer_is_no_mistake_of_the_configuration(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubAway, match=r"the hub does not answer; try again later, or name a file") as caught:
        prepare(load(SCENES, ["data.prompts=hf://datasets/me/prompts", f"storage={tmp_path}"]))
    assert not isinstance(caught.value, ValueError | ConfigError)


def test_what_was_read_is_there_when_the_hub_is_away(hub, tmp_path, monkeypatch) -> None:
    hub.files["me/prompts"] = {"main": {"all.parquet": table(["a"])}}
    copy = local_copy("hf://datasets/me/prompts", (None,), str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert local_copy("hf://datasets/me/prompts", (None,), str(tmp_path)) == copy
    assert [file.name for file in Path(copy).parent.iterdir()] == [Path(copy).name], "nothing half written"


def test_a_directory_of_tables_is_a_dataset_whose_ranks_share_one_seeded_order(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for part in range(3):
        file = tmp_path / "data" / f"part-{part}.parquet"
        file.write_bytes(table([f"prompt {part} {number}" for number in range(4)], "text"))
    prompts = read_prompts(tmp_path, column="text")
    assert prompts == tuple(f"prompt {part} {number}" for part in range(3) for number in range(4))
    alone = PromptSampler(prompts, 4, seed=3)
    ranks = [PromptSampler(read_prompts(tmp_path, column="text"), 4, rank, 2, seed=3) for rank in range(2)]
    for _ in range(6):
        assert next(alone) == [prompt for rank in ranks for prompt in next(rank)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no \.parquet"):
        read_prompts(tmp_path / "empty")
