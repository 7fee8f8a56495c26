"""Generator and decoder as one ONNX model, checked against torch before anyone relies on it. Needs the extra `onnx`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slingstone.networks.adapters import merged, sharing_copy
from slingstone.networks.denoiser import OneStepGenerator
from slingstone.networks.protocol import Condition, ModelFamily
from slingstone.networks.sampling import noise_of_seeds

TOLERANCE = 1e-3
"""Most that a picture in [0, 1] may differ from torch's."""


class _Pictures(nn.Module):
    """`(noise, *condition) -> pictures`: what is exported; a condition's tensors are inputs in the order of names."""

    def __init__(self, family: ModelFamily, names: Sequence[str]):
        super().__init__()
        assert isinstance(family.generator, OneStepGenerator)
        self.generator = sharing_copy(family.generator)
        self.generator.network = merged(self.generator.network)
        self.decoder = family.decoder
        self.names = tuple(names)

    def forward(self, noise: Tensor, *condition: Tensor) -> Tensor:
        return self.decoder.decode(self.generator(noise, dict(zip(self.names, condition, strict=True))))


def write_onnx(family: ModelFamily, directory: Path) -> float:
    """Write `generator.onnx` for one picture, and `inputs.json` with its inputs' shapes; text encoders are not in it.

    Returns:
        The most that any value of the pictures differed by from torch's.

    Raises:
        ValueError: if the extra is not installed, or onnxruntime's pictures are not torch's.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch's exporter needs)
    except ImportError as error:
        raise ValueError(f"ONNX needs another package ({error.name}); pip install 'slingstone[onnx]'") from error
    directory.mkdir(parents=True, exist_ok=True)
    condition = family.text_encoder.encode(["a picture"])
    names = sorted(condition)
    module = _Pictures(family, names).eval().requires_grad_(False)
    exported = torch.onnx.export(
        module,
        (noise_of_seeds([0], family.latent_shape), *(condition[name] for name in names)),
        dynamo=True,
        verbose=False,
        input_names=["noise", *names],
        output_names=["image"],
    )
    assert exported is not None
    file = directory / "generator.onnx"
    exported.save(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = {entry.name: entry for entry in session.get_inputs()}
    (directory / "inputs.json").write_text(json.dumps({name: entry.shape for name, entry in inputs.items()}, indent=1))
    difference = max(_difference(session, list(inputs), module, family, seed) for seed in range(3))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"ONNX pictures differ from torch's by {difference:.1e}, more than {TOLERANCE}; do not use {file}"
        )
    return difference


def _difference(session: Any, inputs: Sequence[str], module: _Pictures, family: ModelFamily, seed: int) -> float:
    """Return the most that a picture of other noise and another prompt differs by."""
    condition: Condition = family.text_encoder.encode([f"picture {seed}"])
    noise = noise_of_seeds([7 + seed], family.latent_shape)
    given = {"noise": noise, **condition}
    (found,) = session.run(None, {name: given[name].numpy() for name in inputs})
    with torch.no_grad():
        expected = module(noise, *(condition[name] for name in module.names))
    return float((torch.from_numpy(found) - expected).abs().max())
