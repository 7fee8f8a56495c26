"""Two submissions of one run: the second is refused by name, unless the first is dead."""

import json
import os
import subprocess
import sys
import time

import pytest

from slingstone.driver import run_lease as lease

HOLD = """
import sys, time
from pathlib import Path
from slingstone.driver import run_lease as lease
with lease.held(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_second_submission_is_told_who_is_at_work_since_when_and_a_killed_one_is_taken_over_at_once(tmp_path, said):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        before = (tmp_path / lease.FILE).read_text()
        with (
            pytest.raises(
                ValueError, match=rf"at work already, by process {first.pid} on .* since 20\d\d-.*another name"
            ),
            lease.held(tmp_path, said.append),
        ):
            pass
        assert (tmp_path / lease.FILE).read_text() == before, "the first is not disturbed"
    finally:
        first.kill()
        first.wait()
    with lease.held(tmp_path, said.append):
        assert json.loads((tmp_path / lease.FILE).read_text())["pid"] == os.getpid()
    assert said == [said[0]]
    assert f"taking over from process {first.pid}" in said[0]
    assert not (tmp_path / lease.FILE).exists(), "given back at the end"


def elsewhere(tmp_path, age_s: float) -> None:
    """Leave the lease of another host, whose last heartbeat is so old."""
    path = tmp_path / lease.FILE
    owner = {"token": "x", "since": "2026-01-01T00:00:00+00:00", "host": "far", "pid": 1, "started": 0.0}
    path.write_text(json.dumps(owner | {"processes": "another machine"}))
    beat = time.time() - age_s
    os.utime(path, (beat, beat))


def test_the_lease_of_another_host_whose_heart_stopped_is_taken_over(tmp_path, said):
    elsewhere(tmp_path, lease.DEAD_AFTER_S + 1)
    with lease.held(tmp_path, said.append):
        pass
    assert said == ["taking over from process 1 on far since 2026-01-01T00:00:00+00:00, which is dead"]


def test_a_host_whose_heart_beats_is_seen_to_live_and_one_that_stops_is_waited_for(tmp_path, said, monkeypatch):
    elsewhere(tmp_path, 1.0)
    monkeypatch.setattr(lease.time, "sleep", lambda _: os.utime(tmp_path / lease.FILE))
    with pytest.raises(ValueError, match="by process 1 on far"), lease.held(tmp_path, said.append):
        pass
    elsewhere(tmp_path, lease.DEAD_AFTER_S - 1)
    monkeypatch.setattr(lease.time, "sleep", lambda _: elsewhere(tmp_path, lease.DEAD_AFTER_S + 1))
    with lease.held(tmp_path, said.append):
        pass
    assert "waiting for its next heartbeat" in said[0]


def test_the_heart_beats_while_the_lease_is_held(tmp_path, said, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    with lease.held(tmp_path, said.append):
        long_ago = time.time() - 1000
        os.utime(tmp_path / lease.FILE, (long_ago, long_ago))
        deadline = time.monotonic() + 10
        while (tmp_path / lease.FILE).stat().st_mtime < long_ago + 500:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lease_that_is_cut_short_belongs_to_nobody(tmp_path, said):
    (tmp_path / lease.FILE).write_text('{"tok')
    with lease.held(tmp_path, said.append):
        pass
