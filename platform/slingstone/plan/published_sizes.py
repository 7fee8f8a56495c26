"""Published pipelines by hub id: their weights, FLOPs and activations. Imports no torch."""

from dataclasses import dataclass
from typing import NamedTuple


class GraphBytes(NamedTuple):
    """Bytes of one image's graph: between forward and backward pass, and at the worst moment."""

    held: int
    peak: int


class Activations(NamedTuple):
    """One image's graph through each part.

    Attributes:
        trained: a network whose weights get gradients.
        frozen: the same network, differentiated in its input alone.
        decoder: the decoder, differentiated in its latents.
    """

    trained: GraphBytes
    frozen: GraphBytes
    decoder: GraphBytes


class Work(NamedTuple):
    """FLOPs of one picture's forward pass through the denoising network and the decoder, and the picture's side."""

    network: float
    decoder: float
    side: int


class Prompt(NamedTuple):
    """Tokens to which a prompt is padded, and how many numbers its embeddings are."""

    tokens: int
    numbers: int


@dataclass(frozen=True)
class Published:
    """Weights of a published pipeline's network, autoencoder and text encoders, and what a prompt and a picture take.

    Attributes:
        plain: activations of a bf16 network and an fp32 decoder, without gradient checkpointing.
        checkpointed: with it.
        adapter: weights of an adapter of rank 1 on every attention projection.
        projections: weights of those projections.
        adapted: graph of the network where only such adapters, of rank 64, are trained.
        adapted_checkpointed: with checkpointing.
    """

    work: Work
    network: int
    vae: int
    text: int
    prompt: Prompt
    plain: Activations
    checkpointed: Activations
    adapter: int
    projections: int
    adapted: GraphBytes
    adapted_checkpointed: GraphBytes


_SD15 = Published(
    work=Work(0.8033e12, 2.5145e12, 512),
    network=859_520_964,
    vae=83_653_863,
    text=123_060_480,
    prompt=Prompt(77, 77 * 768),
    plain=Activations(
        GraphBytes(936_603_648, 952_332_164),
        GraphBytes(774_828_928, 801_043_204),
        GraphBytes(5_967_535_616, 6_101_753_352),
    ),
    checkpointed=Activations(
        GraphBytes(154_547_200, 241_513_604),
        GraphBytes(154_538_880, 233_640_964),
        GraphBytes(858_849_536, 3_274_769_928),
    ),
    adapter=199_296,
    projections=93_511_680,
    adapted=GraphBytes(818_532_352, 844_746_628),
    adapted_checkpointed=GraphBytes(146_792_704, 234_303_108),
)
_SDXL = Published(
    work=Work(6.7612e12, 10.4704e12, 1024),
    network=2_567_463_684,
    vae=83_653_863,
    text=123_060_480 + 694_659_840,
    prompt=Prompt(77, 77 * 2048 + 1280),
    plain=Activations(
        GraphBytes(6_888_591_232, 6_919_920_520),
        GraphBytes(5_336_636_160, 5_367_968_648),
        GraphBytes(23_870_119_424, 24_406_990_344),
    ),
    checkpointed=Activations(
        GraphBytes(587_357_056, 724_297_476),
        GraphBytes(503_451_904, 629_904_004),
        GraphBytes(3_435_397_376, 13_099_075_080),
    ),
    adapter=1_451_520,
    projections=955_187_200,
    adapted=GraphBytes(5_665_977_728, 5_728_901_152),
    adapted_checkpointed=GraphBytes(464_445_568, 548_331_780),
)
_PIXART = Published(
    work=Work(1.2360e12, 2.5145e12, 512),
    network=610_856_096,
    vae=83_653_863,
    text=4_762_310_656,
    prompt=Prompt(120, 120 * 4096),
    plain=_SD15.plain._replace(
        trained=GraphBytes(1_548_490_496, 1_563_822_340), frozen=GraphBytes(815_286_528, 834_150_404)
    ),
    checkpointed=_SD15.checkpointed._replace(
        trained=GraphBytes(75_050_480, 143_003_380), frozen=GraphBytes(68_786_160, 114_321_140)
    ),
    adapter=516_096,
    projections=297_271_296,
    adapted=GraphBytes(968_259_584, 987_123_464),
    adapted_checkpointed=GraphBytes(68_851_696, 119_922_424),
)
PUBLISHED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD15,
    "stabilityai/stable-diffusion-xl-base-1.0": _SDXL,
    "PixArt-alpha/PixArt-XL-2-512x512": _PIXART,
}
"""Counted by `networks.footprint` and torch on the architectures that these pipelines' configurations describe."""
