"""The Grafana dashboard asks only for what Ray's exporter and the PodMonitor deliver."""

import importlib.util
import json
import re
from pathlib import Path

from tests.infra.facts import overlay

ITEMS = overlay("interactive")
DASHBOARD = json.loads(ITEMS["ConfigMap/slingstone-dashboard"]["data"]["slingstone.json"])
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
LABELS = {"application", "instance", "le", "ray_train_run_name", "ray_train_controller_state"}


def test_every_metric_is_one_that_the_pinned_rays_own_dashboards_plot():
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    panels = Path(spec.origin).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    plotted = {name for file in panels.glob("*.py") for name in re.findall(r"\bray_\w+", file.read_text())}
    asked = {name for query in QUERIES for name in re.findall(r"\b(ray_\w+)\{", query)}
    assert len(asked) >= len(DASHBOARD["panels"])
    assert asked <= plotted


def test_every_label_comes_from_ray_or_from_the_monitors_pods():
    added = {re.sub(r"\W", "_", label) for label in ITEMS["PodMonitor/slingstone-ray"]["spec"]["podTargetLabels"]}
    asked = {label for query in QUERIES for label in re.findall(r"[{,] ?(\w+)=~", query)}
    asked |= {
        label for query in QUERIES for group in re.findall(r"by \(([\w, ]+)\)", query) for label in group.split(", ")
    }
    assert asked <= added | LABELS


def test_panels_are_apart_and_each_says_what_it_shows():
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert all(panel["description"] for panel in DASHBOARD["panels"])
