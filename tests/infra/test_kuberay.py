"""The manifests of the Ray clusters are of one mind with the project's configurations."""

import pytest
import yaml

from slingstone.checkpoints import run_directory
from slingstone.config import Arena, Comparison, Sweep, load, load_as
from slingstone.driver import placement
from slingstone.sweep import trials
from slingstone.sweep.search import concurrency
from tests.infra.facts import (
    IN_IMAGE,
    PINNED,
    ROOT,
    STORAGE,
    TAGS,
    at_start,
    entrypoint,
    groups,
    nodes_at_start,
    overlay,
    overlays,
    ray_spec,
)


@pytest.mark.parametrize("name", overlays())
def test_images_and_ray_are_of_the_projects_versions(name):
    spec = ray_spec(overlay(name))
    assert spec["rayVersion"] == PINNED["ray"]
    for group in groups(spec):
        image, _, tag = group["template"]["spec"]["containers"][0]["image"].partition(":")
        assert tag == TAGS[image]


@pytest.mark.parametrize("name", overlays())
def test_every_node_of_a_cluster_carries_the_same_image(name):
    """Ray places by free CPUs and GPUs: a rank on the light image would find no DeepSpeed."""
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(ray_spec(overlay(name)))}
    assert images == {f"slingstone/{'reward' if name == 'rewards' else 'trainer'}:{TAGS['slingstone/trainer']}"}


@pytest.mark.parametrize("name", overlays())
def test_nobody_enters_a_cluster_without_its_token(name):
    assert ray_spec(overlay(name))["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", overlays())
def test_pods_run_without_root_and_see_the_shared_volumes(name):
    items = overlay(name)
    for group in groups(ray_spec(items)):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 1000
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert all(f"PersistentVolumeClaim/{claim}" in items for claim in claims.values())
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert claims[mounts[STORAGE]] == "slingstone-shared"
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert claims[mounts[environment["HF_HOME"]]] == "slingstone-models"


@pytest.mark.parametrize("name", overlays())
def test_shared_memory_is_memory_that_the_pod_has(name):
    for group in groups(ray_spec(overlay(name))):
        pod = group["template"]["spec"]
        (shm,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        limit = pod["containers"][0]["resources"]["limits"]["memory"]
        assert shm["medium"] == "Memory"
        assert int(shm["sizeLimit"].removesuffix("Gi")) <= int(limit.removesuffix("Gi")) / 2


@pytest.mark.parametrize("name", overlays())
def test_groups_scale_and_offer_the_resource_of_their_name(name):
    spec = ray_spec(overlay(name))
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    for group in spec["workerGroupSpecs"]:
        assert group["resources"] == {f"{group['groupName']}_node": "1"}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        gpus = "nvidia.com/gpu" in resources["limits"]
        tolerated = [entry["key"] for entry in group["template"]["spec"].get("tolerations", [])]
        assert tolerated == (["nvidia.com/gpu"] if gpus else [])


@pytest.mark.parametrize("name", overlays())
def test_network_policy_and_monitor_select_all_ray_pods_and_name_ports_that_exist(name):
    items = overlay(name)
    pods = [group["template"] for group in groups(ray_spec(items))]
    policy = items["NetworkPolicy/slingstone-ray"]["spec"]
    monitor = items["PodMonitor/slingstone-ray"]["spec"]
    by_operator = {"ray.io/is-ray-node": "yes"}
    for pod in pods:
        labels = pod["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert monitor["selector"]["matchLabels"].items() <= (labels | by_operator).items()
    head, *workers = ({port["name"] for port in pod["spec"]["containers"][0]["ports"]} for pod in pods)
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= head
    assert all("metrics" in ports for ports in workers)


def test_the_job_runs_what_the_repository_holds_and_its_cluster_can_hold_it():
    items = overlay("align")
    job = items["RayJob/align"]["spec"]
    directory, (script, config), overrides = entrypoint(job["entrypoint"])
    assert directory == IN_IMAGE
    assert (ROOT / script).is_file()
    run = load(ROOT / config, overrides)
    assert run.storage == STORAGE
    nodes = nodes_at_start(ray_spec(items))
    placement.check(run, nodes)
    place, node = next((place, node) for place, node in enumerate(nodes) if node["Resources"].get("GPU"))
    nodes[place] = node | {"Resources": node["Resources"] | {"GPU": node["Resources"]["GPU"] - 1}}
    with pytest.raises(ValueError, match="the cluster has"):
        placement.check(run, nodes)


def test_the_job_with_a_bucket_is_the_same_but_for_its_checkpoints_which_every_pod_has_the_keys_of():
    plain, items = overlay("align"), overlay("align-bucket")
    job = items["RayJob/align"]["spec"]
    before = plain["RayJob/align"]["spec"]["entrypoint"]
    bucket = "s3://checkpoints/slingstone"
    assert job["entrypoint"] == f"{before} recovery.checkpoints={bucket}"
    _, (_, config), overrides = entrypoint(job["entrypoint"])
    run = load(ROOT / config, overrides)
    assert run_directory.checkpoints(run) == f"{bucket}/align/{run.name}/checkpoints"
    for group in groups(ray_spec(items)):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "slingstone-environment", "optional": True}}]


