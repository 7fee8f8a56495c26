"""The MLflow server: compose file and manifests describe the same three services, and clients reach it by its name."""

import re
from urllib.parse import urlsplit

import yaml

from tests.infra.facts import INFRA, PINNED, groups, overlay, overlays, ray_spec, strings
from tests.infra.kustomize import render

MLFLOW = INFRA / "mlflow"
COMPOSE = yaml.safe_load((MLFLOW / "docker-compose.yaml").read_text())
MANIFESTS = {f"{item['kind']}/{item['metadata']['name']}": item for item in render(MLFLOW / "kubernetes")}
WORKLOADS = {key: item for key, item in MANIFESTS.items() if item["kind"] in ("Deployment", "StatefulSet", "Job")}
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")


def container(key: str) -> dict:
    (found,) = WORKLOADS[key]["spec"]["template"]["spec"]["containers"]
    return found


def environment(key: str) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container(key)["env"]}


def test_server_and_clients_are_of_the_same_version():
    assert COMPOSE["services"]["mlflow"]["image"] == f"slingstone/mlflow:{PINNED['mlflow']}"
    assert container("Deployment/mlflow")["image"] == f"slingstone/mlflow:{PINNED['mlflow']}"


def test_the_uri_names_the_driver_that_the_image_installs():
    """SQLAlchemy takes psycopg 3 where a URI names no driver."""
    dockerfile = (INFRA / "docker" / "mlflow.Dockerfile").read_text()
    assert f"psycopg2-binary=={PINNED['psycopg2-binary']}" in dockerfile
    assert f"boto3=={PINNED['boto3']}" in dockerfile
    composed = COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    for uri in (composed, environment("Deployment/mlflow")["MLFLOW_BACKEND_STORE_URI"]):
        assert urlsplit(uri).scheme == "postgresql+psycopg2"


def test_compose_and_kubernetes_run_the_same_images():
    composed = {service["image"] for service in COMPOSE["services"].values()}
    assert composed == {container(key)["image"] for key in WORKLOADS}


def test_compose_waits_for_services_it_defines_and_mounts_volumes_it_defines():
    for service in COMPOSE["services"].values():
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
        assert {mount.split(":")[0] for mount in service.get("volumes", [])} <= set(COMPOSE["volumes"])
        for waited, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in COMPOSE["services"][waited]


def test_compose_refuses_to_start_without_the_secrets_and_the_example_names_them_all():
    found = {(name, kind) for _, text in strings(COMPOSE) for name, kind, _ in VARIABLE.findall(text)}
    required = {name for name, kind in found if kind == "?"}
    assert {name for name, kind in found if kind != "?"} == {"MLFLOW_BIND", "MLFLOW_ALLOWED_HOSTS"}
    example = (MLFLOW / "example.env").read_text()
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == required
    assert not re.findall(r"^\w+=.+$", example, re.MULTILINE)


def test_the_build_of_the_server_is_found_from_the_compose_file():
    build = COMPOSE["services"]["mlflow"]["build"]
    context = (MLFLOW / build["context"]).resolve()
    assert (context / build["dockerfile"]).is_file()
    assert (context / "constraints.txt").is_file()


def test_credentials_come_from_one_secret_of_three_keys():
    referenced = {
        (entry["valueFrom"]["secretKeyRef"]["name"], entry["valueFrom"]["secretKeyRef"]["key"])
        for key in WORKLOADS
        for entry in container(key)["env"]
        if "valueFrom" in entry
    }
    assert referenced == {("slingstone-mlflow", key) for key in ("postgres-password", "s3-access-key", "s3-secret-key")}


def test_the_uri_refers_to_a_password_that_is_defined_before_it():
    """Kubernetes expands $(NAME) only from entries that stand above."""
    names = [entry["name"] for entry in container("Deployment/mlflow")["env"]]
    uri = environment("Deployment/mlflow")["MLFLOW_BACKEND_STORE_URI"]
    assert "$(POSTGRES_PASSWORD)" in uri
    assert names.index("POSTGRES_PASSWORD") < names.index("MLFLOW_BACKEND_STORE_URI")


def test_services_lead_to_the_pods_that_listen():
    for key, service in MANIFESTS.items():
        if service["kind"] != "Service":
            continue
        selector = service["spec"]["selector"]
        (pod,) = (
            item["spec"]["template"]
            for item in WORKLOADS.values()
            if selector.items() <= item["spec"]["template"]["metadata"]["labels"].items()
        )
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], key


def test_the_server_calls_its_stores_by_their_services():
    server = environment("Deployment/mlflow")
    for uri in (server["MLFLOW_BACKEND_STORE_URI"], server["MLFLOW_S3_ENDPOINT_URL"]):
        parts = urlsplit(uri)
        (port,) = (port["port"] for port in MANIFESTS[f"Service/{parts.hostname}"]["spec"]["ports"])
        assert parts.port == port


def test_ray_calls_the_server_by_a_name_that_it_answers_to_and_through_the_policies():
    allowed = environment("Deployment/mlflow")["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    (rule,) = MANIFESTS["NetworkPolicy/mlflow"]["spec"]["ingress"]
    server = WORKLOADS["Deployment/mlflow"]["spec"]["template"]["metadata"]["labels"]
    for name in overlays():
        items = overlay(name)
        leaving = items["NetworkPolicy/slingstone-ray"]["spec"]["egress"]
        for group in groups(ray_spec(items)):
            template = group["template"]
            (uri,) = (
                entry["value"]
                for entry in template["spec"]["containers"][0]["env"]
                if entry["name"] == "MLFLOW_TRACKING_URI"
            )
            host = urlsplit(uri).netloc
            assert host in allowed
            assert f"Service/{urlsplit(uri).hostname}" in MANIFESTS
            entering = rule["from"][0]["podSelector"]["matchLabels"]
            assert entering.items() <= template["metadata"]["labels"].items()
            assert any(
                "to" in way
                and way["to"][0]["podSelector"]["matchLabels"].items() <= server.items()
                and way["ports"][0]["port"] == urlsplit(uri).port
                for way in leaving
            )


def test_ray_reaches_the_bucket_of_its_checkpoints_through_the_policies():
    bucket = urlsplit(overlay("align-bucket")["RayJob/align"]["spec"]["entrypoint"].rpartition("=")[2]).netloc
    assert f"store/{bucket}" in container("Job/mlflow-bucket")["command"][-1].split()
    (port,) = (port["port"] for port in MANIFESTS["Service/mlflow-minio"]["spec"]["ports"])
    store = WORKLOADS["StatefulSet/mlflow-minio"]["spec"]["template"]["metadata"]["labels"]
    leaving = overlay("align-bucket")["NetworkPolicy/slingstone-ray"]["spec"]
    entering = MANIFESTS["NetworkPolicy/mlflow-stores"]["spec"]["ingress"]
    ray = leaving["podSelector"]["matchLabels"]
    of_ray = [rule for rule in entering if rule["from"][0]["podSelector"].get("matchLabels") == ray]
    assert [rule["ports"][0]["port"] for rule in of_ray] == [port]
    leading = [way for way in leaving["egress"] if {"protocol": "TCP", "port": port} in way.get("ports", [])]
    assert [way["to"][0]["podSelector"]["matchLabels"].items() <= store.items() for way in leading] == [True]


def test_pods_run_without_root_and_without_the_clusters_token():
    for key, item in WORKLOADS.items():
        pod = item["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"], key
        assert pod["automountServiceAccountToken"] is False, key
        assert not container(key)["securityContext"]["allowPrivilegeEscalation"], key
