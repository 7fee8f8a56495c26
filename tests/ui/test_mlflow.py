"""The real MLflow UI over a finished sweep, seen through a browser: `make sweep test-ui`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from slingstone.config import Sweep, load_as
from tests.ui.browser import await_answer, chromium, free_port, until

pytest.importorskip("selenium", reason="pip install .[ui]")
pytestmark = pytest.mark.ui

ROOT = Path(__file__).resolve().parents[2]
STORAGE = Path(os.environ.get("STORAGE", ROOT / "outputs"))
SWEEP = Path(os.environ.get("SWEEP", ROOT / "configs" / "sweep" / "scenes.yaml"))
RUNS = 6


@pytest.fixture(scope="module")
def summary() -> dict:
    path = STORAGE / "sweep" / load_as(Sweep, SWEEP).name / "summary.json"
    if not path.is_file():
        pytest.fail(f"{path}: no finished sweep; run `make sweep` first")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def server(summary) -> Iterator[str]:
    """The UI on a free port of the loopback interface."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    store = ["--backend-store-uri", summary["mlflow_uri"]]
    with subprocess.Popen([*command, *store], env=environment) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            await_answer(f"{url}/health")
            yield url
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium(1680, 1250) as opened:
        yield opened


def test_the_trials_of_a_sweep_compare_in_the_ui(summary, server, browser):
    import mlflow

    client = mlflow.MlflowClient(summary["mlflow_uri"])
    complete = [trial for trial in summary["trials"] if trial["outcome"] == "complete"][:RUNS]
    runs = [json.loads((Path(trial["directory"]) / "mlflow.json").read_text())["run_id"] for trial in complete]
    experiment = client.get_run(runs[0]).info.experiment_id
    query = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"
    browser.get(f"{server}/#/compare-runs?{query}")
    for said in (*(trial["name"] for trial in complete), "reward_weight", "rewards/imagereward"):
        until(browser, lambda page, said=said: said in page.page_source, f"{said!r} in the compare view")
    for button in browser.find_elements("css selector", "[data-component-id='mlflow.assistant.chat_panel.close']"):
        button.click()
    parameters, metrics = browser.find_elements("css selector", "input[role=combobox]")[:2]
    _choose(browser, parameters, remove=["name"], add=["objective.reward_weight"])
    _choose(browser, metrics, remove=["init/rewards/pickscore"], add=["aligned/rewards/imagereward"])
    time.sleep(3)  # the plot is drawn after its data have come
    target = ROOT / "docs" / "mlflow-compare.png"
    assert browser.save_screenshot(str(target))
    assert target.stat().st_size > 30_000


def _choose(browser, box, remove: list[str], add: list[str]) -> None:
    """Take names out of a select box of several, and put others in, as a hand would."""
    selector = box.find_element("xpath", "./ancestor::div[contains(@class, 'select-selector')]")
    for name in remove:
        chosen = f".//*[text()='{name}']/following-sibling::*[contains(@class, 'item-remove')]"
        for cross in selector.find_elements("xpath", chosen):
            cross.click()
    for name in add:
        chosen = f".//*[text()='{name}']"
        if selector.find_elements("xpath", chosen):
            continue
        selector.click()
        until(browser, lambda page, name=name: _option(page, name), f"the option {name}")
        _option(browser, name).click()
        until(browser, lambda page, at=chosen: selector.find_elements("xpath", at), f"{name} among the chosen")
        box.send_keys("\ue00c")  # escape closes the list


def _option(browser, name: str):
    """Return an option of the open list, or scroll on to where it may be."""
    for option in browser.find_elements("xpath", f"//*[contains(@class, 'item-option') and @title='{name}']"):
        if option.is_displayed():
            return option
    browser.execute_script(
        "document.querySelectorAll('.rc-virtual-list-holder').forEach(list => { list.scrollTop += 150; })"
    )
    return None
