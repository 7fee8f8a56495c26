"""A headless Chromium, and waiting for what it shows."""

import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

WAIT_S = 90


@contextmanager
def chromium(width: int, height: int) -> Iterator[Any]:
    """Yield a browser whose window has so many pixels."""
    from selenium import webdriver

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.fail("no chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    size = f"--window-size={width},{height}"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", size, "--no-proxy-server"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as opened:
        opened.set_page_load_timeout(WAIT_S)
        yield opened


def until(browser: Any, condition: Callable[[Any], object], wanted: str = "") -> None:
    """Wait until a condition holds of the page."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, WAIT_S, 0.05).until(condition, f"never saw {wanted}")


def free_port() -> int:
    """Return a port of the loopback interface on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_answer(url: str, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until a server answers, while its process lives."""
    end = time.monotonic() + WAIT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > end or not alive():
                raise
            time.sleep(0.3)
