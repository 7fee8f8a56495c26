from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
)

from reward_services.models import load
from reward_services.models.head import RewardHead
from reward_services.models.hps import HPS
from reward_services.models.imagereward import ImageReward
from reward_services.models.layouts import (
    imagereward_to_transformers,
    open_clip_to_transformers,
    transformers_to_imagereward,
    transformers_to_open_clip,
)
from reward_services.models.pickscore import PickScore
from reward_services.models.writers import write_hps, write_imagereward, write_pickscore
from reward_services.spec import RewardSpec

Spec = Callable[..., RewardSpec]


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _published(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def test_open_clip_names_and_shapes_are_those_of_the_published_checkpoint(rewards_root: Path):
    state = _published(rewards_root / "hps" / "HPS_v2.1_compressed.pt")["state_dict"]
    # The published ViT-H/14 has 686 tensors: 14 outside the blocks and 12 in each of its 32 + 24 blocks.
    assert len(state) == 14 + 12 * (2 + 2)
    assert state["visual.transformer.resblocks.1.attn.in_proj_weight"].shape == (96, 32)
    assert state["visual.proj"].shape == (32, 16)
    assert state["text_projection"].shape == (24, 16)


def test_the_full_size_hps_has_the_published_tensors_and_parameters():
    tower = {"num_attention_heads": 16, "hidden_act": "gelu"}
    with torch.device("meta"):  # shapes only: 986 M parameters
        model = CLIPModel(
            CLIPConfig(
                projection_dim=1024,
                vision_config=tower
                | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14},
                text_config=tower | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
            )
        )
    published = transformers_to_open_clip(model.state_dict())
    assert len(published) == 686
    assert sum(tensor.numel() for tensor in published.values()) == 986_109_441
    assert published["visual.proj"].shape == (1280, 1024)
    assert published["transformer.resblocks.23.attn.in_proj_weight"].shape == (3072, 1024)
    back = open_clip_to_transformers(published)
    assert {name: tensor.shape for name, tensor in back.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


def test_the_full_size_imagereward_has_the_published_tensors():
    with torch.device("meta"):
        vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224
            )
        )
        text = BlipTextModel(
            BlipTextConfig(num_attention_heads=12, encoder_hidden_size=1024, is_decoder=True), add_pooling_layer=False
        )
        head = RewardHead(768)
    published = transformers_to_imagereward(vision.state_dict(), text.state_dict(), head.state_dict())
    # The published file has five more, which the reward does not use: two projections with bias, one index buffer.
    assert len(published) == 625 - 5
    assert published["blip.visual_encoder.pos_embed"].shape == (1, 197, 1024)
    assert published["blip.text_encoder.encoder.layer.11.crossattention.self.key.weight"].shape == (768, 1024)
    assert published["blip.text_encoder.embeddings.word_embeddings.weight"].shape == (30524, 768)
    assert published["mlp.layers.0.weight"].shape == (1024, 768)


def test_open_clip_mapping_is_inverted_by_its_inverse(rewards_root: Path):
    published = _published(rewards_root / "hps" / "HPS_v2.1_compressed.pt")["state_dict"]
    assert _equal(transformers_to_open_clip(open_clip_to_transformers(published)), published)


def test_open_clip_mapping_reaches_every_weight_of_the_transformers_model(spec: Spec):
    model = load(spec("hps")).similarity.model
    assert _equal(open_clip_to_transformers(transformers_to_open_clip(model.state_dict())), model.state_dict())


def test_imagereward_mapping_is_inverted_by_its_inverse(rewards_root: Path):
    published = _published(rewards_root / "imagereward" / "ImageReward.pt")
    # The published checkpoint has 12 tensors a ViT block, 26 a BERT block, 10 in the head and 4 + 4 around them.
    assert len(published) == 2 * 12 + 2 * 26 + 10 + (4 + 2) + 4
    assert _equal(transformers_to_imagereward(*imagereward_to_transformers(published)), published)


def test_unused_tensors_of_the_published_imagereward_are_ignored(rewards_root: Path):
    published = _published(rewards_root / "imagereward" / "ImageReward.pt")
    extra = {
        "blip.vision_proj.weight": torch.zeros(256, 32),
        "blip.text_proj.bias": torch.zeros(256),
        "blip.text_encoder.embeddings.position_ids": torch.arange(64)[None],
    }
    for with_extra, without in zip(
        imagereward_to_transformers(published | extra), imagereward_to_transformers(published), strict=True
    ):
        assert _equal(with_extra, without)


@pytest.mark.parametrize("name", ["visual.trunk.blocks.0.norm1.weight", "transformer.resblocks.0.mlp.gate.weight"])
def test_a_foreign_open_clip_weight_is_named(name: str):
    with pytest.raises(ValueError, match=name):
        open_clip_to_transformers({name: torch.zeros(1)})


@pytest.mark.parametrize("name", ["clip.visual.proj", "blip.visual_encoder.blocks.0.ls1.weight"])
def test_a_foreign_imagereward_weight_is_named(name: str):
    with pytest.raises(ValueError, match=name):
        imagereward_to_transformers({name: torch.zeros(1)})


def test_a_written_reward_scores_as_the_one_in_memory(spec: Spec, tmp_path: Path):
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    prompts = ["a red circle", "it's a blue square"]

    pickscore: PickScore = load(spec("pickscore"))
    write_pickscore(pickscore.similarity.model, pickscore.similarity.tokenizer, tmp_path / "p")
    hps: HPS = load(spec("hps"))
    write_hps(hps.similarity.model, hps.similarity.tokenizer, tmp_path / "h")
    reward: ImageReward = load(spec("imagereward"))
    write_imagereward(reward.vision, reward.text, reward.mlp, reward.tokenizer, tmp_path / "i")

    for model, kind, directory in ((pickscore, "pickscore", "p"), (hps, "hps", "h"), (reward, "imagereward", "i")):
        again = load(spec(kind, checkpoint=str(tmp_path / directory)))
        assert torch.equal(again.score(images, prompts), model.score(images, prompts))


def test_a_reward_written_in_half_precision_is_read_in_single(spec: Spec, tmp_path: Path):
    hps: HPS = load(spec("hps"))
    write_hps(hps.similarity.model, hps.similarity.tokenizer, tmp_path, dtype=torch.float16)
    again: HPS = load(spec("hps", checkpoint=str(tmp_path)))
    for name, weight in again.similarity.model.state_dict().items():
        assert torch.equal(weight, hps.similarity.model.state_dict()[name].half().float())


def test_a_tower_that_the_layout_cannot_express_is_refused(spec: Spec, tmp_path: Path):
    hps: HPS = load(spec("hps"))
    config = hps.similarity.model.config.to_dict()
    config["vision_config"]["hidden_act"] = "relu"
    other = CLIPModel(type(hps.similarity.model.config).from_dict(config))
    with pytest.raises(ValueError, match="hidden_act"):
        write_hps(other, hps.similarity.tokenizer, tmp_path)

    reward: ImageReward = load(spec("imagereward"))
    vision_config = type(reward.vision.config).from_dict({**reward.vision.config.to_dict(), "layer_norm_eps": 1e-5})
    with pytest.raises(ValueError, match="layer_norm_eps"):
        write_imagereward(BlipVisionModel(vision_config), reward.text, reward.mlp, reward.tokenizer, tmp_path)
    assert isinstance(reward.text, BlipTextModel)
