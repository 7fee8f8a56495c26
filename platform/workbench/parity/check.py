"""All comparisons with the upstream packages: their own results, and those of services that run them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from ray import serve
from torch import Tensor

from reward_services.client import ServeClient
from reward_services.deployment import build
from reward_services.spec import RewardKind, RewardSpec
from reward_services.upstream.environment import prepare
from workbench.parity.compare import Comparison, compare
from workbench.parity.pictures import as_tensor, record, write_pictures
from workbench.parity.tiny import write_checkpoints

PACKAGES: dict[RewardKind, str] = {
    "imagereward": "imagereward",
    "clip_score": "imagereward",
    "aesthetic": "imagereward",
    "hps": "hps",
}
SERVED: tuple[RewardKind, ...] = ("imagereward", "hps")


def write_files(root: Path) -> tuple[Path, Path, Path]:
    """Write the tiny checkpoints and pictures; return the folders of both, and an empty one for results."""
    checkpoints, pictures, results = (root / name for name in ("checkpoints", "pictures", "results"))
    for path in (checkpoints, pictures, results):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    write_checkpoints(checkpoints)
    write_pictures(pictures)
    return checkpoints, pictures, results


def by_package(root: Path) -> Iterator[tuple[Comparison, Path]]:
    """Yield each reward's comparison with its package, run by itself, and the file of what the package said."""
    checkpoints, pictures, results = write_files(root)
    for kind, package in PACKAGES.items():
        result = results / f"{kind}.safetensors"
        python = prepare(package, root / package)
        arguments = [kind, checkpoints, pictures, result]
        subprocess.run([python, "-W", "ignore", "-m", "workbench.parity.reference", *arguments], check=True)
        yield compare(kind, checkpoints, pictures, result), result


def by_service(root: Path) -> Iterator[Comparison]:
    """Yield each comparison of the native reward, in process, with `backend: upstream`, deployed on Ray Serve."""
    checkpoints, pictures, results = write_files(root / "served")
    for kind in SERVED:
        result = results / f"{kind}.safetensors"
        prepare(PACKAGES[kind], root / PACKAGES[kind])
        spec = RewardSpec(
            name=f"{kind}-upstream",
            model=kind,
            checkpoint=str(checkpoints / kind),
            backend="upstream",
            upstream_environment=str(root / PACKAGES[kind]),
        )
        _serve(spec, pictures, result)
        yield compare(kind, checkpoints, pictures, result)


def _serve(spec: RewardSpec, pictures: Path, result: Path) -> None:
    """Deploy a reward on the Ray cluster of this process, have it judge every picture, and delete it."""
    serve.run(build(spec), name=spec.app_name, route_prefix=None)
    try:
        client = ServeClient(spec.name, deadline_s=300.0)

        def judge(prompt: str, path: Path) -> tuple[float, Tensor]:
            scores, gradient = client.submit(as_tensor(Image.open(path)), [prompt]).result()
            return scores.item(), gradient

        record(judge, pictures, result, client.describe()["versions"])
    finally:
        serve.delete(spec.app_name)
