"""Directories that belong to one user of a machine: what lies in them was put there by him alone."""

import os
import stat
from pathlib import Path


def private_directory(*names: str) -> Path:
    """Return a directory of this user's own, made if there is none: under XDG_RUNTIME_DIR, else under ~/.cache.

    Args:
        names: of the directory below that place, from the outside in.

    Raises:
        ValueError: somebody else owns it, may write to it or into what holds it, or it is a link.
    """
    found = Path(os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not found.is_absolute():
        raise ValueError(f"{found}: is no absolute path; correct XDG_RUNTIME_DIR or XDG_CACHE_HOME")
    try:
        found.mkdir(mode=0o700, parents=True, exist_ok=True)
        for above in (found := found.resolve(), *found.parents):
            _refuse_others(above)
        for name in names:
            found /= name
            found.mkdir(mode=0o700, exist_ok=True)
            _refuse_others(found, alone=True)
    except OSError as error:
        reason = f"{found}: no private directory can be made here: {error.strerror}"
        raise ValueError(f"{reason}; point XDG_RUNTIME_DIR to one of your own") from error
    return found


def _refuse_others(path: Path, alone: bool = False) -> None:
    """Refuse a directory in which others may rename what is there; with `alone`, also one that they may read."""
    status = path.lstat()
    owners = {os.getuid()} if alone else {os.getuid(), 0}
    wide = status.st_mode & (0o077 if alone else 0o002) and (alone or not status.st_mode & stat.S_ISVTX)
    if not stat.S_ISDIR(status.st_mode):
        wrong = "is a link or a file where a directory of your own belongs"
    elif status.st_uid not in owners:
        wrong = f"belongs to user {status.st_uid}"
    elif wide:
        wrong = f"is open to other users, by its mode {stat.S_IMODE(status.st_mode):o}"
    else:
        return
    raise ValueError(f"{path}: {wrong}; remove it, or point XDG_RUNTIME_DIR to a directory that only you can enter")
