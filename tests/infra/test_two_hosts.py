"""Two hosts that share nothing but files: the recipe of docs/cluster.md as it stands there, and one that goes dark."""

import json
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from tests.infra import hosts
from tests.infra.facts import ROOT, STORAGE
from tests.infra.hosts import Host

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not hosts.possible(), reason="needs root, iproute2 and Linux namespaces, to make hosts"),
    pytest.mark.skipif(not (ROOT / ".venv" / "installed").is_file(), reason="starts from a clone after `make setup`"),
]
DASHBOARD = "http://127.0.0.1:8265"
WITHOUT_TOKEN = f"""python - <<END
from urllib.error import HTTPError
from urllib.request import urlopen
try:
    urlopen("{DASHBOARD}/api/jobs/")
except HTTPError as error:
    print("refused with", error.code)
END"""


@pytest.fixture
def pair(tmp_path) -> Iterator[tuple[Host, Host]]:
    with hosts.two_hosts(tmp_path) as made:
        yield made


def recipe() -> list[tuple[str, str]]:
    """Return the page's steps: on which host, and the lines of the shell."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    block = re.search(r"^## Two machines$.*?^```sh$(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block
    steps = []
    for paragraph in block[1].strip().split("\n\n"):
        title, _, lines = paragraph.partition("\n")
        (where,) = re.findall(r"^# (?:on the|on|the token, to the) (first|second|both)", title)
        steps.append((where, lines))
    return steps


def health_check() -> str:
    """Return the command by which the images tell whether their node is well."""
    dockerfile = (ROOT / "infra" / "docker" / "trainer.Dockerfile").read_text()
    (command,) = re.findall(r"^HEALTHCHECK .*\\\n\s*CMD (\[.*\])$", dockerfile, re.MULTILINE)
    return shlex.join(json.loads(command))


def play(lines: str, where: str, by_name: dict[str, Host], **env: str) -> str:
    """Run a step of the recipe; return what it printed."""
    if not (copied := re.fullmatch(r"ssh (\S+) '(.*)' < (\S+)", lines)):
        return "".join(host.run(lines, **env) for host in by_name.values() if where in (host.name, "both"))
    address, command, file = copied.groups()  # there is no sshd
    assert address == hosts.ADDRESSES[where]
    return by_name[where].run(f"printf %s {by_name['first'].run(f'cat {file}')} | ({command})")


def test_the_recipe_of_the_page_trains_on_both_hosts_and_its_head_refuses_strangers(pair, write_run, tmp_path):
    by_name = {host.name: host for host in pair}
    run = write_run()
    for where, lines in recipe():
        if "ray status" in lines:
            hosts.until(lambda: by_name["first"].run("ray status").count(" node_") == 2, 60)
            for host in pair:
                host.run(health_check())
        printed = play(lines, where, by_name, CONFIG=str(run))
        if "make align" in lines:
            assert "] 32/32  " in printed
            assert "refused with 401" in by_name[where].run(WITHOUT_TOKEN)
    assert (tmp_path / "align" / "two-hosts" / "summary.json").is_file()
    assert [host.ran("RayTrainWorker") for host in pair] == [1, 1]


def test_a_host_that_goes_dark_costs_the_steps_since_the_last_checkpoint_and_nothing_else(pair, write_run, tmp_path):
    first, second = pair
    run, align = write_run(), tmp_path / "align"
    for where, lines in recipe():
        if "ray status" in lines:
            break
        # Dead nodes are noticed in seconds rather than in half a minute.
        quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
        play(lines, where, {host.name: host for host in pair}, **quick)

    def submit(name: str) -> str:
        asked = f"name={name} runtime.num_workers=2 placement.strategy=spread rewards.backend=in_process"
        asked += " training.num_images=160 training.checkpoint_every_images=32 training.grid_every_images=1000"
        asked += " evaluation.reference=null evaluation.num_prompts=2"
        make = f'make align CONFIG={run} STORAGE={STORAGE} ARGS="{asked}"'
        return first.run(f"RAY_API_SERVER_ADDRESS={DASHBOARD} {make}")

    submit("undisturbed")
    with ThreadPoolExecutor() as pool:
        disturbed = pool.submit(submit, "disturbed")
        hosts.until(lambda: any((align / "disturbed" / "checkpoints").glob("0*")) or disturbed.done(), 1200)
        second.cut()
        said = disturbed.result()
    assert re.search(r"starting again from checkpoint 0000000\d+ \(1 of 3\)", said), said
    assert [host.ran("RayTrainWorker") for host in pair] == [1 + 1 + 2, 2], "both workers, on the host that is left"

    runs = [json.loads((align / name / "summary.json").read_text()) for name in ("undisturbed", "disturbed")]
    assert runs[0]["aligned"]["rewards"] == runs[1]["aligned"]["rewards"]
    weights = [
        load_file(align / found["name"] / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors") for found in runs
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
