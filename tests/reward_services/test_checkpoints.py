"""Wrong, truncated and odd checkpoints: one message that names the file, and never a half-loaded model."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer, CLIPTokenizer

from reward_services.contents import local_path
from reward_services.models import load
from reward_services.models.checkpoints import fetch, read_state_dict
from reward_services.models.head import RewardHead
from reward_services.models.hps import HPS, PUBLISHED_FILE, HPSv2
from reward_services.models.imagereward import ImageReward
from reward_services.models.pickscore import PickScore
from reward_services.spec import RewardSpec

Spec = Callable[..., RewardSpec]
WEIGHTS = {
    "pickscore": "model.safetensors",
    "hps": PUBLISHED_FILE,
    "imagereward": "ImageReward.pt",
    "clip_score": "model.safetensors",
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth",
}
KINDS = tuple(WEIGHTS)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _copy(rewards_root: Path, kind: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rewards_root / kind, tmp_path / kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.6, 0.99])
def test_a_truncated_file_is_named(spec: Spec, rewards_root: Path, tmp_path: Path, kind: str, share: float):
    directory = _copy(rewards_root, kind, tmp_path)
    weights = directory / WEIGHTS[kind]
    os.truncate(weights, int(weights.stat().st_size * share))
    with pytest.raises(ValueError, match=rf"reward '{kind}': checkpoint '.*{kind}.*fetch it again"):
        load(spec(kind, checkpoint=str(directory)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_directory_is_named(spec: Spec, tmp_path: Path, kind: str):
    with pytest.raises(ValueError, match=rf"reward '{kind}': checkpoint '.*nowhere' is neither"):
        load(spec(kind, checkpoint=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_of_something_else_is_refused(spec: Spec, tmp_path: Path, kind: str):
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(ValueError, match=rf"reward '{kind}'"):
        load(spec(kind, checkpoint=str(tmp_path)))


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path):
    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    path = tmp_path / "weights.pt"
    torch.save({"state_dict": Attack()}, path)
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        read_state_dict(path)
    assert not (tmp_path / "pwned").exists()


def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path):
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        read_state_dict(tmp_path / "list.pt")


@pytest.mark.parametrize("kind", ["hps", "imagereward"])
@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_a_weight_too_few_too_many_or_misshapen_is_named(
    spec: Spec, rewards_root: Path, tmp_path: Path, kind: str, damage: str
):
    directory = _copy(rewards_root, kind, tmp_path)
    state = read_state_dict(directory / WEIGHTS[kind])
    name = {"hps": "ln_final.weight", "imagereward": "blip.visual_encoder.norm.weight"}[kind]
    if damage == "missing":
        del state[name]
    elif damage == "unknown":
        state[name.replace("weight", "gate")] = torch.zeros(1)
    else:
        state[name] = torch.zeros(7)
    torch.save(state, directory / WEIGHTS[kind])
    with pytest.raises(ValueError, match=r"norm|ln_final"):
        load(spec(kind, checkpoint=str(directory)))


@pytest.mark.parametrize("kind", ["hps", "imagereward"])
def test_a_state_dict_without_its_towers_is_refused(spec: Spec, rewards_root: Path, tmp_path: Path, kind: str):
    directory = _copy(rewards_root, kind, tmp_path)
    first = dict(list(read_state_dict(directory / WEIGHTS[kind]).items())[:1])
    torch.save(first, directory / WEIGHTS[kind])
    with pytest.raises(ValueError, match="not a whole"):
        load(spec(kind, checkpoint=str(directory)))


def test_pickscore_with_missing_or_unknown_weights_is_refused(spec: Spec, rewards_root: Path, tmp_path: Path):
    directory = _copy(rewards_root, "pickscore", tmp_path)
    config = json.loads((directory / "config.json").read_text())
    for layers, count in ((3, "16 weights missing"), (1, "16 unknown")):
        config["vision_config"]["num_hidden_layers"] = layers
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=count):
            load(spec("pickscore", checkpoint=str(directory)))


def test_older_pickscore_files_with_position_ids_load(spec: Spec, rewards_root: Path, tmp_path: Path):
    directory = _copy(rewards_root, "pickscore", tmp_path)
    model = load(spec("pickscore"))
    state = model.similarity.model.state_dict()
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin")
    images = torch.rand(1, 3, 24, 24)
    again = load(spec("pickscore", checkpoint=str(directory)))
    # Weights that lie elsewhere in memory may be added up in another order.
    torch.testing.assert_close(again.score(images, ["red"]), model.score(images, ["red"]), rtol=1e-6, atol=1e-6)


def test_hps_loads_from_a_file_a_directory_or_a_directory_with_one_other_file(rewards_root: Path, tmp_path: Path):
    directory = _copy(rewards_root, "hps", tmp_path)
    images = torch.rand(1, 3, 24, 24)
    expected = HPS.load(directory).eval().score(images, ["red"])
    (directory / PUBLISHED_FILE).rename(directory / "HPS_v2_compressed.pt")
    assert torch.equal(HPS.load(directory).eval().score(images, ["red"]), expected)
    assert torch.equal(HPS.load(directory / "HPS_v2_compressed.pt").eval().score(images, ["red"]), expected)
    shutil.copy(directory / "HPS_v2_compressed.pt", directory / "another.pt")
    with pytest.raises(ValueError, match=r"holds 2 \.pt files"):
        HPS.load(directory)


def test_of_both_published_files_each_version_takes_its_own(rewards_root: Path, tmp_path: Path):
    directory = _copy(rewards_root, "hps", tmp_path)
    state = read_state_dict(directory / PUBLISHED_FILE)
    torch.save({"state_dict": state | {"visual.proj": -state["visual.proj"]}}, directory / HPSv2.published_file)
    images = torch.rand(1, 3, 24, 24)
    scores = [kind.load(directory).eval().score(images, ["red"]) for kind in (HPS, HPSv2)]
    assert torch.equal(scores[0], -scores[1])


def test_the_published_aesthetic_head_has_its_size_and_reads_beside_another_tower(
    spec: Spec, rewards_root: Path, tmp_path: Path
):
    # The published file has 3,714,759 bytes: 4 a parameter and some for names.
    assert 3_714_759 - 4 * sum(parameter.numel() for parameter in RewardHead(768).parameters()) < 4096
    directory = _copy(rewards_root, "aesthetic", tmp_path)
    weights = directory / WEIGHTS["aesthetic"]
    named = spec("aesthetic", checkpoint=str(weights.rename(directory / "head.pth")))
    images = torch.rand(1, 3, 24, 24)
    assert torch.equal(load(named).score(images, ["a"]), load(spec("aesthetic")).score(images, ["a"]))
    torch.save(RewardHead(768).state_dict(), directory / "head.pth")
    with pytest.raises(ValueError, match=r"embeddings of width 768, the CLIP model .* gives 16"):
        load(named)
    torch.save(dict(list(RewardHead(16).state_dict().items())[:4]), directory / "head.pth")
    with pytest.raises(ValueError, match="not a whole aesthetic head"):
        load(named)


def test_hps_on_the_hub_names_its_file(spec: Spec):
    with pytest.raises(ValueError, match="'xswu/HPSv2' is neither"):
        load(spec("hps", checkpoint="xswu/HPSv2/HPS_v2_compressed.pt"))


def test_heads_follow_open_clip_where_no_sidecar_says_otherwise(rewards_root: Path, tmp_path: Path):
    directory = _copy(rewards_root, "hps", tmp_path)
    assert HPS.load(directory).similarity.model.config.vision_config.num_attention_heads == 4
    (directory / "open_clip_config.json").unlink()
    config = HPS.load(directory).similarity.model.config
    assert config.vision_config.num_attention_heads == config.text_config.num_attention_heads == 1


def test_heads_of_the_published_towers_are_known():
    from reward_services.models.hps import _geometry

    def state(width: int, patch: int, image_size: int, text_width: int) -> dict[str, torch.Tensor]:
        empty = {"device": "meta"}
        return {
            "vision_model.embeddings.patch_embedding.weight": torch.empty(width, 3, patch, patch, **empty),
            "vision_model.embeddings.position_embedding.weight": torch.empty(
                (image_size // patch) ** 2 + 1, width, **empty
            ),
            "text_model.embeddings.token_embedding.weight": torch.empty(49408, text_width, **empty),
            "text_model.embeddings.position_embedding.weight": torch.empty(77, text_width, **empty),
            "vision_model.encoder.layers.0.mlp.fc1.weight": torch.empty(4 * width, width, **empty),
            "text_model.encoder.layers.0.mlp.fc1.weight": torch.empty(4 * text_width, text_width, **empty),
            "visual_projection.weight": torch.empty(1024, width, **empty),
        }

    config = _geometry(state(1280, 14, 224, 1024), {}, Path("HPS_v2.1_compressed.pt"))  # ViT-H/14
    assert (config.vision_config.num_attention_heads, config.vision_config.image_size) == (16, 224)
    assert (config.text_config.num_attention_heads, config.text_config.hidden_act) == (16, "gelu")


def test_imagereward_heads_follow_the_published_tower_where_no_sidecar_says_otherwise(
    rewards_root: Path, tmp_path: Path
):
    directory = _copy(rewards_root, "imagereward", tmp_path)
    assert ImageReward.load(directory).vision.config.num_attention_heads == 4
    (directory / "vision_config.json").unlink()
    assert ImageReward.load(directory).vision.config.num_attention_heads == 1


def test_a_tokenizer_may_lie_elsewhere(spec: Spec, rewards_root: Path, tmp_path: Path):
    directory = _copy(rewards_root, "hps", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    images = torch.rand(1, 3, 24, 24)
    elsewhere = load(spec("hps", checkpoint=str(directory), tokenizer=str(rewards_root / "tokenizer")))
    assert torch.equal(elsewhere.score(images, ["red"]), load(spec("hps")).score(images, ["red"]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "aesthetic"])
def test_without_any_tokenizer_the_message_says_where_one_was_sought(
    spec: Spec, rewards_root: Path, tmp_path: Path, kind: str
):
    directory = _copy(rewards_root, kind, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (directory / name).unlink(missing_ok=True)
    published = {
        "imagereward": "google-bert/bert-base-uncased",
        "clip_score": "openai/clip-vit-large-patch14",
    }.get(kind, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    with pytest.raises(ValueError, match=rf"tokenizer '{published}'"):
        load(spec(kind, checkpoint=str(directory)))


def test_a_tokenizer_that_ends_prompts_where_the_model_does_not_look_is_refused(rewards_root: Path):
    model = PickScore.load(rewards_root / "pickscore").similarity.model
    tokenizer = CLIPTokenizer.from_pretrained(str(rewards_root / "tokenizer"))
    model.config.text_config.eos_token_id = 49407
    with pytest.raises(ValueError, match="eos_token_id=49407"):
        PickScore(model, tokenizer)
    model.config.text_config.eos_token_id = 2  # the highest id, as the first published configurations meant it
    assert PickScore(model, tokenizer).similarity.model is model


def test_a_tokenizer_larger_than_the_model_is_refused(rewards_root: Path):
    reward = ImageReward.load(rewards_root / "imagereward")
    large = BertTokenizer(
        vocab={
            token: index
            for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(99))])
        }
    )
    with pytest.raises(ValueError, match="104 tokens"):
        ImageReward(reward.vision, reward.text, reward.mlp, large)
    clip = PickScore.load(rewards_root / "pickscore").similarity
    clip.model.config.text_config.vocab_size = 10
    with pytest.raises(ValueError, match="only 10"):
        PickScore(clip.model, clip.tokenizer)


def test_relative_paths_are_sought_from_the_working_directory_then_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    beside_package = local_path("reward_services/spec.py")
    assert beside_package is not None
    assert beside_package.name == "spec.py"
    (tmp_path / "reward_services").mkdir()
    (tmp_path / "reward_services" / "spec.py").touch()
    assert local_path("reward_services/spec.py") == (tmp_path / "reward_services" / "spec.py").resolve()
    assert local_path("nowhere/at/all") is None


def test_a_file_missing_from_a_directory_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no file 'med_config\.json'"):
        fetch(tmp_path, "med_config.json")
