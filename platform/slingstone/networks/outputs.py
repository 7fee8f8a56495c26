"""How each kind of denoising network is called: latents, timesteps and a condition to its raw prediction in fp32.

Inputs are cast to the weights' dtype, so that an engine may train in bf16.
"""

from dataclasses import dataclass

from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from slingstone.networks.protocol import Condition
from slingstone.objectives.diffusion import NoiseSchedule


def unet_output(
    unet: UNet2DConditionModel,
    x_t: Float[Tensor, "batch channel height width"],
    t: Int[Tensor, " batch"],
    condition: Condition,
) -> Float[Tensor, "batch channel height width"]:
    """Return the prediction of a UNet of Stable Diffusion or SDXL.

    SDXL's are told `pooled` and `time_ids` as well; the ids are sizes in pixels, which stay in fp32.
    """
    dtype = next(unet.parameters()).dtype
    added = (
        {"text_embeds": condition["pooled"].to(dtype), "time_ids": condition["time_ids"]}
        if "pooled" in condition
        else None
    )
    text = condition["text"].to(dtype)
    output = unet(x_t.to(dtype), t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)
    return output[0].float()


def pixart_output(
    transformer: PixArtTransformer2DModel,
    x_t: Float[Tensor, "batch channel height width"],
    t: Int[Tensor, " batch"],
    condition: Condition,
) -> Float[Tensor, "batch channel height width"]:
    """Return the prediction of PixArt-alpha's transformer: the first half of its channels, the others are a variance.

    Only transformers for 1024 px listen to the size and the aspect ratio.
    """
    dtype = next(transformer.parameters()).dtype
    output = transformer(
        x_t.to(dtype),
        encoder_hidden_states=condition["text"].to(dtype),
        encoder_attention_mask=condition["mask"],
        timestep=t,
        added_cond_kwargs={name: condition[name] for name in ("resolution", "aspect_ratio")},
        return_dict=False,
    )[0]
    return output[:, : x_t.shape[1]].float()


@dataclass(frozen=True)
class Sd3Output:
    """The flow `eps - x0` of Stable Diffusion 3's transformer, which is told `1000 sigma_t` where others are told t."""

    schedule: NoiseSchedule

    def __call__(
        self,
        transformer: SD3Transformer2DModel,
        x_t: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the transformer's prediction."""
        dtype = next(transformer.parameters()).dtype
        output = transformer(
            hidden_states=x_t.to(dtype),
            timestep=1000 * self.schedule.sigma.to(t.device)[t],
            encoder_hidden_states=condition["text"].to(dtype),
            pooled_projections=condition["pooled"].to(dtype),
            return_dict=False,
        )
        return output[0].float()
