"""The local head: started once, found again, reached only with its token, gone when stopped."""

import os
import urllib.error
import urllib.request

import pytest

from slingstone.driver.head import Head

pytestmark = pytest.mark.ray


@pytest.fixture
def head(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("COLUMNS", "20")  # a narrow terminal, to which some programs cut what they print
    one = Head(tmp_path)
    yield one
    one.stop()


def test_a_head_is_started_once_and_stopped(head, tmp_path):
    environment = head.start()
    assert head.start() == environment, "found again, not started twice"
    assert Head(tmp_path / "elsewhere")._running() is None, "another clone has a head of its own"
    assert os.stat(environment["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o077 == 0, "the token is for its owner alone"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{environment['RAY_API_SERVER_ADDRESS']}/api/jobs/", timeout=10)
    assert head.stop()
    assert not head.stop(), "nothing is left to stop"
