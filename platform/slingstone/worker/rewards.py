"""How a worker asks the rewards, and which of them it trains on."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from reward_services import models, self_test
from reward_services.client import ImageStore, InProcessClient, ServeClient
from reward_services.http_client import HttpClient
from reward_services.prepared import PreparingClient
from reward_services.preprocess import Preprocess
from reward_services.protocol import RewardClient, RewardFailedError, RewardUnavailableError
from slingstone.config import Experiment, FixedScale, RewardEntry, Rewards, RunningScale
from slingstone.plan.work import trained_on
from slingstone.step.panel import RewardPanel, RewardTerm, Scale, Tolerance
from slingstone.step.panel import RunningScale as Running


def clients(rewards: Rewards, device: torch.device) -> Mapping[str, RewardClient]:
    """Return a client for each reward, in the order of the configuration.

    Raises:
        RewardFailedError: a reward in this process does not judge its test pictures as a reward should.
        ValueError: a client is to prepare pictures for a service that does not tell how.
    """
    store = ImageStore()

    def client(entry: RewardEntry) -> RewardClient:
        if rewards.backend == "in_process":
            local = entry.spec.model_copy(update={"device": str(device)})
            model = models.load(local)
            self_test.start(local, model)
            if entry.weight > 0 and not self_test.differentiable(local, model):
                raise ValueError(without_gradient(entry))
            return InProcessClient(model, entry.name)
        plain = remote_client(rewards, entry, store)
        if entry.preprocess_at == "service":
            return plain
        if (rule := plain.describe()["rule"]) is None:
            field = f"rewards.services.{entry.name}.preprocess_at = 'client'"
            raise ValueError(f"{field}: the service does not tell its rule; set it to service")
        return PreparingClient(remote_client(rewards, entry, store, prepared=True), Preprocess(**rule))

    return {entry.name: client(entry) for entry in rewards.services}


def without_gradient(entry: RewardEntry) -> str:
    """Return what is said of a reward that is to be trained on and cannot be."""
    field = f"rewards.services.{entry.name}.weight"
    return (
        f"{field} = {entry.weight:g}: its scores have no gradient with respect to the pictures, and that is what the"
        f" generator is trained by; hold it out with {field}=0, and train on a differentiable reward, such as one that"
        " `slingstone reward` fits to its choices"
    )


def panel(experiment: Experiment, judges: Mapping[str, RewardClient]) -> RewardPanel:
    """Return the rewards that are trained on; held-out ones are only asked by evaluations."""
    terms = [
        RewardTerm(entry.name, entry.weight, judges[entry.name].submit, _scale(entry))
        for entry in trained_on(experiment)
    ]
    # A request that is refused would be refused again: it is a mistake, and no outage.
    errors = (RewardUnavailableError, RewardFailedError) if experiment.rewards.on_failure == "drop" else ()
    return RewardPanel(terms, Tolerance(errors, experiment.rewards.drops_in_a_row), _sum_over_ranks)


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def _scale(entry: RewardEntry) -> Scale | Running:
    if isinstance(entry.normalisation, FixedScale):
        return Scale(entry.normalisation.mean, entry.normalisation.std)
    if isinstance(entry.normalisation, RunningScale):
        return Running(entry.normalisation.half_life_images)
    return Scale()


def remote_client(
    rewards: Rewards, entry: RewardEntry, store: ImageStore, prepared: bool = False
) -> ServeClient | HttpClient:
    """Return a client of a service, of this cluster or behind the proxy; `prepared` sends what is resized already."""
    if rewards.backend == "http":
        assert rewards.url is not None
        return HttpClient(rewards.url, entry.name, entry.deadline_s, prepared=prepared, application=entry.served_as)
    # Prepared inputs are each reward's own, so there is no copy to share.
    own = ImageStore() if prepared else store
    return ServeClient(entry.name, entry.deadline_s, own, prepared=prepared, application=entry.served_as)
