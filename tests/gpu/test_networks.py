"""Networks of every family on the device: fp32 against the CPU, and bf16 against fp32."""

import copy
from importlib import import_module

import pytest
import torch
from torch import Tensor

from tests.gpu.place import Place, relative, say, without_tf32

pytestmark = pytest.mark.gpu

FAMILIES = {
    "sd": ("tests.tiny", 625),
    "sdxl": ("tests.tiny_sdxl", 399),
    "pixart": ("tests.tiny_pixart", 440),
    "sd3": ("tests.tiny_sd3", 999),
}
PROMPTS = ["a red disc", "a white ring"]
# Relative errors of values, and of gradients, which a clamped pixel or a small norm makes worse.
# fp32 against float64 on a CPU: 5e-7 and 2e-6, PixArt's decoder 3e-6 and 2e-5 (measured). Another order of sums in
# other kernels is as good as that; the margin is twentyfold.
FP32 = (1e-4, 5e-4)
# bf16 against fp32 on a CPU: 1e-2 and 6e-2 (measured): 2^-9 a rounding, some tens of them in a row. Margin: threefold.
BF16 = (3e-2, 2e-1)
# TF32 keeps two bits more of what convolutions read.
TF32 = (BF16[0] / 4, BF16[1] / 4)


@pytest.fixture(scope="module", params=FAMILIES)
def families(request, place: Place, tmp_path_factory):
    """The same family on the CPU and on the device."""
    from slingstone.networks.latent_diffusion import load

    module, timestep = FAMILIES[request.param]
    directory = str(import_module(module).write_pipeline(tmp_path_factory.mktemp(request.param) / "pipeline"))
    return [load(directory, directory, generator_timestep=timestep, device=device) for device in ("cpu", place.device)]


def outputs(family, condition, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return what a step asks of the networks: values, and both kinds of gradients, in fp32 on the CPU."""
    from slingstone.networks.sampling import noise_of_seeds

    device = next(family.reference.parameters()).device
    z, x, cotangent = (noise_of_seeds(seeds, family.latent_shape, device) for seeds in ([1, 2], [3, 4], [5, 6]))
    t = torch.tensor([100, 900], device=device)
    generator, reference, decoder = (
        copy.deepcopy(part) for part in (family.generator, family.reference, family.decoder)
    )
    if dtype is not None:
        for part in (generator, reference, decoder):
            part.to(dtype)
    x0 = generator(z, condition)
    weights = [weight for weight in generator.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad((x0 * cotangent).sum(), weights, allow_unused=True)
    leaf = x.clone().requires_grad_()
    eps = reference(leaf, t, condition)
    (pulled,) = torch.autograd.grad((eps * cotangent).sum(), leaf)
    latents = x.clone().requires_grad_()
    pictures = decoder.decode(latents)
    (decoded,) = torch.autograd.grad((pictures * pictures.detach().cos()).sum(), latents)
    found = {
        "generator": x0,
        "generator's weight gradient": torch.cat(
            [gradient.flatten() for gradient in gradients if gradient is not None]
        ),
        "reference": eps,
        "reference's input gradient": pulled,
        "decoder": pictures,
        "decoder's input gradient": decoded,
    }
    assert all(value.isfinite().all() for value in found.values())
    return {name: value.detach().float().cpu() for name, value in found.items()}


def compare(title: str, found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: tuple[float, float]) -> None:
    """Say all relative errors, then judge them."""
    errors = {name: relative(found[name], expected[name]) for name in expected}
    say(f"{title}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    for name, error in errors.items():
        assert error < tolerance["gradient" in name], f"{title}: {name} is {error:.1e} off"


def test_fp32_equals_the_cpu(families) -> None:
    cpu, device = families
    encoded = cpu.text_encoder.encode(PROMPTS), device.text_encoder.encode(PROMPTS)
    texts = [{name: value for name, value in found.items() if value.is_floating_point()} for found in encoded]
    compare("text", texts[1], texts[0], FP32)
    expected = outputs(cpu, encoded[0])
    with without_tf32():
        compare("fp32", outputs(device, encoded[1]), expected, FP32)
    compare("TF32 convolutions, as by default", outputs(device, encoded[1]), expected, TF32)


def test_bf16_is_close_to_fp32(families) -> None:
    _, device = families
    condition = device.text_encoder.encode(PROMPTS)
    with without_tf32():
        expected = outputs(device, condition)
    compare("bf16", outputs(device, condition, torch.bfloat16), expected, BF16)
