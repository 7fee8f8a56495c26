"""What to serve: one reward, its weights and its resources, as a frozen pydantic object. Imports no torch."""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic import NonNegativeFloat as NonNegative

RewardKind = Literal["pickscore", "hps", "hps_v2", "imagereward", "clip_score", "aesthetic", "ensemble"]
UPSTREAM_KINDS: tuple[RewardKind, ...] = ("hps", "hps_v2", "imagereward")
PreprocessMode = Literal["exact", "smooth"]
NodeLabel = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w./-]*=[A-Za-z0-9][\w.-]*$", max_length=200)]
"""A label that a node of the cluster must carry, as `label=value`."""
_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def label_selector(label: str | None) -> dict[str, str]:
    """Return Ray's selector of the nodes that carry a label; empty for any node."""
    if label is None:
        return {}
    key, _, value = label.partition("=")
    return {key: value}


def _known(model: str) -> str:
    kinds = get_args(RewardKind)
    if model not in kinds and not _CLASS.fullmatch(model):
        raise ValueError(f"{model!r} is no reward: name one of {', '.join(kinds)}, or your own as package.module:Class")
    return model


class HttpSpec(BaseModel):
    """Who may ask over HTTP, and how much at once. Nobody can where the application has no route."""

    model_config = _STRICT

    access: Literal["token", "loopback"] = "token"
    """`token`: only who sends the bearer token of the service's environment variable REWARD_SERVICES_TOKEN, nobody
    while that is not set; `loopback`: also anybody on the proxy's own machine."""
    max_body_mib: PositiveFloat = 256.0
    """Longest request."""
    max_images: PositiveInt = 256
    """Most pictures of a request."""
    max_side: PositiveInt = 2048
    """Largest height or width of a picture."""

    @property
    def max_body_bytes(self) -> int:
        """Longest request in bytes."""
        return int(self.max_body_mib * 2**20)


class RewardSpec(BaseModel):
    """One reward service."""

    model_config = _STRICT

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
    """Unique id; the Serve application is called `reward-<name>`."""
    model: Annotated[str, AfterValidator(_known)]
    """Architecture and formula: a RewardKind, or `package.module:Class` of your own, which replicas can import."""
    checkpoint: Annotated[str, Field(min_length=1)]
    """Directory, file or hub id. A relative path is looked up from the working directory, then from the folder that
    holds this package."""
    backend: Literal["native", "upstream"] = "native"
    """`upstream` is computed by the published package, in its own environment, one picture at a time."""
    upstream_environment: str | None = None
    """Directory of that environment on every node, made by reward_services.upstream.environment; by default Ray's pip
    makes one when the first replica starts, which takes minutes and a package index."""
    tokenizer: str | None = None
    """Directory or hub id; by default beside the weights, else the published one."""
    preprocess: PreprocessMode = "exact"
    """`exact` equals upstream on saved PNGs (8-bit grid, straight-through gradient); `smooth` never rounds."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the towers; the head that makes the score stays in float32."""
    device: str = "cpu"
    """torch device of a replica: cpu or cuda."""
    num_replicas: PositiveInt = 1
    """Replicas; with max_replicas, the fewest."""
    max_replicas: PositiveInt | None = None
    """Most replicas, started and stopped by load; null keeps num_replicas."""
    target_ongoing_requests: PositiveFloat = 2.0
    """Requests a replica is meant to hold; more start another, up to max_replicas."""
    upscale_delay_s: NonNegative = 30.0
    """How long there must be too many requests before a replica is added."""
    downscale_delay_s: NonNegative = 600.0
    """How long there must be too few requests before a replica is taken away."""
    num_cpus: NonNegative = 1.0
    """CPUs a replica reserves, 0 for none; also its torch threads, at least 1."""
    num_gpus: NonNegative = 0.0
    """Share of a GPU a replica reserves; below 1 it also may not take more of its memory."""
    node_label: NodeLabel | None = None
    """label=value of the nodes on which replicas run (ray start --labels); null is any node."""
    max_batch_images: PositiveInt = 16
    """Most images of one forward pass; a larger request is computed in several."""
    batch_wait_timeout_s: NonNegative = 0.0
    """How long an idle replica waits for more requests to share a forward pass. Requests that arrive during a pass
    share the next one anyway."""
    max_queued_requests: PositiveInt = 64
    """Most requests that a client keeps waiting for a free replica; then it backs off."""
    deadline_s: PositiveFloat = 60.0
    """A client gives up, with an error that names the reward, after this long."""
    health_check_period_s: PositiveFloat = 10.0
    """How often a replica judges its test picture again, and answers Serve's probe."""
    self_test_score: float | None = None
    """What the test picture must score; null takes what the replica found when it started, which catches weights that
    break later but not wrong ones. `describe` tells it."""
    self_test_tolerance: PositiveFloat = 1e-3
    """Relative difference of the test picture's score that makes a replica unhealthy."""
    drain_timeout_s: NonNegative = 20.0
    """How long a replica that is stopped may still answer the requests it has."""
    open_cluster: bool = False
    """Whether it also runs on a Ray cluster without token authentication, where whoever reaches a port of it runs code
    as its user."""
    http: HttpSpec = HttpSpec()
    """Access and limits of HTTP requests."""

    @model_validator(mode="after")
    def _replicas(self) -> "RewardSpec":
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas = {self.max_replicas}: is below num_replicas = {self.num_replicas}; raise it"
            )
        return self

    @model_validator(mode="after")
    def _upstream_is_published(self) -> "RewardSpec":
        if self.backend == "native":
            return self
        if self.model not in UPSTREAM_KINDS:
            raise ValueError(
                f"backend='upstream' exists for {', '.join(UPSTREAM_KINDS)}, not for model={self.model!r}: use native"
            )
        if self.dtype != "float32" or (self.preprocess != "exact" and self.model != "imagereward"):
            found = f"dtype={self.dtype!r}, preprocess={self.preprocess!r}"
            raise ValueError(f"{found}: upstream has float32 and exact alone, or float32 and smooth for imagereward")
        return self

    def same_score(self, found: float, expected: float) -> bool:
        """Tell whether two scores of the test picture are the same, up to `self_test_tolerance`."""
        return abs(found - expected) <= self.self_test_tolerance * max(abs(expected), 0.01)

    @property
    def app_name(self) -> str:
        """Name of the Serve application; over HTTP, its route."""
        return f"reward-{self.name}"
