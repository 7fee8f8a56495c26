"""What a deployed service says of the tiny checkpoints, in the form in which `reference` writes it."""

import json
from pathlib import Path

import torch
from PIL import Image
from ray import serve
from safetensors.torch import save_file
from torch import Tensor

from reward_services.client import ServeClient
from reward_services.deployment import build
from reward_services.spec import RewardSpec
from workbench.parity.tiny import PROMPTS, as_tensor

_DISTRIBUTIONS = ("image-reward", "hpsv2x")


def judge(spec: RewardSpec, pictures: Path, result: Path) -> None:
    """Deploy a reward on the Ray cluster of this process, have it judge every picture, and delete it.

    Args:
        spec: of the service.
        pictures: directory that `tiny.write_pictures` wrote.
        result: file for the scores and gradients.

    Raises:
        RuntimeError: no replica started.
        RewardError: it did not answer.
    """
    serve.run(build(spec), name=spec.app_name, route_prefix=None)
    try:
        client = ServeClient(spec.name, deadline_s=300.0)
        versions = client.describe()["versions"]
        tensors: dict[str, Tensor] = {}
        scores = []
        for index, prompt in enumerate(PROMPTS):
            images = as_tensor(Image.open(pictures / f"{index}.png"))
            score, tensors[f"gradient.{index}"] = client.submit(images, [prompt]).result()
            scores.append(score[0])
    finally:
        serve.delete(spec.app_name)
    tensors["scores"] = torch.stack(scores).double()
    packages = [f"{name}=={versions[name]}" for name in _DISTRIBUTIONS if name in versions]
    described = {"package": " ".join(packages) or "native", "torchvision": versions.get("torchvision", "stand-in")}
    save_file(tensors, result, metadata={"upstream": json.dumps(described)})
