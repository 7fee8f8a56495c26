"""What a run is made by: the commit of this source and the versions of its dependencies."""

import hashlib
import os
import subprocess

from slingstone.config.paths import ROOT


def sources() -> dict[str, str]:
    """Return what a run is made by: the commit of this source and the hash of its dependencies' versions."""
    return {"git_commit": git_commit(), "lock_sha256": lock_hash()}


def git_commit() -> str:
    """Return the commit of this source; a submitted job, which has no .git, is told by its submitter."""
    if told := os.environ.get("SLINGSTONE_GIT_COMMIT"):
        return told
    command = [
        "git",
        f"--git-dir={ROOT}/.git",
        f"--work-tree={ROOT}",
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def lock_hash() -> str:
    """Return the SHA-256 of constraints.txt, which names every dependency's version."""
    lock = ROOT / "constraints.txt"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "unknown"
