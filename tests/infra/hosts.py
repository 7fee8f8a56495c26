"""Machines of their own as far as a process can tell: two of them with a cable between, on this one.

A host is a set of Linux namespaces (network, processes, mounts, name) held by one waiting shell: when that shell ends,
because the test ends it or because the test itself is killed, the kernel ends every process of the host.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.infra.facts import ROOT, STORAGE

ADDRESSES = {"first": "10.0.0.1", "second": "10.0.0.2"}
NAMESPACES = ("--net", "--mount", "--pid", "--uts")
# Debian and Ubuntu name a machine 127.0.1.1 in its own /etc/hosts; here it is found by its address.
BOOT = f"""
set -e
hostname "$1"
ip link set lo up
mkdir -p /tmp/ray "$2/ray" "$2/home"
mount --bind "$2/ray" /tmp/ray
mount --bind "$2/hosts" /etc/hosts
test -d {STORAGE} || {{ mount -t tmpfs none {Path(STORAGE).parent}; mkdir {STORAGE}; }}
mount --bind "$3" {STORAGE}
echo up
read -r _
"""


class Host:
    """Runs commands in its namespaces, from the clone, with a home and a /tmp/ray of its own."""

    def __init__(self, name: str, directory: Path, storage: Path) -> None:
        self.name, self.directory = name, directory
        directory.mkdir()
        (directory / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESSES[name]} {name}\n")
        boot = ["unshare", *NAMESPACES, "--mount-proc", "--fork", "--kill-child", "bash", "-c", BOOT]
        self._holder = subprocess.Popen(
            [*boot, "bash", name, str(directory), str(storage)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "up\n", "the host did not come up"
        (first,) = psutil.Process(self._holder.pid).children()
        self.pid = first.pid
        # Keeps this end of the cable when the host is gone: else the other end would vanish with it, and its address.
        self._plugged = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        self._said: list[str] = []

    def run(self, script: str, timeout: float = 1200, **env: str) -> str:
        """Run a shell script after the `export` lines of earlier ones; return what it printed."""
        lines = ["set -e", f"cd {shlex.quote(str(ROOT))}", *self._said, script]
        self._said += [line for line in script.splitlines() if line.startswith("export ")]
        given = {"PATH": os.environ["PATH"], "HOME": str(self.directory / "home"), "LANG": "C.UTF-8", **env}
        given |= {
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_worker_niceness": "0",
        }  # nobody else's memory and CPUs count
        inside = ["nsenter", f"--target={self.pid}", *NAMESPACES, "bash", "-c", "\n".join(lines)]
        with tempfile.TemporaryFile("w+") as out:  # daemons may keep a pipe open
            done = subprocess.run(
                inside, env=given, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, timeout=timeout
            )
            out.seek(0)
            printed = out.read()
        assert done.returncode == 0, f"{self.name}: {script}\n{printed[-6000:]}"
        return printed

    def ran(self, actor: str) -> int:
        """Return how many processes have ever been an actor of this class here, by their logs."""
        logs = self.directory.glob("ray/session_*/logs/worker-*.out")
        return sum(f":actor_name:{actor}" in log.read_text(errors="replace") for log in logs)

    def cut(self) -> None:
        """Cut the power: the cable first, so that nobody is told."""
        subprocess.run(["nsenter", f"--target={self.pid}", "--net", "ip", "link", "set", "cable", "down"], check=True)
        self.end()

    def end(self) -> None:
        """End every process of the host."""
        self._holder.kill()
        self._holder.communicate()
        until(lambda: not psutil.pid_exists(self.pid), 60)

    def unplug(self) -> None:
        """Let go of the cable's end."""
        os.close(self._plugged)


@contextmanager
def two_hosts(storage: Path) -> Iterator[tuple[Host, Host]]:
    """Yield two hosts with a cable between them that both mount `storage` where the documentation says."""
    scratch = Path(tempfile.mkdtemp(prefix="hosts"))
    started: list[Host] = []
    try:
        for name in ADDRESSES:
            started.append(Host(name, scratch / name, storage))
        first, second = started
        _ip(first, f"link add cable type veth peer name cable netns {second.pid}")
        for host in started:
            _ip(host, f"addr add {ADDRESSES[host.name]}/24 dev cable")
            _ip(host, "link set cable up")
        yield first, second
    finally:
        for host in started:
            host.end()
            host.unplug()
        shutil.rmtree(scratch, ignore_errors=True)


def possible() -> bool:
    """Return whether this user may make such hosts here."""
    if os.getuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter", "bash"))):
        return False
    probe = "ip link add cable type veth peer name other"
    return subprocess.run(["unshare", *NAMESPACES, "--fork", "bash", "-c", probe], capture_output=True).returncode == 0


def until(holds: Callable[[], bool], timeout: float) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(0.3)


def _ip(host: Host, command: str) -> None:
    subprocess.run(["nsenter", f"--target={host.pid}", "--net", "ip", *command.split()], check=True)
