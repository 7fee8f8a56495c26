"""Each reward against a straightforward computation from its published file."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BertTokenizer, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from reward_services.client import InProcessClient
from reward_services.gradient import differentiable, score_and_gradient
from reward_services.models import load
from reward_services.preprocess import CLIP_MEAN, CLIP_STD, hps_preprocess, imagereward_preprocess
from reward_services.spec import RewardSpec

Spec = Callable[..., RewardSpec]
KINDS = ("pickscore", "hps", "imagereward", "clip_score", "aesthetic")
PROMPTS = ["a red circle", "it's a blue square on green", "green"]
VISION_HEADS, TEXT_HEADS = 4, 3


@pytest.fixture
def images() -> Tensor:
    """Three pictures on the 8-bit grid, of another size and shape than the models'."""
    return (torch.rand(3, 3, 31, 44, generator=torch.Generator().manual_seed(0)) * 255).round() / 255


def _block(x: Tensor, state: dict[str, Tensor], prefix: str, heads: int, mask: Tensor | None = None) -> Tensor:
    """One pre-norm block of open_clip, by torch's own fused attention."""

    def of(name: str) -> Tensor:
        return state[f"{prefix}.{name}"]

    y = F.layer_norm(x, x.shape[-1:], of("ln_1.weight"), of("ln_1.bias")).transpose(0, 1)
    attended, _ = F.multi_head_attention_forward(
        y,
        y,
        y,
        x.shape[-1],
        heads,
        of("attn.in_proj_weight"),
        of("attn.in_proj_bias"),
        None,
        None,
        False,
        0.0,
        of("attn.out_proj.weight"),
        of("attn.out_proj.bias"),
        attn_mask=mask,
        need_weights=False,
    )
    x = x + attended.transpose(0, 1)
    y = F.layer_norm(x, x.shape[-1:], of("ln_2.weight"), of("ln_2.bias"))
    y = F.linear(F.gelu(F.linear(y, of("mlp.c_fc.weight"), of("mlp.c_fc.bias"))), of("mlp.c_proj.weight"))
    return x + y + of("mlp.c_proj.bias")


