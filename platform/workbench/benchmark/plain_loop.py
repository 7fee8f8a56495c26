"""The same training step as a plain PyTorch loop in one process, to measure the platform against.

It shares the networks, the objectives and the reward models with the job, and nothing of the platform: no trainer,
engine, service, checkpoint or tracking, no guard against samples that are not finite, and rewards by ordinary
backpropagation. It draws the same random numbers, so its losses are the job's. It decodes once and keeps the graph, as
the job does where `objective.gradient` is `direct`.

As a program, `python -m workbench.benchmark.plain_loop RUN.yaml`, it reads numbers of steps from its standard input and
answers each with the seconds that they took.
"""

import os
import sys
import time

import torch
from torch import Tensor, nn

from reward_services import models
from slingstone.config import Experiment, Optimizer, load
from slingstone.engines.family import load_family, round_frozen
from slingstone.engines.masters import part_of_rank
from slingstone.objectives.denoising import denoising_loss
from slingstone.objectives.diffusion import diffuse
from slingstone.objectives.divergence import ScoreNetworks, divergence_gradient
from slingstone.prompts.files import read_prompts
from slingstone.prompts.sampler import PromptSampler
from slingstone.step.ema import ExponentialMovingAverage
from slingstone.step.trainer import Timesteps
from slingstone.worker.assembly import step_settings


class _Descent:
    """A network's optimizer, its linear warm-up and the clipping."""

    def __init__(self, network: nn.Module, optimizer: Optimizer, max_grad_norm: float) -> None:
        kind = torch.optim.AdamW if optimizer.kind == "adamw" else torch.optim.Adam
        self._weights = [weight for weight in network.parameters() if weight.requires_grad]
        self._optimizer = kind(self._weights, **optimizer.model_dump(include={"lr", "betas", "eps", "weight_decay"}))
        steps = max(1, optimizer.warmup_steps)
        self._warmup = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: min(1.0, (step + 1) / steps))
        self._max_grad_norm = max_grad_norm

    def step(self, loss: Tensor) -> float:
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._weights, self._max_grad_norm)
        self._optimizer.step()
        self._warmup.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)


class PlainLoop:
    """Trains what rank 0 of a one-worker job trains."""

    def __init__(self, experiment: Experiment) -> None:
        torch.manual_seed(experiment.seed)
        torch.set_num_threads(experiment.runtime.threads_per_worker)
        device = torch.device("cuda" if experiment.runtime.use_gpu else "cpu")
        self.settings = step_settings(experiment, world=1)
        self.family = load_family(experiment, device)
        round_frozen(self.family, experiment)
        self.rewards = [
            (entry, models.load(entry.spec.model_copy(update={"device": str(device)})))
            for entry in experiment.rewards.services
            if entry.weight > 0
        ]
        training = experiment.training
        self._generator = _Descent(self.family.generator, training.generator_optimizer, training.max_grad_norm)
        self._assistant = _Descent(self.family.assistant, training.assistant_optimizer, training.max_grad_norm)
        weights = dict(self.family.generator.named_parameters())
        self._ema = ExponentialMovingAverage(lambda: part_of_rank(weights.items()), training.ema_half_life_images)
        self._all_prompts = read_prompts(experiment.data.prompts, experiment.data.column)
        self._prompts = PromptSampler(self._all_prompts, training.batch_size, seed=experiment.seed)
        self._rng = torch.Generator(device).manual_seed(experiment.seed * 65537)

    @torch.no_grad()
    def warm_up(self) -> None:
        """Have the rewards embed every prompt once: they remember them on all sides."""
        grey = torch.full_like(self.family.decoder.decode(self._noise()), 0.5)
        for start in range(0, len(self._all_prompts), len(grey)):
            prompts = self._all_prompts[start : start + len(grey)]
            for _, model in self.rewards:
                model.score(grey[: len(prompts)], prompts)

    def step(self) -> dict[str, float]:
        """Update the assistant `K_TA` times and the generator once."""
        metrics: dict[str, float] = {}
        for _ in range(self.settings.assistant_updates):
            metrics = self._update_assistant()
        return metrics | self._update_generator()

    def _update_assistant(self) -> dict[str, float]:
        condition = self.family.text_encoder.encode(next(self._prompts))
        with torch.no_grad():
            x0 = self.family.generator(self._noise(), condition)
        t, eps = self._timesteps(self.settings.assistant_timesteps), self._noise()
        x_t = diffuse(x0, eps, *self.family.schedule.at(t))
        loss = denoising_loss(self.family.assistant(x_t, t, condition), eps)[0].mean()
        return {"grad_norm/assistant": self._assistant.step(loss), "loss/assistant": float(loss.detach())}

    def _update_generator(self) -> dict[str, float]:
        settings, family, prompts = self.settings, self.family, next(self._prompts)
        condition = family.text_encoder.encode(prompts)
        null = family.text_encoder.null(len(prompts)) if settings.divergence.guidance.scale else condition
        x0 = family.generator(self._noise(), condition)
        t, eps = self._timesteps(settings.generator_timesteps), self._noise()
        family.assistant.requires_grad_(False)
        networks = ScoreNetworks(
            assistant=lambda x_t, t: family.assistant(x_t, t, condition),
            conditional=lambda x_t, t: family.reference(x_t, t, condition),
            unconditional=lambda x_t, t: family.reference(x_t, t, null),
        )
        found = divergence_gradient(networks, family.schedule, x0, t, eps, settings.divergence)
        family.assistant.requires_grad_(True)
        images = family.decoder.decode(x0)
        scores = {entry.name: model.score(images, prompts) for entry, model in self.rewards}
        reward = torch.stack([entry.weight * scores[entry.name] for entry, _ in self.rewards]).sum(0)
        loss = (x0 * found.gradient).flatten(1).sum(1) - settings.reward_weight * reward
        norm = self._generator.step(loss.mean())
        self._ema.update(settings.batch_size)
        metrics = {"grad_norm/generator": norm, "loss/divergence": float(found.loss.mean())}
        return metrics | {f"reward/{name}": float(score.detach().mean()) for name, score in scores.items()}

    def _noise(self) -> Tensor:
        shape = (self.settings.batch_size, *self.family.latent_shape)
        return torch.randn(shape, generator=self._rng, device=self._rng.device)

    def _timesteps(self, span: Timesteps) -> Tensor:
        shape = (self.settings.batch_size,)
        return torch.randint(span.low, span.high + 1, shape, generator=self._rng, device=self._rng.device)


def main(path: str) -> None:
    """Serve the other side of a pipe until it is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not pass for an answer
    loop = PlainLoop(load(path))
    loop.warm_up()
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            loop.step()
        print(time.perf_counter() - start, file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
