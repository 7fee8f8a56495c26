"""The arena as a person meets it: three views in a browser, by keyboard, on the embedded world; pictures for docs/."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.ui.browser import await_answer, chromium, free_port, until

pytest.importorskip("selenium", reason="pip install .[ui]")
pytestmark = pytest.mark.ui

ROOT = Path(__file__).resolve().parents[2]
UP_S = 40
CLICK_S = 1.0
LEFT, UP, RIGHT, DOWN = "\ue012", "\ue013", "\ue014", "\ue015"

UNNAMED = """
return [...document.querySelectorAll("button, input, a, img, table, section")].filter((one) => {
  if (!one.checkVisibility()) return false;
  if (one.matches("img")) return !one.hasAttribute("alt");
  if (one.matches("input")) return !one.labels.length;
  if (one.matches("section")) return !document.getElementById(one.getAttribute("aria-labelledby"));
  if (one.matches("table")) return !(one.caption || one.closest("[aria-labelledby]"));
  return !(one.getAttribute("aria-label") || one.textContent.trim());
}).map((one) => one.outerHTML.slice(0, 80));
"""
PALE = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const ground = (one) => {
  for (; one; one = one.parentElement) {
    const found = parse(getComputedStyle(one).backgroundColor);
    if (found.length < 4 || found[3] === 1) return found;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll("body *")].filter((one) => {
  if (!one.checkVisibility() || one.closest(".who") || one.matches("kbd, :disabled")) return false;
  if (![...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) return false;
  const style = getComputedStyle(one), [a, b] = [light(parse(style.color)), light(ground(one))];
  const large = parseFloat(style.fontSize) >= 24;
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < (large ? 3 : 4.5);
}).map((one) => one.outerHTML.slice(0, 80));
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """An arena on the demo's generators, started as a user would, and how long that took."""
    port = free_port()
    storage = tmp_path_factory.mktemp("arena")
    run = ROOT / "outputs" / "align" / "scenes"
    command = [sys.executable, str(ROOT / "jobs" / "arena.py"), str(ROOT / "configs" / "arena" / "scenes.yaml")]
    command += [f"storage={storage}", f"door.port={port}", f"generators.aligned.run={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    with subprocess.Popen(command, env=environment, cwd=ROOT) as process:
        found = f"http://127.0.0.1:{port}"
        await_answer(f"{found}/api/health", lambda: process.poll() is None)
        print(f"the page is up after {time.monotonic() - start:.1f} s; {UP_S} s are the aim")
        try:
            yield found
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def browser():
    with chromium(1280, 1060) as opened:
        yield opened
        severe = [line for line in opened.get_log("browser") if line["level"] == "SEVERE"]
        assert severe == []


def test_a_prompt_is_drawn_by_all_generators_side_by_side(url, browser):
    browser.get(url)
    count = len(json.load(urllib.request.urlopen(f"{url}/api/arena"))["generators"])
    until(browser, lambda page: len(page.find_elements("css selector", "#drawn .card .scores dd")) == 3 * count)
    box = browser.find_element("css selector", "#prompt")
    box.clear()
    box.send_keys("a large red circle above a small blue square\n")
    until(browser, lambda page: not page.find_elements("css selector", "#drawn .waiting"))
    browser.find_element("css selector", "#try-title").click()
    start = time.monotonic()
    _press(browser, "r")  # another seed
    until(browser, lambda page: page.find_elements("css selector", "#drawn .card:not(.waiting)"))
    print(f"first picture after {time.monotonic() - start:.2f} s; {CLICK_S} s is the aim")
    until(browser, lambda page: len(page.find_elements("css selector", "#drawn .scores dd")) == 3 * count)
    until(browser, lambda page: len(page.find_elements("css selector", "#history li")) == 3)
    _checked(browser, "try")


def test_pairs_are_voted_on_by_arrow_keys_and_the_last_vote_is_undone(url, browser):
    browser.get(f"{url}/#compare")
    for number, key in enumerate((LEFT, RIGHT, LEFT, DOWN, UP, RIGHT), 1):
        _next_pair(browser)
        assert not browser.find_elements("css selector", ".who.shown")
        _press(browser, key)
        until(browser, lambda page: page.find_elements("css selector", ".who.shown"))
        until(browser, lambda page, n=number: f"{n} vote" in page.find_element("css selector", "#progress").text)
    _next_pair(browser)
    _press(browser, "u")
    until(browser, lambda page: page.find_element("css selector", "#progress").text == "5 votes of yours")
    _next_pair(browser)
    _checked(browser, "compare")


def test_results_show_the_order_its_doubt_and_the_latest_votes(url, browser):
    browser.get(f"{url}/#results")
    until(browser, lambda page: "5 votes of 1 voter" in page.find_element("css selector", "#counts").text)
    until(browser, lambda page: len(page.find_elements("css selector", "#latest img")) == 10)
    found = json.load(urllib.request.urlopen(f"{url}/api/results"))
    shown = [row.text for row in browser.find_elements("css selector", "#ranking tbody th")]
    assert shown == [row["name"] for row in found["generators"]]
    _checked(browser, "results")


def test_the_page_of_the_api_tells_every_request_and_its_fields(url, browser):
    browser.get(f"{url}/api.html")
    described = json.load(urllib.request.urlopen(f"{url}/api/openapi.json"))["paths"]
    until(browser, lambda page: len(page.find_elements("css selector", "#requests h2")) == len(described))
    told = browser.find_element("css selector", "#requests").text
    for said in (*described, "left | right | tie | both_bad must be given", "seed integer may be left out minimum 0"):
        assert said in told
    assert browser.execute_script(UNNAMED) == []
    assert browser.execute_script(PALE) == []


def test_on_a_telephone_nothing_is_wider_than_the_screen(url, browser):
    browser.set_window_size(500, 900)  # the narrowest that headless Chromium makes
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 375, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    for view in ("try", "compare", "results"):
        browser.get(f"{url}/#{view}")
        until(browser, lambda page, view=view: page.find_element("css selector", f"#{view}").is_displayed())
        time.sleep(1)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 375, view


def _checked(browser, view: str) -> None:
    """Every control has a name, every text contrast, in light and in dark; keep the light picture."""
    for theme in ("dark", "light"):
        browser.execute_script(f"document.documentElement.dataset.theme = '{theme}'")
        time.sleep(0.3)
        assert browser.execute_script(UNNAMED) == []
        assert browser.execute_script(PALE) == [], theme
    browser.execute_script("document.activeElement.blur()")
    assert browser.save_screenshot(str(ROOT / "docs" / f"arena-{view}.png"))


def _next_pair(browser) -> None:
    """Wait until a pair that was not voted on is shown."""
    before = getattr(browser, "pair", None)
    until(browser, lambda page: page.execute_script("return document.body.dataset.pair") not in (None, before))
    until(browser, lambda page: not page.find_elements("css selector", ".who.shown"))
    browser.pair = browser.execute_script("return document.body.dataset.pair")


def _press(browser, key: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(key).perform()
