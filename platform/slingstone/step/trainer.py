"""One alternating step: the assistant learns the generator's score, then the generator learns from the assistant.

Nothing here knows where it runs: engines, rewards and prompts come in as protocols and functions.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from slingstone.networks.protocol import Condition, ModelFamily
from slingstone.objectives.denoising import denoising_loss
from slingstone.objectives.diffusion import at_least_fp32, diffuse
from slingstone.objectives.divergence import Divergence, DivergenceGradient, ScoreNetworks, divergence_gradient
from slingstone.objectives.finite import cleaned, kept_mean
from slingstone.objectives.reward import decoder_vjp
from slingstone.step.ema import ExponentialMovingAverage, Fragment
from slingstone.step.panel import GATHERED, PendingReward, RewardPanel
from slingstone.step.stopwatch import Stopwatch


@runtime_checkable
class Engine(Protocol):
    """A network with its optimizer, however it is sharded. Gradients are averaged over ranks by the engine."""

    module: nn.Module

    def __call__(self, *args: Any) -> Tensor:
        """Run the forward pass whose weights the next `backward` will train."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a loss that came out of a call of this engine; once or more before a `step`."""
        ...

    def step(self) -> float:
        """Clip, update, zero the gradients, advance the learning rate; return the gradient norm before clipping."""
        ...

    def masters(self) -> Mapping[str, Fragment]:
        """Return views of the unrounded weights that this rank owns; see `ema.Masters`."""
        ...


@dataclass(frozen=True)
class Timesteps:
    """Uniform over `low .. high`, both included."""

    low: int
    high: int


@dataclass(frozen=True)
class StepSettings:
    """The numbers of one step.

    Attributes:
        batch_size: images of one step on this rank; every iterator item of prompts has this length.
        micro_batch_size: images that networks compute at once; 0 is all. Gradients of a step are accumulated, so that
            it changes memory and time, not the step.
        joint_reference: see `ScoreNetworks.joint`.
        world_size: ranks; progress and the EMA count `batch_size * world_size` images a step.
        divergence: see `Divergence`.
        decoder_graph: whether the decoder's graph is kept until the rewards answer, or its activations are recomputed.
        reward_weight: `alpha_rew`.
        generator_timesteps: noise levels of the generator's loss.
        assistant_timesteps: noise levels of the assistant's loss.
        assistant_updates: `K_TA`, updates of the assistant before one of the generator.
        warmup_images: the first so many images train the assistant alone; they count as progress.
        ema_half_life_images: half-life of the generator's average; 0 keeps the latest weights.
    """

    batch_size: int
    generator_timesteps: Timesteps
    assistant_timesteps: Timesteps
    micro_batch_size: int = 0
    joint_reference: bool = False
    world_size: int = 1
    divergence: Divergence = field(default_factory=Divergence)
    decoder_graph: Literal["kept", "recomputed"] = "kept"
    reward_weight: float = 0.0
    assistant_updates: int = 1
    warmup_images: int = 0
    ema_half_life_images: float = 0.0


