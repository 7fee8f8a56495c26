import pickle
import subprocess
import sys

import numpy as np
import pydantic
import pytest

from reward_services.protocol import (
    InvalidRequestError,
    RewardError,
    RewardFailedError,
    RewardUnavailableError,
    check_request,
)
from reward_services.spec import RewardSpec


def _good() -> np.ndarray:
    return np.full((2, 3, 4, 4), 0.5, dtype=np.float32)


def _with(value: float) -> np.ndarray:
    images = _good()
    images[1, 2, 3, 3] = value
    return images


BAD = {
    "a list of pictures": ([[0.5]], ["a", "b"], "images is a list: send a tensor or a numpy array"),
    "double precision": (_good().astype(np.float64), ["a", "b"], "float64: send float32"),
    "8-bit pictures": (_good().astype(np.uint8), ["a", "b"], "uint8: send float32"),
    "one picture without batch axis": (_good()[0], ["a"], r"shape \(3, 4, 4\)"),
    "channels last": (_good().transpose(0, 2, 3, 1), ["a", "b"], r"shape \(2, 4, 4, 3\)"),
    "an alpha channel": (np.ones((2, 4, 4, 4), np.float32), ["a", "b"], r"shape \(2, 4, 4, 4\)"),
    "no picture": (_good()[:0], [], r"shape \(0, 3, 4, 4\)"),
    "a picture without rows": (np.ones((1, 3, 0, 4), np.float32), ["a"], r"shape \(1, 3, 0, 4\)"),
    "not a number": (_with(np.nan), ["a", "b"], "finite values"),
    "infinity": (_with(np.inf), ["a", "b"], "finite values"),
    "pixels up to 255": (_with(255.0), ["a", "b"], r"lie in \[0.5, 255.0\]"),
    "pixels down to -1": (_with(-1.0), ["a", "b"], r"lie in \[-1.0, 0.5\]"),
    "one prompt as a string": (_good(), "ab", "not a list of strings"),
    "a prompt that is no string": (_good(), ["a", 3], "not a list of strings"),
    "too few prompts": (_good(), ["a"], "1 prompts for 2 pictures"),
    "an empty prompt": (_good(), ["a", "  "], r"prompts\[1\] is empty"),
    "half of a surrogate pair": (_good(), ["a", "a \ud83d"], r"prompts\[1\] has half of a surrogate pair"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_request_that_breaks_the_contract_is_refused_in_words(case: str):
    images, prompts, message = BAD[case]
    with pytest.raises(InvalidRequestError, match=message) as caught:
        check_request("pickscore", images, prompts)
    assert str(caught.value).startswith("reward 'pickscore': ")


@pytest.mark.parametrize("value", [0.0, 1.0, -5e-4, 1.0005])
def test_rounding_of_half_precision_is_tolerated(value: float):
    check_request("pickscore", _with(value), ["a", "b"])


@pytest.mark.parametrize("kind", [RewardError, InvalidRequestError, RewardUnavailableError, RewardFailedError])
def test_an_error_survives_the_way_between_processes(kind: type[RewardError]):
    error = pickle.loads(pickle.dumps(kind("hps", "out of order")))
    assert type(error) is kind
    assert (error.reward, str(error)) == ("hps", "reward 'hps': out of order")


def test_a_spec_names_its_application():
    assert RewardSpec(name="hps-v2", model="hps", checkpoint="x").app_name == "reward-hps-v2"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Has Spaces"},
        {"model": "beauty"},
        {"model": "my rewards:Beauty"},
        {"model": "rewards:"},
        {"upscale_delay_s": -1},
        {"downscale_delay_s": -1},
        {"checkpoint": ""},
        {"preprocess": "sharp"},
        {"dtype": "float16"},
        {"num_replicas": 0},
        {"num_cpus": -1},
        {"num_gpus": -1},
        {"max_batch_images": 0},
        {"batch_wait_timeout_s": -1},
        {"deadline_s": 0},
        {"deadline_s": float("inf")},
        {"health_check_period_s": 0},
        {"self_test_tolerance": 0},
        {"drain_timeout_s": -1},
        {"target_ongoing_requests": 0},
        {"max_replicas": 0},
        {"http": {"access": "everybody"}},
        {"http": {"max_body_mib": 0}},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_spec_refuses_values_that_cannot_be_served(change: dict):
    good = {"name": "hps", "model": "hps", "checkpoint": "x"}
    RewardSpec(**good)
    with pytest.raises(pydantic.ValidationError, match=next(iter(change))):
        RewardSpec(**{**good, **change})


def test_a_spec_refuses_fewer_replicas_at_most_than_at_least():
    with pytest.raises(pydantic.ValidationError, match="max_replicas = 2: is below num_replicas = 3; raise it"):
        RewardSpec(name="hps", model="hps", checkpoint="x", num_replicas=3, max_replicas=2)


def _modules_after(statement: str) -> set[str]:
    script = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_a_spec_imports_neither_torch_nor_ray():
    assert _modules_after("import reward_services.spec").isdisjoint({"torch", "ray", "transformers"})


def test_client_and_protocol_import_no_model():
    loaded = _modules_after("import reward_services.client, reward_services.protocol")
    assert loaded.isdisjoint({"transformers", "reward_services.models", "reward_services.deployment", "slingstone"})


def test_a_client_outside_the_cluster_needs_no_ray():
    loaded = _modules_after("import reward_services.http_client, reward_services.prepared")
    assert loaded.isdisjoint({"ray", "transformers", "reward_services.models", "slingstone"})


def test_a_reward_imports_only_what_it_needs():
    loaded = _modules_after("import reward_services.models")
    assert loaded.isdisjoint({"transformers", "ray"})