def _open_clip_cosine(state: dict[str, Tensor], pixels: Tensor, tokens: Tensor) -> Tensor:
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=6).flatten(2).transpose(1, 2)
    x = (
        torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
        + state["visual.positional_embedding"]
    )
    x = F.layer_norm(x, x.shape[-1:], state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
    for layer in range(2):
        x = _block(x, state, f"visual.transformer.resblocks.{layer}", VISION_HEADS)
    x = F.layer_norm(x[:, 0], x.shape[-1:], state["visual.ln_post.weight"], state["visual.ln_post.bias"])
    image = F.normalize(x @ state["visual.proj"], dim=-1)

    y = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    causal = torch.full((77, 77), -torch.inf).triu(1)
    for layer in range(2):
        y = _block(y, state, f"transformer.resblocks.{layer}", TEXT_HEADS, causal)
    y = F.layer_norm(y, y.shape[-1:], state["ln_final.weight"], state["ln_final.bias"])
    text = F.normalize(y[torch.arange(len(y)), tokens.argmax(dim=-1)] @ state["text_projection"], dim=-1)
    return torch.diagonal(image @ text.T)


def test_hps_is_the_cosine_of_open_clip(spec: Spec, rewards_root: Path, images: Tensor):
    state = torch.load(rewards_root / "hps" / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    tokenizer = CLIPTokenizer.from_pretrained(str(rewards_root / "tokenizer"))
    # open_clip pads with zeros; causal attention read at the first end-of-text token cannot see the padding.
    rows = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    tokens = torch.tensor([row + [0] * (77 - len(row)) for row in rows])
    leaf = images.clone().requires_grad_(True)
    expected = _open_clip_cosine(state, hps_preprocess(24, "exact")(leaf), tokens)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)

    scores, gradient = score_and_gradient(load(spec("hps")), images, PROMPTS)
    torch.testing.assert_close(scores, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_pickscore_is_the_diagonal_of_the_transformers_logits(spec: Spec, rewards_root: Path, images: Tensor):
    directory = str(rewards_root / "pickscore")
    model = CLIPModel.from_pretrained(directory).eval()
    pictures = [Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for image in images]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    pixels = torch.as_tensor(np.array(processor(pictures)["pixel_values"]))
    tokens = CLIPTokenizer.from_pretrained(directory)(PROMPTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = torch.diagonal(model(**tokens, pixel_values=pixels).logits_per_image)

    scores, _ = score_and_gradient(load(spec("pickscore")), images, PROMPTS)
    # Up to .1 % of the pixels differ by one step of the 8-bit grid after PIL's fixed-point resizing.
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-2)

    square = images[..., :24, :24].contiguous()
    leaf = square.clone().requires_grad_(True)
    mean, std = (torch.tensor(processor.to_dict()[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    expected = torch.diagonal(model(**tokens, pixel_values=(leaf - mean) / std).logits_per_image)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    scores, gradient = score_and_gradient(load(spec("pickscore")), square, PROMPTS)
    torch.testing.assert_close(scores, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    logits = split(query) @ split(key).transpose(-1, -2) / math.sqrt(query.shape[-1] // heads)
    weights = (logits if mask is None else logits + mask).softmax(dim=-1)
    return (weights @ split(value)).transpose(1, 2).flatten(2)


def _imagereward(state: dict[str, Tensor], pixels: Tensor, tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """ImageReward as its paper and BLIP describe it, on the flat published state dict."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    vit, bert = "blip.visual_encoder", "blip.text_encoder"
    x = F.conv2d(pixels, state[f"{vit}.patch_embed.proj.weight"], state[f"{vit}.patch_embed.proj.bias"], stride=6)
    x = torch.cat([state[f"{vit}.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + state[f"{vit}.pos_embed"]
    for layer in range(2):
        block = f"{vit}.blocks.{layer}"
        query, key, value = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, dim=-1)
        x = x + linear(_attention(query, key, value, VISION_HEADS), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    patches = norm(x, f"{vit}.norm", 1e-6)

    words = state[f"{bert}.embeddings.word_embeddings.weight"][tokens]
    y = words + state[f"{bert}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    y = norm(y, f"{bert}.embeddings.LayerNorm", 1e-12)
    padding = (1 - attention_mask[:, None, None].float()) * -10000.0
    for layer in range(2):
        for kind, source, mask in (("attention", None, padding), ("crossattention", patches, None)):
            part = f"{bert}.encoder.layer.{layer}.{kind}"
            key_value = y if source is None else source
            attended = _attention(
                linear(y, f"{part}.self.query"),
                linear(key_value, f"{part}.self.key"),
                linear(key_value, f"{part}.self.value"),
                TEXT_HEADS,
                mask,
            )
            y = norm(linear(attended, f"{part}.output.dense") + y, f"{part}.output.LayerNorm", 1e-12)
        part = f"{bert}.encoder.layer.{layer}"
        hidden = linear(F.gelu(linear(y, f"{part}.intermediate.dense")), f"{part}.output.dense")
        y = norm(hidden + y, f"{part}.output.LayerNorm", 1e-12)
    reward = y[:, 0]
    for layer in (0, 2, 4, 6, 7):
        reward = linear(reward, f"mlp.layers.{layer}")
    return (reward.squeeze(-1) - 0.16717362830052426) / 1.0333394966054072


def test_imagereward_is_blip_and_an_mlp_on_the_first_token(spec: Spec, rewards_root: Path, images: Tensor):
    state = torch.load(rewards_root / "imagereward" / "ImageReward.pt", weights_only=True)
    tokenizer = BertTokenizer.from_pretrained(str(rewards_root / "bert"))
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    leaf = images.clone().requires_grad_(True)
    pixels = imagereward_preprocess(24, "exact")(leaf)
    expected = _imagereward(state, pixels, tokens.input_ids, tokens.attention_mask)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)

    scores, gradient = score_and_gradient(load(spec("imagereward")), images, PROMPTS)
    torch.testing.assert_close(scores, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def _embeddings(directory: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised embeddings of pictures at the model's own size and of PROMPTS, by transformers."""
    tokens = CLIPTokenizer.from_pretrained(str(directory))(PROMPTS, padding=True, return_tensors="pt")
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    output = CLIPModel.from_pretrained(str(directory)).eval()(**tokens, pixel_values=(images - mean) / std)
    return output.image_embeds, output.text_embeds


def test_clip_score_is_the_cosine_of_transformers_embeddings(spec: Spec, rewards_root: Path, images: Tensor):
    leaf = images[..., :24, :24].clone().requires_grad_(True)
    pictures, texts = _embeddings(rewards_root / "clip_score", leaf)
    expected = F.cosine_similarity(pictures, texts)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)

    scores, gradient = score_and_gradient(load(spec("clip_score")), leaf.detach(), PROMPTS)
    torch.testing.assert_close(scores, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


def test_aesthetic_is_five_matrices_on_the_normalised_embedding(spec: Spec, rewards_root: Path, images: Tensor):
    state = torch.load(rewards_root / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth", weights_only=True)
    leaf = images[..., :24, :24].clone().requires_grad_(True)
    expected, _ = _embeddings(rewards_root / "aesthetic", leaf)
    for layer in (0, 2, 4, 6, 7):
        expected = expected @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)

    scores, gradient = score_and_gradient(load(spec("aesthetic")), leaf.detach(), PROMPTS)
    torch.testing.assert_close(scores, expected.detach()[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(load(spec("aesthetic")).score(leaf, ["on", "on", "a"]), scores)


def test_hps_v2_is_another_file_of_the_same_architecture(spec: Spec, rewards_root: Path, images: Tensor):
    assert [path.name for path in (rewards_root / "hps_v2").glob("*.pt")] == ["HPS_v2_compressed.pt"]
    assert torch.equal(load(spec("hps_v2")).score(images, PROMPTS), load(spec("hps")).score(images, PROMPTS))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_directional_derivative_in_double_precision(spec: Spec, kind: str, images: Tensor):
    model = load(spec(kind, preprocess="smooth")).double()
    generator = torch.Generator().manual_seed(2)
    x = images.double()
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    _, gradient = score_and_gradient(model, x, PROMPTS)
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (model.score(x + sign * step * direction, PROMPTS) for sign in (1, -1))
    # Central differences: error of order step^2 from the third derivative, 1e-16 / step from rounding.
    torch.testing.assert_close(
        (gradient * direction).sum(dim=(1, 2, 3)), (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_reward_passes_gradcheck_through_the_client(spec: Spec, kind: str, images: Tensor):
    client = InProcessClient(load(spec(kind, preprocess="smooth")).double())

    def scores(x: Tensor) -> Tensor:
        return differentiable(x, client.submit(x, PROMPTS[:2]))

    leaf = images[:2].double().requires_grad_(True)
    assert torch.autograd.gradcheck(scores, (leaf,), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["exact", "smooth"])
def test_a_batch_equals_a_loop(spec: Spec, kind: str, mode: str, images: Tensor):
    model = load(spec(kind, preprocess=mode))
    scores, gradient = score_and_gradient(model, images, PROMPTS)
    alone = [score_and_gradient(model, images[i : i + 1], PROMPTS[i : i + 1]) for i in range(len(images))]
    # Matrix products of another shape may add in another order.
    torch.testing.assert_close(scores, torch.cat([score for score, _ in alone]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, torch.cat([part for _, part in alone]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_depends_on_its_own_picture_and_prompt_only(spec: Spec, kind: str, images: Tensor):
    model = load(spec(kind))
    before, gradient = score_and_gradient(model, images, PROMPTS)
    changed = images.clone()
    changed[1:] = 1 - changed[1:]
    after, gradient_after = score_and_gradient(model, changed, [PROMPTS[0], "on", "a"])
    assert torch.equal(before[0], after[0])
    assert torch.equal(gradient[0], gradient_after[0])
    assert (before[1:] != after[1:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_better_picture_follows_the_gradient(spec: Spec, kind: str, images: Tensor):
    model = load(spec(kind))
    scores, gradient = score_and_gradient(model, images, PROMPTS)
    step = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    moved, _ = score_and_gradient(model, (images + step).clamp(0, 1), PROMPTS)
    assert (moved > scores).all(), "exact preprocessing too has a useful gradient"


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_towers_keep_a_single_precision_head(spec: Spec, kind: str, images: Tensor):
    single, half = load(spec(kind)), load(spec(kind, dtype="bfloat16"))
    scores, gradient = score_and_gradient(half, images, PROMPTS)
    assert scores.dtype == gradient.dtype == torch.float32
    expected, expected_gradient = score_and_gradient(single, images, PROMPTS)
    # bfloat16 has 8 bits; two layers deep an embedding is good to about 2 %, a cosine's slope to that of its angle.
    spread = math.exp(3.0) if kind == "pickscore" else 1.0
    assert (scores - expected).abs().max() < 0.03 * spread
    assert F.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_can_be_trained_and_then_served_frozen(spec: Spec, kind: str, images: Tensor):
    model = load(spec(kind, preprocess="smooth"))
    before = model.score(images, PROMPTS)
    model.requires_grad_(True).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = -model.score(images, PROMPTS).sum()
    loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == (["similarity.model.logit_scale"] if kind in ("hps", "clip_score") else [])
    optimizer.step()
    model.requires_grad_(False).eval()
    assert (model.score(images, PROMPTS).sum() > before.sum()).item(), "stale text embeddings would hide the step"
