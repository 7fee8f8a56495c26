"""The environments of the upstream packages: their pins, how to make one, and how a Ray replica gets into one.

An environment is the reward services' own plus the pins of `<package>.txt`, which come first on the path. That file is
the only place of the pins: Ray's `runtime_env`, `make parity` and infra/docker/reward.Dockerfile read it here.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import util
from pathlib import Path
from typing import Any

import torch

from reward_services.spec import RewardSpec

PACKAGES = ("imagereward", "hps")
_OF_KIND = {"imagereward": "imagereward", "hps": "hps", "hps_v2": "hps"}
_STAND_IN = Path(__file__).with_name("stand_in")
_PIP_OPTIONS = ("--no-deps", "--disable-pip-version-check")


def pins(package: str) -> list[str]:
    """Return the requirements of an upstream package, exact versions all.

    Beside a CPU build of torch there is no torchvision that could be imported; `provide_torchvision` stands in.
    """
    lines = Path(__file__).with_name(f"{package}.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    return [pin for pin in wanted if torch.version.cuda is not None or not pin.startswith("torchvision==")]


def provide_torchvision() -> bool:
    """Put the stand-in for torchvision on the path if there is no torchvision; return whether it stands in."""
    if util.find_spec("torchvision") is None:
        sys.path.append(str(_STAND_IN))
    found = util.find_spec("torchvision")
    assert found is not None
    return Path(str(found.origin)).is_relative_to(_STAND_IN)


def python_of(environment: str | Path) -> Path:
    """Return the interpreter of a prepared environment.

    Raises:
        ValueError: there is none.
    """
    python = Path(environment).absolute() / "bin" / "python"
    if not python.is_file():
        raise ValueError(
            f"upstream_environment={str(environment)!r} has no bin/python: make it by "
            "'python -m reward_services.upstream.prepare DIRECTORY', which makes one for each package"
        )
    return python


def prepare(package: str, directory: Path) -> Path:
    """Make the environment of an upstream package, unless it is there and of the same pins; return its interpreter."""
    wanted, record = "\n".join(pins(package)) + "\n", directory / "pins.txt"
    if record.is_file() and record.read_text() == wanted:
        return python_of(directory)
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    python = python_of(directory)
    inherited = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    Path(own.stdout.strip(), "reward_services.pth").write_text("".join(f"{path}\n" for path in inherited))
    install = [python, "-m", "pip", "install", "--quiet", *_PIP_OPTIONS, *wanted.split()]
    subprocess.run(install, check=True)
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
    return {"runtime_env": _merged(own)}


def _merged(own: dict[str, Any]) -> dict[str, Any]:
    """Add the job's own environment: Serve would fill the gaps from the job that started Serve, not from this one."""
    import ray

    job = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    path = os.environ.get("PYTHONPATH")
    variables = {**({"PYTHONPATH": path} if path else {}), **job.get("env_vars", {})}
    return {**job, **own, "env_vars": variables}
