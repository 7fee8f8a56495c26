"""Whatever a file holds: it is read, or refused in a sentence; and no secret goes where others read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slingstone import tracking
from slingstone.checkpoints.manifest import FORMAT, Manifest, _digest
from slingstone.checkpoints.run_directory import RunDirectory
from slingstone.config import ConfigError, Experiment, flatten, load, to_yaml
from slingstone.engines.shards import DamagedCheckpoint
from slingstone.prompts.files import read_prompts

ROOT = Path(__file__).resolve().parents[2]
SCENES = ROOT / "configs" / "align" / "scenes.yaml"
ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))


def outcome(attempt: Callable[[], Any], refusal: type[Exception]) -> Any:
    """Return what an attempt returns, or the refusal that it raises; anything else that it raises fails the test."""
    try:
        return attempt()
    except refusal as error:
        return error


@ANY
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_as_a_configuration_are_refused_in_words(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load(path)


@ANY
@given(data=st.data())
def test_any_value_in_any_place_of_a_configuration_is_taken_or_named(tmp_path, data):
    tree = yaml.safe_load(SCENES.read_text())
    node: dict[str, Any] = tree
    keys = [data.draw(st.sampled_from(sorted(node)))]
    while isinstance(node[keys[-1]], dict) and data.draw(st.booleans()):
        node = node[keys[-1]]
        keys.append(data.draw(st.sampled_from(sorted(node))))
    node[keys[-1]] = data.draw(trees)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    found = outcome(lambda: load(path), ConfigError)
    if isinstance(found, Experiment):
        path.write_text(to_yaml(found), encoding="utf-8")
        assert load(path) == found
    else:
        assert str(found).splitlines()[0].startswith(str(path))


@ANY
@given(override=st.text(max_size=40))
def test_any_text_as_an_override_is_taken_or_refused_in_words(override):
    found = outcome(lambda: load(SCENES, [override]), ConfigError)
    assert isinstance(found, Experiment) or "mistake" in str(found)


@pytest.mark.parametrize("name", ["../out", "a/b", "..", "/etc/run", "a\0b", "a\nb", ".hidden", "x" * 101])
def test_no_name_leads_out_of_the_storage(name):
    with pytest.raises(ConfigError, match="name"):
        load(SCENES, [f"name={json.dumps(name)}"])


@ANY
@given(
    content=st.binary(max_size=300) | st.text(max_size=300).map(str.encode),
    suffix=st.sampled_from([".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".json", ""]),
)
def test_any_bytes_as_prompts_are_clean_lines_or_refused_in_words(tmp_path, content, suffix):
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes(content)
    found = outcome(lambda: read_prompts(path), ValueError)
    if isinstance(found, ValueError):
        assert str(path) in str(found)
    else:
        assert found
        assert all(prompt == prompt.strip() != "" and not set(prompt) & set("\0\r\n") for prompt in found)


def test_long_strange_and_repeated_prompts_are_kept_as_they_are(tmp_path):
    prompts = ("a" * 100_000, "🐈‍⬛ 👩🏽‍🚀", "é" * 10, "עברית", "a cat", "a cat")
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(prompts).encode())
    assert read_prompts(path) == prompts


@ANY
@given(tree=trees | st.fixed_dictionaries({"format": scalars, "facts": trees, "files": trees, "sha256": scalars}))
def test_any_json_as_a_manifest_is_refused_in_words(tree):
    with pytest.raises(DamagedCheckpoint, match="checkpoint 000000000008"):
        Manifest.from_json(json.dumps(tree), "000000000008")


@ANY
@given(facts=st.dictionaries(st.sampled_from(["images", "num_workers", "mlflow_run_id", "config"]), trees))
def test_any_facts_under_a_valid_hash_are_refused_in_words(facts):
    body = {"format": FORMAT, "facts": facts, "files": {}}
    text = json.dumps(body | {"sha256": _digest(body)})
    with pytest.raises(DamagedCheckpoint, match="checkpoint 000000000008: its manifest tells of another one"):
        Manifest.from_json(text, "000000000008")


SECRET = "hunter2-token"
PLACES = {
    "tracking.uri": f"https://me:{SECRET}@mlflow.example.org",
    "rewards.url": f"https://{SECRET}@rewards.example.org",
    "recovery.checkpoints": f"s3://key:{SECRET}@bucket/runs",
}


@pytest.mark.parametrize("place", PLACES)
def test_credentials_in_a_configuration_are_refused_without_repeating_them(place):
    overrides = [f"{place}={PLACES[place]}", "rewards.backend=http", "rewards.lifecycle=external"]
    with pytest.raises(ConfigError, match=rf"{place} = .*holds credentials; .*environment") as caught:
        load(SCENES, overrides)
    assert SECRET not in str(caught.value)


def test_credentials_in_the_environment_reach_no_file_and_no_param(tmp_path, monkeypatch):
    uri = f"postgresql://me:{SECRET}@db.example.org/mlflow?sslkey={SECRET}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("REWARD_SERVICES_TOKEN", SECRET)
    run = load(SCENES)
    assert tracking.tracking_uri(run) == uri, "what connects has them"
    history = RunDirectory(tmp_path / "align" / "scenes")
    history.begin(run, uri, "id")
    history.end({"mlflow_uri": tracking.redacted(uri)})
    written = "\n".join(path.read_text() for path in history.directory.iterdir())
    assert "db.example.org" in written
    assert SECRET not in written + to_yaml(run) + str(flatten(run))
    assert history.mlflow_run(uri) == "id", "the run is found again all the same"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("https://me:pw@mlflow:5000/x", "https://mlflow:5000/x"),
        ("postgresql://u:p%40w@db/ml?password=pw", "postgresql://db/ml"),
    ],
)
def test_a_uri_is_shown_without_what_is_secret_in_it(uri, shown):
    assert tracking.redacted(uri) == shown
