"""What a head keeps is its user's alone: another user of the machine can neither plant it nor read it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from slingstone.driver.head import Head
from slingstone.driver.private import private_directory

ROOT = Path(__file__).resolve().parents[2]
USERS = VICTIM, STRANGER = 64001, 64002
two_users = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to act as two users")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "run"


def test_a_private_directory_can_be_entered_by_its_user_alone(place):
    made = private_directory("slingstone", "one")
    assert made == place / "slingstone" / "one"
    assert [path.stat().st_mode & 0o777 for path in (made, made.parent)] == [0o700, 0o700]
    assert private_directory("slingstone", "one") == made, "found again"


def test_without_a_runtime_directory_it_lies_in_the_users_cache(place, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(place))
    assert private_directory("slingstone") == place / ".cache" / "slingstone"


@pytest.mark.parametrize("planted", ["open", "link", "dangling", "file"])
def test_a_directory_that_others_may_have_filled_is_refused(place, planted):
    at = place / "slingstone"
    match planted:
        case "open":
            at.mkdir()
            at.chmod(0o777)
        case "link":
            (place / "elsewhere").mkdir()
            at.symlink_to(place / "elsewhere")
        case "dangling":
            at.symlink_to(place / "nowhere")
        case _:
            at.write_text("")
    with pytest.raises(ValueError, match=r"slingstone: .*(XDG_RUNTIME_DIR)"):
        Head(place)


def test_a_place_in_which_anybody_may_rename_is_refused(place):
    place.chmod(0o777)
    with pytest.raises(ValueError, match="open to other users, by its mode 777; remove it, or point XDG_RUNTIME_DIR"):
        private_directory("slingstone")


def as_user(user: int, home: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python as another user, with the environment of a log-in."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=home, timeout=120, check=False)


@pytest.fixture
def homes():
    """Homes of two users, side by side, where both can reach."""
    above = Path(tempfile.mkdtemp(prefix="homes-", dir="/tmp"))
    above.chmod(0o755)
    made = []
    for user in USERS:
        home = above / str(user)
        home.mkdir(mode=0o755)
        os.chown(home, user, user)
        made.append(home)
    if as_user(VICTIM, made[0], "import slingstone.driver.head").returncode != 0:
        pytest.skip("the sources cannot be read by other users here")
    yield made
    for left in (above, *(path for path in Path("/tmp").glob("slingstone-*") if path.stat().st_uid in USERS)):
        shutil.rmtree(left)


FIRST = """
import json, os, zlib
from pathlib import Path
key = zlib.crc32(str(Path({sources!r}).resolve()).encode())
for place in (Path(f"/tmp/slingstone-{victim}-{{key:08x}}"), Path({home!r}) / ".cache" / "slingstone"):
    try:
        place.mkdir(parents=True)
        place.chmod(0o777)
        (place / "token").write_text("known")
        (place / "head.json").write_text(json.dumps({{"pid": os.getppid(), "dashboard": "http://127.0.0.1:1"}}))
        (place / "head.log").symlink_to({precious!r})
    except OSError as error:
        print(error)
"""
START = """
from pathlib import Path
from slingstone.driver import head
started = []
class Refused(Exception): pass
def popen(command, stdout, env, **_):
    started.append(env)
    raise Refused
head.subprocess.Popen = popen  # all but Ray itself
try:
    head.Head(Path({sources!r})).start()
except Refused:
    token = Path(started[0]["RAY_AUTH_TOKEN_PATH"])
    print("token", token.stat().st_uid, oct(token.stat().st_mode & 0o777), token.read_text() == "known")
except ValueError as error:
    print("refused", error)
"""


@two_users
def test_a_stranger_who_comes_first_plants_no_token_no_address_and_no_link(homes):
    victim, stranger = homes
    precious = victim / "thesis.txt"
    precious.write_text("years of work")
    os.chown(precious, VICTIM, VICTIM)
    planted = FIRST.format(sources=str(victim), victim=VICTIM, home=str(victim), precious=str(precious))
    assert as_user(STRANGER, stranger, planted).returncode == 0
    said = as_user(VICTIM, victim, START.format(sources=str(victim))).stdout
    assert said == f"token {VICTIM} 0o600 False\n"
    assert precious.read_text() == "years of work"


@two_users
def test_a_stranger_neither_reads_the_token_nor_is_taken_for_its_owner(homes):
    victim, stranger = homes
    assert "token" in as_user(VICTIM, victim, START.format(sources=str(victim))).stdout
    look = f"from pathlib import Path; print([*Path({str(victim)!r}).joinpath('.cache/slingstone').rglob('token')])"
    assert as_user(STRANGER, stranger, look).stdout in ("[]\n", ""), "others do not look into it"
    (victim / ".cache" / "slingstone").chmod(0o777)
    assert "refused" in as_user(VICTIM, victim, START.format(sources=str(victim))).stdout