def test_the_sweeps_cluster_holds_its_trials(tmp_path):
    items = overlay("sweep")
    directory, (script, config), overrides = entrypoint(items["RayJob/sweep"]["spec"]["entrypoint"])
    assert directory == IN_IMAGE
    assert (ROOT / script).is_file()
    assert load_as(Sweep, ROOT / config, overrides).storage == STORAGE
    planned = trials.prepare(load_as(Sweep, ROOT / config, [*overrides, f"storage={tmp_path}"]))
    planned.begin()
    assert (planned.experiment.runtime.use_gpu, planned.experiment.placement.trainer) == (
        True,
        "slingstone/group=trainer",
    )
    spec = ray_spec(items)
    assert concurrency(planned, nodes_at_start(spec)) == 8, "one trial a GPU"


def test_the_evaluations_cluster_holds_its_workers_and_judges_what_the_run_exports():
    items = overlay("evaluate")
    directory, (script, config), overrides = entrypoint(items["RayJob/evaluate"]["spec"]["entrypoint"])
    assert directory == IN_IMAGE
    assert (ROOT / script).is_file()
    asked = load_as(Comparison, ROOT / config, overrides)
    assert asked.storage == STORAGE
    assert f"{STORAGE}/align/scenes" in {getattr(model, "run", None) for model in asked.models}
    spec = ray_spec(items)
    deployed = placement.managed(asked.rewards, asked.placement)
    placement.check_labels(asked.placement, deployed, nodes_at_start(spec))
    assert asked.workers.num_workers <= at_start(spec)["GPU"]


@pytest.mark.parametrize("name", ["align", "sweep", "evaluate"])
def test_a_job_frees_its_cluster_and_gives_up_waiting(name):
    (job,) = (item["spec"] for key, item in overlay(name).items() if key.startswith("RayJob/"))
    assert job["shutdownAfterJobFinishes"]
    assert job["preRunningDeadlineSeconds"] > 0
    assert job["submissionMode"] == "HTTPMode"


@pytest.mark.parametrize("name", overlays())
def test_groups_carry_the_label_that_placements_name(name):
    for group in ray_spec(overlay(name))["workerGroupSpecs"]:
        assert group["labels"] == {"slingstone/group": group["groupName"]}
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 60, "time to drain before a spot node goes"


@pytest.mark.parametrize("name", overlays())
def test_a_stopped_job_has_time_to_save_within_its_pods_own(name):
    pod = ray_spec(overlay(name))["headGroupSpec"]["template"]["spec"]
    (wait,) = (entry["value"] for entry in pod["containers"][0]["env"] if entry["name"] == "RAY_JOB_STOP_WAIT_TIME_S")
    assert 60 <= int(wait) < pod["terminationGracePeriodSeconds"]


def test_the_demo_fits_the_small_cluster():
    placement.check(load(ROOT / "configs/align/scenes.yaml"), nodes_at_start(ray_spec(overlay("interactive-small"))))


def test_the_service_serves_what_configs_serve_says():
    service = overlay("rewards")["RayService/rewards"]["spec"]
    assert yaml.safe_load(service["serveConfigV2"]) == yaml.safe_load((ROOT / "configs/serve/rewards.yaml").read_text())


def test_the_arenas_cluster_holds_its_generators_and_its_door_wants_a_token():
    items = overlay("arena")
    served = yaml.safe_load(items["RayService/arena"]["spec"]["serveConfigV2"])
    (application,) = served["applications"]
    arena = Arena.model_validate(application["args"])
    assert arena.door.access == "token"
    assert "@arena-postgres:5432" in (arena.votes or "")  # without a password: libpq has it from PGPASSWORD
    started = at_start(ray_spec(items))
    assert len(arena.generators) * arena.drawers.num_gpus <= started["GPU"]
    assert len(arena.generators) * arena.drawers.num_cpus <= started["CPU"]
    ours = load_as(Arena, ROOT / "configs/arena/scenes.yaml")
    same = {"generators": ours.generators[:1], "rewards": ours.rewards, "prompts": ours.prompts}
    assert same == {"generators": arena.generators[:1], "rewards": arena.rewards, "prompts": arena.prompts}


def test_only_rays_pods_reach_the_votes_and_only_an_ingress_the_door():
    items = overlay("arena")
    (port,) = items["NetworkPolicy/arena"]["spec"]["ingress"][0]["ports"]
    served = yaml.safe_load(items["RayService/arena"]["spec"]["serveConfigV2"])
    assert port["port"] == served["http_options"]["port"]
    votes = items["NetworkPolicy/arena-postgres"]["spec"]
    pod = items["StatefulSet/arena-postgres"]["spec"]["template"]["metadata"]["labels"]
    assert votes["podSelector"]["matchLabels"].items() <= pod.items()
    (rule,) = votes["ingress"]
    ray = ray_spec(items)["headGroupSpec"]["template"]["metadata"]["labels"]
    assert rule["from"][0]["podSelector"]["matchLabels"].items() <= ray.items()


def test_the_services_workers_become_ready_without_a_proxy():
    """KubeRay's own probe asks the Serve proxy, which `proxy_location: Disabled` leaves out."""
    service = overlay("rewards")["RayService/rewards"]["spec"]
    assert yaml.safe_load(service["serveConfigV2"])["proxy_location"] == "Disabled"
    for group in service["rayClusterConfig"]["workerGroupSpecs"]:
        (command,) = (
            container["readinessProbe"]["exec"]["command"] for container in group["template"]["spec"]["containers"]
        )
        assert "local_raylet_healthz" in command[-1]
        assert "8000" not in command[-1]
