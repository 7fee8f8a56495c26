"""Checkpoints as units: exact, published whole or not at all, kept as told, and never trusted unread."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from slingstone.checkpoints import saving, store
from slingstone.checkpoints.manifest import FORMAT, Facts, Manifest, entry_of
from slingstone.checkpoints.saving import SaveFailed
from slingstone.config import Runtime
from slingstone.engines.shards import DamagedCheckpoint, copied, read
from tests.checkpoints.killed_while_saving import MOMENTS
from tests.small_run import ROOT, small


@pytest.fixture(autouse=True, scope="module")
def alone(tmp_path_factory):
    """A process group of one."""
    rendezvous = tmp_path_factory.mktemp("alone") / "rendezvous"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in alone.items():
            patch.setenv(name, value)
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


RUNTIMES = {
    "torch": Runtime(engine="torch"),
    **{f"zero{stage}": Runtime(zero_stage=stage) for stage in range(4)},
}


WAYS = {
    **{label: {"runtime": runtime} for label, runtime in RUNTIMES.items()},
    # Adapters with ZeRO 3 are refused by the configuration.
    **{f"{label}_lora": {"runtime": RUNTIMES[label], "lora": True} for label in RUNTIMES if label != "zero3"},
}


@pytest.mark.parametrize("label", WAYS)
def test_k_steps_a_restore_and_the_rest_equal_all_steps_bit_by_bit(tmp_path, label):
    whole = small(tmp_path / "whole", **WAYS[label])
    before = whole.everything()
    expected = whole.steps(7)
    learned = [name for name, value in whole.everything().items() if not torch.equal(before[name], value)]
    assert all("lora" in name for name in learned) == ("lora" in label), "adapters, or everything"
    assert learned

    first = small(tmp_path / "parts", **WAYS[label])
    first.steps(3)
    first.save()
    rest = small(tmp_path / "parts", **WAYS[label])
    facts = rest.saved.restore()
    assert facts is not None
    assert facts.images == 24
    assert rest.steps(4) == expected[3:]
    assert_equal(rest.everything(), whole.everything())


def test_what_is_saved_is_the_moment_of_the_call_although_training_goes_on(tmp_path):
    run = small(tmp_path)
    run.steps(2)
    at_the_call = run.everything()
    run.saved.save(Facts(run.trainer.images, 1, "mlflow", {}))
    run.steps(3)
    run.saved.finish()
    again = small(tmp_path)
    again.saved.restore()
    assert_equal(again.everything(), at_the_call)


def test_the_step_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    slow_s = 2.0

    def slowly(*args):
        import time

        time.sleep(slow_s)
        return write(*args)

    write = saving.write
    monkeypatch.setattr(saving, "write", slowly)
    background, waiting = small(tmp_path / "a"), small(tmp_path / "b", ["recovery.background=false"])
    background.saved.save(Facts(0, 1, "mlflow", {}))
    assert background.saved.waited_s < slow_s / 2
    assert background.saved.newest() is not None, "asking for the newest one waits for it"
    waiting.saved.save(Facts(0, 1, "mlflow", {}))
    assert waiting.saved.waited_s >= slow_s


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    run = small(tmp_path, ["training.keep_checkpoints=2"])
    names = []
    for score in (1.0, 3.0, None, 2.0, 0.0):
        run.steps(1)
        names.append(run.save(score))
    assert store.open_store(str(tmp_path)).names() == [names[1], names[3], names[4]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[1], names[3], names[4]], "and nothing else"


def test_what_was_begun_and_never_published_is_never_seen_and_goes_away(tmp_path):
    run = small(tmp_path)
    run.steps(1)
    run.save()
    begun = tmp_path / ".incoming-000000000099"
    begun.mkdir()
    (begun / "rank_0.pt").write_bytes(b"half")
    again = small(tmp_path)
    facts = again.saved.restore()
    assert facts is not None
    assert facts.images == 8
    assert not begun.exists()


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A directory by moment, in which a process was killed while it saved its second checkpoint."""
    root = tmp_path_factory.mktemp("killed")
    subprocess.run(
        [sys.executable, "-m", "tests.checkpoints.killed_while_saving", str(root)], cwd=ROOT, check=True, timeout=300
    )
    return root


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_of_saving_leaves_a_good_checkpoint(killed, moment):
    left = [path.name for path in (killed / moment).iterdir()]
    assert any(name.startswith(".incoming") for name in left) == (moment != "deletion"), "killed in the middle"
    again = small(killed / moment)
    facts = again.saved.restore()
    assert facts is not None
    assert facts.images == (24 if moment == "deletion" else 16)
    assert not [path.name for path in (killed / moment).iterdir() if path.name.startswith(".")]


@pytest.fixture
def two(tmp_path) -> tuple[Path, list[str]]:
    """A directory with two checkpoints, and their names."""
    run = small(tmp_path)
    names = []
    for _ in range(2):
        run.steps(1)
        names.append(run.save())
    return tmp_path, names


def _cut(directory: Path) -> None:
    path = directory / "rank_0.pt"
    path.write_bytes(path.read_bytes()[:-7])


def _flip(directory: Path) -> None:
    path = directory / "ema_0.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _remove(directory: Path) -> None:
    (directory / "generator" / "torch_engine.pt").unlink()