class Trainer:
    """Trains a generator and its assistant, one alternation a `step`.

    Args:
        family: what the engines were made of, and the frozen rest; the reference's weights are frozen here.
        generator: engine over `family.generator`.
        assistant: engine over `family.assistant`.
        rewards: judges the pictures.
        prompts: endless batches of `settings.batch_size` prompts, different on each rank.
        settings: the numbers.
        rng: source of all randomness of this rank, on the device where the networks run.
    """

    def __init__(
        self,
        family: ModelFamily,
        generator: Engine,
        assistant: Engine,
        rewards: RewardPanel,
        prompts: Iterator[Sequence[str]],
        settings: StepSettings,
        rng: torch.Generator,
    ) -> None:
        for name, span in (("generator", settings.generator_timesteps), ("assistant", settings.assistant_timesteps)):
            if not 0 <= span.low <= span.high < len(family.schedule):
                limit = len(family.schedule) - 1
                raise ValueError(f"{name}_timesteps is {span.low}..{span.high}, must lie in 0..{limit}, low first")
        family.reference.requires_grad_(False)
        self.family = family
        self.generator = generator
        self.assistant = assistant
        self.rewards = rewards
        self.prompts = prompts
        self.settings = settings
        self.rng = rng
        self.ema = ExponentialMovingAverage(generator.masters, settings.ema_half_life_images)
        self.images = 0
        self.stopwatch = Stopwatch(rng.device)

    def step(self) -> dict[str, float]:
        """Update the assistant `K_TA` times, then (after the warm-up) the generator once.

        Before the generator's first update, running scales of rewards are gathered from pictures of its own.

        Returns:
            Metrics of this rank. Means run over the samples that were kept, and are NaN if none was. `seconds/<stage>`
            are those of `Stopwatch` and do not overlap; `seconds/step` is all of this step.

        Raises:
            FloatingPointError: if a gradient norm is not finite. Samples are dropped by what goes into and comes out
                of the networks; a network that overflows inside its backward pass is beyond repair.
            Exception: whatever a reward raises; the generator is then as before the step.
        """
        start = time.perf_counter()
        self.stopwatch.begin()
        metrics: dict[str, Tensor | float] = {}
        for _ in range(self.settings.assistant_updates):
            metrics = self._update_assistant()
        if self.images >= self.settings.warmup_images:
            self._gather_scales()
            metrics |= self._update_generator()
        self.images += self.settings.batch_size * self.settings.world_size
        values = {name: float(value) for name, value in metrics.items()}
        values |= {f"seconds/{name}": seconds for name, seconds in self.stopwatch.end().items()}
        return values | {"images": float(self.images), "seconds/step": time.perf_counter() - start}

    def state_dict(self) -> dict[str, Any]:
        """Return progress, randomness, EMA and the rewards' memory; whoever made engines and prompts saves them."""
        own = {"images": self.images, "rng": self.rng.get_state()}
        return own | {"ema": self.ema.state_dict(), "rewards": self.rewards.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.images = state["images"]
        self.rng.set_state(state["rng"].cpu())
        self.ema.load_state_dict(state["ema"])
        self.rewards.load_state_dict(state.get("rewards", {}))

    def _update_assistant(self) -> dict[str, Tensor | float]:
        """Fit the assistant to the generator's present samples; the generator is used without gradient."""
        condition = self._encoded(next(self.prompts))
        z = self._noise()
        t, eps = self._timesteps(self.settings.assistant_timesteps), self._noise()
        losses, finite = [], []
        with self.stopwatch.stage("assistant"):
            for rows in self._micro_batches():
                loss, kept = self._assistant_loss(z[rows], t[rows], eps[rows], _rows(condition, rows))
                self.assistant.backward(torch.where(kept, loss, torch.zeros_like(loss)).sum() / len(z))
                losses.append(loss.detach())
                finite.append(kept)
        with self.stopwatch.stage("optimizer"):
            norm = _checked(self.assistant.step(), "assistant", self.images)
        kept = torch.cat(finite)
        return {
            "loss/assistant": kept_mean(torch.cat(losses), kept),
            "grad_norm/assistant": norm,
            "nonfinite/assistant": (~kept).sum(),
        }

    def _assistant_loss(
        self,
        z: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
        eps: Float[Tensor, "batch channel height width"],
        condition: Condition,
    ) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """Return the assistant's loss on the generator's samples of `z`, and which samples are kept."""
        x0, finite = cleaned(self._samples(z, condition))
        x_t = diffuse(x0, eps, *self.family.schedule.at(t))
        losses, predicted = denoising_loss(self.assistant(x_t, t, condition), eps)
        return losses, finite & predicted

    def _samples(
        self, z: Float[Tensor, "batch channel height width"], condition: Condition
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the generator's samples, without gradient and not through its engine."""
        with torch.no_grad():
            return at_least_fp32(self.generator.module(z, condition))

    def _gather_scales(self) -> None:
        """Show rewards whose scale rests on too few pictures some more; near-equal scores would divide by nearly 0."""
        for _ in range(math.ceil(GATHERED / (self.settings.batch_size * self.settings.world_size))):
            if not self.rewards.gathering:
                return
            prompts = next(self.prompts)
            condition, z = self._encoded(prompts), self._noise()
            samples = [self._samples(z[rows], _rows(condition, rows)) for rows in self._micro_batches()]
            x0, finite = cleaned(torch.cat(samples))
            pending, _, shown = self._submit(x0, prompts)
            finite &= shown
            self.rewards.collect(pending, finite)

    def _update_generator(self) -> dict[str, Tensor | float]:
        """Take one generator step against the frozen assistant, dropping samples that are not finite."""
        prompts = next(self.prompts)
        condition, z, micro = self._encoded(prompts), self._noise(), self._micro_batches()
        with self.stopwatch.stage("generator"):
            # What is not computed at once is drawn here and drawn again, with its graph, for the backward pass.
            drawn = self.generator(z, condition) if len(micro) == 1 else None
            samples = [self._samples(z[rows], _rows(condition, rows)) for rows in micro] if drawn is None else [drawn]
        leaf, finite = cleaned(at_least_fp32(torch.cat([x0.detach() for x0 in samples])))
        # Rewards are asked before the score networks run and awaited after, so that their latency is hidden.
        with self.stopwatch.stage("decode"):
            pending, pull, shown = self._submit(leaf, prompts)
        finite &= shown

        with self.stopwatch.stage("divergence"):
            gradient, finite, metrics = self._divergence(leaf, condition, finite)
        reward_gradient, finite, reward_metrics = self._reward(leaf, pending, pull, finite)
        gradient, unbroken = cleaned(gradient - self.settings.reward_weight * reward_gradient)
        finite &= unbroken

        with self.stopwatch.stage("generator"):
            for rows in micro:
                x0 = self.generator(z[rows], _rows(condition, rows)) if drawn is None else drawn
                # The mean is over the whole batch, so a dropped sample counts as one whose gradient is zero.
                pulled = at_least_fp32(x0) * gradient[rows]
                surrogate = torch.where(finite[rows].view(-1, 1, 1, 1), pulled, torch.zeros_like(pulled))
                self.generator.backward(surrogate.sum() / len(z))
        with self.stopwatch.stage("optimizer"):
            norm = _checked(self.generator.step(), "generator", self.images)
        with self.stopwatch.stage("ema"):
            self.ema.update(self.settings.batch_size * self.settings.world_size)
        return metrics | reward_metrics | {"grad_norm/generator": norm, "nonfinite/generator": (~finite).sum()}

    def _divergence(
        self, x0: Float[Tensor, "batch channel height width"], condition: Condition, finite: Bool[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch channel height width"], Bool[Tensor, " batch"], dict[str, Tensor | float]]:
        """Return the divergence's gradient with respect to each sample, the samples still kept, and metrics."""
        settings = self.settings
        t, eps = self._timesteps(settings.generator_timesteps), self._noise()
        null = self.family.text_encoder.null(len(x0)) if settings.divergence.guidance.scale else condition
        with _borrowed(self.assistant) as assistant:
            parts = [
                divergence_gradient(
                    self._score_networks(assistant, _rows(condition, rows), _rows(null, rows)),
                    self.family.schedule,
                    *(x0[rows], t[rows], eps[rows]),
                    settings.divergence,
                )
                for rows in self._micro_batches()
            ]
        found = DivergenceGradient(*map(torch.cat, zip(*parts, strict=True)))
        finite = finite & found.loss.isfinite() & found.gradient.isfinite().flatten(1).all(1)
        metrics: dict[str, Tensor | float] = {
            "loss/divergence": kept_mean(found.loss, finite),
            "divergence/distance": kept_mean(found.distance, finite),
            "divergence/y_norm": kept_mean(found.y_norm, finite),
        }
        return found.gradient, finite, metrics

    def _score_networks(self, assistant: nn.Module, condition: Condition, null: Condition) -> ScoreNetworks:
        reference = self.family.reference
        networks = ScoreNetworks(
            assistant=lambda x_t, t: assistant(x_t, t, condition),
            conditional=lambda x_t, t: reference(x_t, t, condition),
            unconditional=lambda x_t, t: reference(x_t, t, null),
        )
        if not self.settings.joint_reference:
            return networks
        both = {name: torch.cat([value, null[name]]) for name, value in condition.items()}
        return replace(networks, joint=lambda x_t, t: reference(torch.cat([x_t, x_t]), torch.cat([t, t]), both))

    def _submit(
        self, x0: Float[Tensor, "batch channel height width"], prompts: Sequence[str]
    ) -> tuple[list[PendingReward], Callable[[Tensor], Tensor], Bool[Tensor, " batch"]]:
        """Send the decoded pictures to every reward, without waiting; black ones for those that are not finite.

        Returns:
            What is awaited, the decoder's pull to `x0`, and which pictures are finite.
        """
        if not self.rewards.terms:
            return [], torch.zeros_like, torch.ones(len(x0), dtype=torch.bool, device=x0.device)
        decoder = self.family.decoder
        images, pull = decoder_vjp(decoder.decode, x0, decoder.chunk, self.settings.decoder_graph)
        images, shown = cleaned(images)
        return self.rewards.submit(images, prompts), pull, shown

    def _reward(
        self,
        x0: Float[Tensor, "batch channel height width"],
        pending: Sequence[PendingReward],
        pull: Callable[[Tensor], Tensor],
        finite: Bool[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch channel height width"], Bool[Tensor, " batch"], dict[str, Tensor | float]]:
        """Await the rewards; return d r_i / d x0_i, the samples still kept, and metrics."""
        with self.stopwatch.stage("reward_wait"):
            judged = self.rewards.collect(pending, finite)
        if judged.gradient is None or not self.settings.reward_weight:
            return torch.zeros_like(x0), finite, judged.metrics
        with self.stopwatch.stage("pull"):
            return pull(judged.gradient), finite & judged.finite, judged.metrics

    def _encoded(self, prompts: Sequence[str]) -> Condition:
        with self.stopwatch.stage("text"):
            return self.family.text_encoder.encode(prompts)

    def _micro_batches(self) -> list[slice]:
        """Return the rows that are computed at once."""
        size = self.settings.batch_size
        most = self.settings.micro_batch_size or size
        return [slice(start, min(start + most, size)) for start in range(0, size, most)]

    def _noise(self) -> Float[Tensor, "batch channel height width"]:
        """Draw standard normal latents of one batch."""
        shape = (self.settings.batch_size, *self.family.latent_shape)
        dtype = self.family.schedule.alpha.dtype
        return torch.randn(shape, generator=self.rng, device=self.rng.device, dtype=dtype)

    def _timesteps(self, span: Timesteps) -> Int[Tensor, " batch"]:
        """Draw a noise level for each sample."""
        shape = (self.settings.batch_size,)
        return torch.randint(span.low, span.high + 1, shape, generator=self.rng, device=self.rng.device)


def _rows(condition: Condition, rows: slice) -> Condition:
    return {name: value[rows] for name, value in condition.items()}


@contextmanager
def _borrowed(engine: Engine) -> Iterator[nn.Module]:
    """Lend a network for d output / d input only.

    A frozen module rather than a call of the engine: anything else lets the engine's hooks mistake this for a training
    pass, which is silently wrong under some ZeRO stages.
    """
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield engine.module
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _checked(norm: float, name: str, images: int) -> float:
    """Return the gradient norm, or raise if it says that the weights are lost."""
    if not math.isfinite(norm):
        found = f"gradient norm of the {name} is {norm} after {images} images"
        raise FloatingPointError(f"{found}: resume with a smaller learning rate or in fp32")
    return norm
