"""The environments of the upstream packages: `python -m reward_services.upstream.environment DIRECTORY [PACKAGE ...]`.

An environment is the reward services' own plus the pins of `<package>.txt`, which come first on the path. That file is
the only place of the pins: Ray's `runtime_env`, `make parity` and infra/docker/reward.Dockerfile read it here.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from reward_services.spec import RewardSpec

PACKAGES = ("imagereward", "hps")
_OF_KIND = {"imagereward": "imagereward", "hps": "hps", "hps_v2": "hps"}
_PIP_OPTIONS = ("--no-deps", "--disable-pip-version-check")


def pins(package: str) -> list[str]:
    """Return the requirements of an upstream package, exact versions all."""
    lines = Path(__file__).with_name(f"{package}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@cache
def declare_torchvision() -> None:
    """Let torchvision be imported beside a CPU build of torch; to be called before anything imports it.

    Its published wheels are built for CUDA. Beside a CPU build they load no operators, and then fail where they
    describe two of them, unless those are declared. No reward calls either.
    """
    if torch.version.cuda is None:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def versions() -> dict[str, str]:
    """Return the versions of what is installed where this process runs, of what scores depend on."""
    installed = {}
    for name in ("ray", "torch", "transformers", "torchvision", "image-reward", "hpsv2x"):
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def python_of(environment: str | Path) -> Path:
    """Return the interpreter of a prepared environment; ValueError if there is none."""
    python = Path(environment).absolute() / "bin" / "python"
    if not python.is_file():
        raise ValueError(
            f"upstream_environment={str(environment)!r} has no bin/python: make it by "
            "'python -m reward_services.upstream.environment DIRECTORY', which makes one for each package"
        )
    return python


def prepare(package: str, directory: Path) -> Path:
    """Make the environment of an upstream package, unless it is there and of the same pins; return its interpreter."""
    wanted, record = "\n".join(pins(package)) + "\n", directory / "pins.txt"
    if record.is_file() and record.read_text() == wanted:
        return python_of(directory)
    venv.create(directory, clear=True, symlinks=True, with_pip=True)
    inherited = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    own = sysconfig.get_path("purelib", "venv", {"base": str(directory)})
    Path(own, "reward_services.pth").write_text("".join(f"{path}\n" for path in inherited))
    python = python_of(directory)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *_PIP_OPTIONS, *wanted.split()], check=True)
    record.write_text(wanted)
    return python


def actor_options(spec: RewardSpec) -> dict[str, Any]:
    """Return what Ray must be told of a replica's environment: nothing for a native reward."""
    if spec.backend == "native":
        return {}
    if spec.upstream_environment is not None:
        own: dict[str, Any] = {"py_executable": str(python_of(spec.upstream_environment))}
    else:
        own = {"pip": {"packages": pins(_OF_KIND[spec.model]), "pip_install_options": list(_PIP_OPTIONS)}}
    import ray

    # Serve would fill the gaps from the environment of the job that started Serve, not from this one's.
    job = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    path = os.environ.get("PYTHONPATH")
    variables = {**({"PYTHONPATH": path} if path else {}), **job.get("env_vars", {})}
    return {"runtime_env": {**job, **own, "env_vars": variables}}


def main() -> None:
    """Make `DIRECTORY/<package>` for each package, all by default."""
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(PACKAGES):
        sys.exit(f"{__doc__}\nPACKAGE is one of {', '.join(PACKAGES)}.")
    for package in sys.argv[2:] or PACKAGES:
        print(prepare(package, Path(sys.argv[1]) / package))


if __name__ == "__main__":
    main()