def _touch_manifest(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"num_workers": 1', '"num_workers": 2'))


def _escape(directory: Path) -> None:
    outside = directory.parent / "outside.pt"
    outside.write_bytes(b"x")
    manifest = Manifest.from_json((directory / "manifest.json").read_text(), directory.name)
    files = {**manifest.files, "../outside.pt": entry_of(outside)}
    (directory / "manifest.json").write_text(Manifest(manifest.facts, files).to_json())


def _link(directory: Path) -> None:
    path = directory / "ema_0.pt"
    path.rename(directory.parent / "elsewhere.pt")
    path.symlink_to(directory.parent / "elsewhere.pt")


def _rename(directory: Path) -> None:
    older = directory.parent / "000000000008"
    (directory / "manifest.json").write_text((older / "manifest.json").read_text())


DAMAGES = {
    _cut: "rank_0.pt has .* bytes instead of",
    _flip: "ema_0.pt was changed",
    _remove: "torch_engine.pt is missing",
    _touch_manifest: "manifest.json was changed",
    _escape: "lies outside",
    _link: "ema_0.pt is missing",
    _rename: "tells of another one",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_taken_when_asked(two, damage):
    directory, names = two
    damage(directory / names[1])
    with pytest.raises(ValueError, match=f"checkpoint {names[1]}: .*{DAMAGES[damage]}.*on_damaged_checkpoint"):
        small(directory).saved.restore()

    run = small(directory, ["recovery.on_damaged_checkpoint=previous"])
    facts = run.saved.restore()
    assert facts is not None
    assert facts.images == 8
    assert f"checkpoint {names[1]}" in run.said[0]
    assert (directory / f"damaged-{names[1]}").is_dir(), "kept for whoever wants to know why"
    run.steps(1)
    assert run.save() == names[1]
    assert small(directory).saved.restore() is not None


def test_no_good_checkpoint_is_a_reason_to_stop_and_not_to_start_afresh(two):
    directory, names = two
    for name in names:
        _flip(directory / name)
    with pytest.raises(ValueError, match="no checkpoint is left"):
        small(directory, ["recovery.on_damaged_checkpoint=previous"]).saved.restore()


def test_a_checkpoint_of_another_run_is_refused_with_the_keys_that_differ(two):
    directory, _ = two
    with pytest.raises(ValueError, match=r"differs in name \(small -> other\), seed \(0 -> 5\).*training.num_images"):
        small(directory, ["name=other", "seed=5"]).saved.restore()
    assert small(directory, ["training.num_images=1600", "recovery.max_failures=9"]).saved.restore() is not None


@pytest.mark.parametrize("label", WAYS)
def test_another_number_of_workers_is_refused_with_a_message_and_nothing_is_changed(tmp_path, label):
    run = small(tmp_path, **WAYS[label])
    run.steps(1)
    run.saved.save(Facts(8, 4, "mlflow", {}))
    run.saved.finish()
    refusing = small(tmp_path, **WAYS[label])
    before = refusing.everything()
    with pytest.raises(ValueError, match=r"runtime.num_workers = 1: the checkpoint was written by 4"):
        refusing.saved.restore()
    assert_equal(refusing.everything(), before)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("runtime", [Runtime(engine="torch"), Runtime(zero_stage=2)], ids=["torch", "deepspeed"])
def test_no_pickled_code_runs_even_if_the_manifest_agrees_with_it(tmp_path, monkeypatch, runtime):
    monkeypatch.chdir(tmp_path)
    run = small(tmp_path / "checkpoints", runtime=runtime)
    name = run.save()
    directory = tmp_path / "checkpoints" / name
    manifest = Manifest.from_json((directory / "manifest.json").read_text(), name)
    files = dict(manifest.files)
    for path in files:
        tree = read(directory / path)
        torch.save({"attack": Attack(), **tree}, directory / path)
        files[path] = entry_of(directory / path)
    (directory / "manifest.json").write_text(Manifest(manifest.facts, files).to_json())
    with pytest.raises(ValueError, match="cannot be read"):
        small(tmp_path / "checkpoints", runtime=runtime).saved.restore()
    assert not (tmp_path / "attacked").exists()
    pickle.loads(pickle.dumps(Attack()))
    assert (tmp_path / "attacked").exists(), "the attack would have worked"


@pytest.mark.parametrize("policy", ["stop", "go_on"])
def test_a_full_disk_costs_no_checkpoint_that_was_good(tmp_path, policy):
    run = small(tmp_path, [f"recovery.on_failed_save={policy}"])
    run.steps(1)
    name = run.save()
    run.steps(1)
    # The kernel's own refusal to let a file grow, as on a full disk or over a quota.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        if policy == "stop":
            with pytest.raises(SaveFailed, match=r"000000000016 cannot be saved: .*the one before it is still good"):
                run.save()
        else:
            run.save()
            assert "000000000016 cannot be saved" in run.said[-1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    run.steps(1)
    later = run.save()
    again = small(tmp_path)
    facts = again.saved.restore()
    assert facts is not None
    assert facts.name == later
    assert_equal(again.everything(), run.everything())


def test_a_copy_shares_no_memory_and_keeps_the_kinds():
    tree = {"a": torch.zeros(4)[1:3], "b": [(torch.ones(1), 2)], "size": torch.Size([3])}
    twin = copied(tree)
    tree["a"].fill_(9)
    assert torch.equal(twin["a"], torch.zeros(2))
    assert twin["a"].untyped_storage().nbytes() == 8, "a view takes no more than itself"
    assert isinstance(twin["b"][0], tuple)
    assert twin["size"] == torch.Size([3])


def test_a_manifest_reads_back_equal_and_tells_what_it_is_not():
    manifest = Manifest(Facts(3, 1, "mlflow", {}), {})
    assert Manifest.from_json(manifest.to_json(), manifest.facts.name) == manifest
    with pytest.raises(DamagedCheckpoint, match="checkpoint x: its manifest tells of another one"):
        Manifest.from_json(manifest.to_json(), "x")
    newer = json.loads(manifest.to_json()) | {"format": FORMAT + 1}
    with pytest.raises(DamagedCheckpoint, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        Manifest.from_json(json.dumps(newer), manifest.facts.name)
