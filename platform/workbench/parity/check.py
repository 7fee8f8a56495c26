"""All comparisons with the upstream packages: their own results, and those of services that run them."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve

from reward_services.spec import RewardKind, RewardSpec
from reward_services.upstream.environment import prepare
from workbench.parity.compare import Comparison, compare
from workbench.parity.served import judge
from workbench.parity.tiny import write_checkpoints, write_pictures

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


def by_service(root: Path, *, prepared: bool = True) -> Iterator[Comparison]:
    """Yield each comparison of the native reward, in process, with `backend: upstream`, deployed on Ray Serve.

    Args:
        root: holds, or shall hold, the packages' environments.
        prepared: whether replicas run in those; otherwise Ray's pip installs the same pins when the first one starts.
    """
    checkpoints, pictures, results = write_files(root / "served")
    for kind in SERVED:
        result = results / f"{kind}.safetensors"
        if prepared:
            prepare(PACKAGES[kind], root / PACKAGES[kind])
        environment = str(root / PACKAGES[kind]) if prepared else None
        spec = RewardSpec(
            name=f"{kind}-upstream",
            model=kind,
            checkpoint=str(checkpoints / kind),
            backend="upstream",
            upstream_environment=environment,
        )
        judge(spec, pictures, result)
        yield compare(kind, checkpoints, pictures, result)


@contextmanager
def local_cluster() -> Iterator[None]:
    """Have a Ray cluster in this process, with Serve and without HTTP."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def original_hpsv2(root: Path) -> str:
    """Return how far the package that hpsv2x mends can be imported."""
    target = root / "hpsv2"
    python = prepare("hps", root / "hps")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", target, "hpsv2==1.2.0"]
    subprocess.run(install, check=True)
    program = (
        f"import sys; sys.path.insert(0, {str(target)!r}); "
        "from reward_services.upstream.environment import provide_torchvision; provide_torchvision(); "
        f"import hpsv2; assert hpsv2.__file__.startswith({str(target)!r}); import hpsv2.img_score"
    )
    tried = subprocess.run([python, "-W", "ignore", "-c", program], capture_output=True, text=True)
    return "imports" if tried.returncode == 0 else f"cannot be imported: {tried.stderr.strip().splitlines()[-1]}"
