"""Whole runs by `jobs/align.py` on a Ray cluster of their own: the demo, and SDXL's size by adapters."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.gpu.place import Place, say

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
# The embedded generator, before any training, on the CPU: README.md's column `initial`, with more digits. 512 pictures
# in fp32; on a GPU convolutions round to TF32, a few parts in a thousand of a picture that no mean should show.
INITIAL = {
    "rewards/pickscore": -0.78315,
    "rewards/hps": 0.02990,
    "rewards/imagereward": 0.12014,
    "utility": 0.70989,
    "diversity": 0.10187,
}
THREE_DIGITS = 2e-3
COLOURS = ("red", "green", "blue", "white", "black", "grey", "pink", "brown")
# A caption is read right or wrong: so many pictures of 512 may be read otherwise.
ACCURACY, READ_OTHERWISE = 0.58594, 3 / 512


def align(place: Place, config: str, overrides: list[str], seconds: float) -> None:
    """Run the job and show its lines as they come; have it stop after so long."""
    left_out = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "SLINGSTONE_GPU_REHEARSAL")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    env |= {"DS_ACCELERATOR": place.device.type, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "jobs/align.py"), str(ROOT / config), *overrides]
    start = time.monotonic()
    job = subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # To this process alone: its children are Ray's, and the job takes them down in order, or they follow it.
    timers = [threading.Timer(seconds, job.send_signal, [signal.SIGTERM]), threading.Timer(seconds + 20, job.kill)]
    for timer in timers:
        timer.start()
    lines = []
    try:
        assert job.stdout is not None
        for line in job.stdout:
            lines.append(line.rstrip())
            say(f"{time.monotonic() - start:6.1f} s  {lines[-1]}")
        status = job.wait()
    finally:
        for timer in timers:
            timer.cancel()
        if job.poll() is None:
            job.kill()
    took = time.monotonic() - start
    assert status == 0, f"status {status} after {took:.0f} of {seconds:.0f} s: {lines[-5:]}"


def numbers(directory: Path, summary: dict) -> dict[str, float]:
    """Return the last value of every metric that the run logged, all of them finite."""
    import mlflow

    uri = f"sqlite:///{directory.parents[1] / 'mlflow.db'}"
    logged = mlflow.MlflowClient(uri).get_run(summary["mlflow_run_id"]).data.metrics
    shown = ("loss/", "grad_norm/", "reward/", "seconds/", "memory/", "images_per_second", "mfu")
    say(", ".join(f"{name} {value:.4g}" for name, value in sorted(logged.items()) if name.startswith(shown)))
    broken = {name: value for name, value in logged.items() if not math.isfinite(value)}
    assert not broken
    assert {"loss/assistant", "loss/divergence", "reward/pickscore", "grad_norm/generator"} <= logged.keys()
    assert logged["nonfinite/generator"] == logged["nonfinite/assistant"] == 0
    return logged


def checkpoints(directory: Path) -> list[str]:
    """Return the names of the published checkpoints: their position in images."""
    return sorted(path.name for path in (directory / "checkpoints").iterdir() if path.is_dir() and path.name.isdigit())


def shares(place: Place, trainer: float, rewards: dict[str, float]) -> list[str]:
    """Return the overrides that put one worker and the rewards on parts of one GPU, or on the CPU in a rehearsal."""
    common = ["runtime.num_workers=1", "runtime.precision=bf16", "runtime.engine=deepspeed", "runtime.zero_stage=2"]
    if not place.real:
        return [
            *(*common, "runtime.use_gpu=false", "runtime.threads_per_worker=1"),
            *(
                f"rewards.services.{name}.{key}"
                for name in rewards
                for key in ("device=cpu", "num_gpus=0", "num_cpus=0")
            ),
        ]
    return [
        *(*common, "runtime.use_gpu=true", f"placement.trainer_gpu_share={trainer}"),
        *(f"rewards.services.{name}.device=cuda" for name in rewards),
        *(f"rewards.services.{name}.num_gpus={share}" for name, share in rewards.items()),
    ]


def test_the_demo_with_three_rewards_on_fractions_of_the_gpu(place: Place, tmp_path: Path) -> None:
    images = 640 if place.real else 96
    overrides = [
        *shares(place, 0.55, {"pickscore": 0.1, "hps": 0.1, "imagereward": 0.1}),
        *(f"storage={tmp_path}", f"training.num_images={images}", "training.warmup_images=32"),
        *(f"training.checkpoint_every_images={images}", f"training.grid_every_images={images}"),
        "evaluation.reference=null",
    ]
    align(place, "configs/align/scenes.yaml", overrides, seconds=120 if place.real else 600)
    directory = tmp_path / "align" / "scenes"
    summary = json.loads((directory / "summary.json").read_text())
    found = summary["init"] | {f"rewards/{name}": value for name, value in summary["init"]["rewards"].items()}
    say("initial: " + ", ".join(f"{name} {found[name]:.5f}" for name in (*INITIAL, "caption_accuracy")))
    logged = numbers(directory, summary)
    waited, whole = (logged[f"seconds/{name}"] for name in ("reward_wait", "step"))
    say(f"the last step: {32 / whole:.0f} images/s, {waited / whole:.0%} of it waiting for rewards")
    assert checkpoints(directory)[-1] == f"{images:012}"
    assert (directory / "pipeline" / "model_index.json").is_file()
    assert {name: found[name] for name in INITIAL} == pytest.approx(INITIAL, rel=THREE_DIGITS, abs=5e-4)
    assert found["caption_accuracy"] == pytest.approx(ACCURACY, abs=READ_OTHERWISE)


def test_sdxl_by_adapters(place: Place, tmp_path: Path) -> None:
    from tests.gpu.random_checkpoints import write

    # Networks and reward 11 GB, the exported pipeline 14 in fp32, and MLflow's copy of it.
    if place.real and (free := shutil.disk_usage(tmp_path).free) < 45e9:
        pytest.skip(f"needs 45 GB of disk, has {free / 1e9:.0f}")
    with place.peak("random SDXL and PickScore written"):
        write(tmp_path, place.device, tiny=not place.real)
    if place.real:
        import torch

        torch.cuda.empty_cache()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a {colour} disc\n" for colour in COLOURS))
    reward = {"name": "pickscore", "model": "pickscore", "checkpoint": str(tmp_path / "pickscore"), "deadline_s": 120}
    # The list of rewards comes first: overrides by name look into it.
    overrides = [
        f"rewards.services={json.dumps([reward])}",
        *shares(place, 0.7, {"pickscore": 0.3}),
        *(f"storage={tmp_path}", f"models.reference={tmp_path / 'sdxl'}", f"models.generator={tmp_path / 'sdxl'}"),
        *(f"models.lora={{rank: {64 if place.real else 4}}}", "training.batch_size=2", "training.assistant_updates=1"),
        *("training.num_images=8", "training.warmup_images=2", "training.checkpoint_every_images=8"),
        *(
            "training.grid_every_images=8",
            "training.ema_half_life_images=8",
            f"runtime.threads_per_worker={8 if place.real else 1}",
        ),
        *(f"data.prompts={prompts}", f"evaluation.prompts={prompts}", "evaluation.num_prompts=1"),
        *("evaluation.batch_size=2", "evaluation.grid_prompts=1", "evaluation.reference=null"),
    ]
    try:
        align(place, "configs/align/sdxl.yaml", overrides, seconds=180 if place.real else 600)
        directory = tmp_path / "align" / "sdxl"
        summary = json.loads((directory / "summary.json").read_text())
        logged = numbers(directory, summary)
        say(f"the last step: {2 / logged['seconds/step']:.2f} images/s; the whole run {summary['seconds']} s")
        assert checkpoints(directory) == [f"{8:012}"]
        saved = sum(path.stat().st_size for path in (directory / "checkpoints").rglob("*") if path.is_file())
        say(f"checkpoint {saved / 2**20:.0f} MiB")
        for label in ("init", "aligned"):
            assert math.isfinite(summary[label]["rewards"]["pickscore"])
        assert (directory / "pipeline" / "model_index.json").is_file()
    finally:
        for path in ("sdxl", "pickscore", "align", "mlruns", "mlartifacts"):
            shutil.rmtree(tmp_path / path, ignore_errors=True)
