"""What a run costs on so many GPUs: compute, traffic, rewards, memory, checkpoints."""

from dataclasses import dataclass
from math import ceil

from slingstone.config import Experiment
from slingstone.plan.memory import Sizes, estimate
from slingstone.plan.published_sizes import Work
from slingstone.plan.traffic import checkpoint_bytes, sent_bytes
from slingstone.plan.work import REWARDS, passes, trained_on

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A kind of GPU, by its maker's data sheet.

    Attributes:
        tflops: dense bf16, in 10^12 a second; TF32 for fp32 runs is half of it.
        near_gb_s: one way to the GPUs of its node, in 10^9 bytes a second.
        far_gb_s: one way out of the node, of one GPU's share.
    """

    name: str
    tflops: float
    memory_gib: float
    near_gb_s: float
    far_gb_s: float
    per_node: int = 8


DEVICES = {
    device.name: device
    for device in (
        Device("a100", 312.0, 80.0, 300.0, 25.0),
        Device("h100", 989.0, 80.0, 450.0, 50.0),
        Device("h200", 989.0, 141.0, 450.0, 50.0),
        Device("l40s", 362.0, 48.0, 25.0, 12.5),
    )
}


@dataclass(frozen=True)
class Assumptions:
    """What cannot be derived, and should be measured.

    Attributes:
        utilisation: of the device's peak that networks reach.
        link_use: of the links' rate that collectives reach.
    """

    device: Device
    utilisation: float = 0.3
    link_use: float = 0.7


@dataclass(frozen=True)
class Cost:
    """One step on so many trainer GPUs.

    Attributes:
        batch: pictures of a step over all GPUs.
        compute_s: networks and decoder.
        window_s: the part of it between asking the rewards and needing their answers.
        traffic_s: the collectives, as if none hid behind compute.
        reward_s: until the slowest reward has judged the batch, with the configured replicas.
        replicas: by reward, how many would be done within the window.
        reward_gpus: GPUs that those replicas take.
        memory_gib: of one trainer GPU.
        picture_gib: to all rewards and back, in one step.
    """

    gpus: int
    batch: int
    compute_s: float
    window_s: float
    traffic_s: float
    reward_s: float
    replicas: dict[str, int]
    reward_gpus: float
    memory_gib: float
    checkpoint_gib: float
    picture_gib: float

    @property
    def step_s(self) -> float:
        """The step if the rewards had the replicas that hide them, and no traffic hid behind compute."""
        return self.compute_s + self.traffic_s

    @property
    def exposed_s(self) -> float:
        """What the configured replicas add to it."""
        return max(0.0, self.reward_s - self.window_s)

    @property
    def images_s(self) -> float:
        """Pictures a second."""
        return self.batch / self.step_s


def on(experiment: Experiment, gpus: int) -> Experiment:
    """Return the run on so many GPUs: its batch, rounded up so that each GPU gets as many pictures, at least one."""
    batch = gpus * max(1, ceil(experiment.training.batch_size / gpus))
    return experiment.model_copy(
        update={
            "runtime": experiment.runtime.model_copy(update={"num_workers": gpus, "use_gpu": True}),
            "training": experiment.training.model_copy(update={"batch_size": batch}),
        }
    )


def cost(experiment: Experiment, gpus: int, work: Work, known: Sizes, assumed: Assumptions) -> Cost:
    """Return the cost of a step of networks of such work and sizes; the run's own `num_workers` does not count."""
    experiment, device = on(experiment, gpus), assumed.device
    batch, counted = experiment.training.batch_size, passes(experiment)
    full = device.tflops * 1e12 * assumed.utilisation
    rate = full * _speed(experiment.runtime.precision)
    decoding = full * _speed(experiment.models.reward_decoder_precision)
    link = device.near_gb_s if gpus <= device.per_node else device.far_gb_s
    window_s = batch // gpus * counted.divergence * work.network / rate
    asked = {entry.name: entry for entry in trained_on(experiment)}
    # Rewards run in fp32 (TF32 on a GPU) unless told otherwise; those on CPUs, and a user's own, are not modelled.
    seconds = {
        name: batch * REWARDS[entry.model] / (entry.num_gpus * full * _speed(entry.dtype))
        for name, entry in asked.items()
        if entry.num_gpus and entry.model in REWARDS
    }
    replicas = {name: max(1, ceil(taken / window_s)) for name, taken in seconds.items()}
    return Cost(
        gpus=gpus,
        batch=batch,
        compute_s=batch // gpus * (counted.network * work.network / rate + counted.decoder * work.decoder / decoding),
        window_s=window_s,
        traffic_s=sent_bytes(experiment, known.trained) / (link * 1e9 * assumed.link_use),
        reward_s=max((taken / asked[name].num_replicas for name, taken in seconds.items()), default=0.0),
        replicas=replicas,
        reward_gpus=sum((count * asked[name].num_gpus for name, count in replicas.items()), start=0.0),
        memory_gib=estimate(experiment, known).most / GIB,
        checkpoint_gib=checkpoint_bytes(experiment.runtime, known.trained) / GIB,
        picture_gib=len(asked) * 2 * batch * 3 * work.side**2 * 4 / GIB,
    )


def _speed(precision: str) -> float:
    """Return the part of the bf16 rate that a precision reaches; fp32 counts on TF32."""
    return 1.0 if precision in ("bf16", "bfloat16") else 0.5
