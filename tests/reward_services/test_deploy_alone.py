"""What the README says of deploying alone, done by Ray's own commands on a head of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from reward_services.http_client import HttpClient
from reward_services.protocol import UnauthorisedError
from reward_services.wire import TOKEN_VARIABLE
from slingstone.driver.head import Head
from tests.infra.services import free_port
from tests.reward_services.replicas import wait_until

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a secret of the tests"
NAMES = ("pickscore", "hps", "imagereward")


@pytest.mark.ray
@pytest.mark.slow
def test_serve_deploy_on_a_fresh_head_answers_over_http_to_who_has_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)  # before Ray starts: replicas inherit it
    # Not the port of the tests' cluster: Serve's proxies share a port, and each knows its own routes alone.
    port = free_port()
    proxy = f"http://127.0.0.1:{port}"
    described = yaml.safe_load((ROOT / "configs" / "serve" / "rewards_http.yaml").read_text())
    described["http_options"]["port"] = port
    for application in described["applications"]:
        application["args"]["num_cpus"] = 0.0  # on a machine of any size
    config = tmp_path / "rewards.yaml"
    config.write_text(yaml.safe_dump(described))
    head = Head(tmp_path)
    try:
        reached = os.environ | head.start()
        reached["RAY_DASHBOARD_ADDRESS"] = reached["RAY_API_SERVER_ADDRESS"]
        serve = str(Path(sys.executable).with_name("serve"))
        deployed = subprocess.run(
            [serve, "deploy", str(config)], env=reached, cwd=tmp_path, capture_output=True, text=True
        )
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr

        def running() -> bool:
            said = subprocess.run([serve, "status"], env=reached, capture_output=True, text=True, cwd=tmp_path).stdout
            assert "DEPLOY_FAILED" not in said, said
            applications = (yaml.safe_load(said) or {}).get("applications", {})
            return [one["status"] for one in applications.values()] == ["RUNNING"] * 3

        wait_until(running, timeout_s=300)
        images = torch.rand(2, 3, 32, 32, requires_grad=True)
        for name in NAMES:
            scores, gradient = HttpClient(proxy, name).submit(images, ["a red circle", "a blue square"]).result()
            assert scores.isfinite().all()
            assert gradient.abs().sum() > 0
            with pytest.raises(UnauthorisedError, match=f"reward '{name}'"):
                HttpClient(proxy, name, token="another").describe()
    finally:
        head.stop()
