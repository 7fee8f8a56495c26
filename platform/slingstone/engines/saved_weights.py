"""A generator's weights out of a checkpoint, whatever engine wrote it and however many ranks; without that engine."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from slingstone.engines.shards import no_code, read
from slingstone.step.ema import Fragment

Weights = Literal["ema", "raw"]


def saved_weights(checkpoint: Path, kind: Weights, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the trained weights by name, unrounded in fp32, on the CPU.

    Args:
        checkpoint: directory of a published checkpoint.
        kind: the average, or the weights as they were stepped.
        shapes: of the trained weights; fragments do not say theirs.

    Raises:
        ValueError: if the checkpoint lacks them, or they are another generator's.
    """
    found = _joined(_average(checkpoint), shapes) if kind == "ema" else _raw(checkpoint / "generator", shapes)
    wrong = {
        name for name in shapes.keys() | found.keys() if name not in found or found[name].shape != shapes.get(name)
    }
    if wrong:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r}: {len(wrong)} weights are missing, added or of other shape, the first is "
            f"{min(wrong)}; export it with the configuration that it was trained with"
        )
    return {name: weight.float() for name, weight in found.items()}


def _average(checkpoint: Path) -> Iterator[tuple[str, Fragment]]:
    files = sorted(checkpoint.glob("ema_*.pt"))
    if not files:
        raise ValueError(f"checkpoint {str(checkpoint)!r} has no average; give a checkpoint of a run")
    for file in files:
        yield from ((name, Fragment(*fragment)) for name, fragment in read(file).items())


def _joined(fragments: Iterable[tuple[str, Fragment]], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return whole weights; one of which fragments are missing stays flat."""
    found: dict[str, list[Fragment]] = defaultdict(list)
    for name, fragment in fragments:
        found[name].append(fragment)
    whole = {}
    for name, pieces in found.items():
        flat = torch.cat([piece.values for piece in sorted(pieces, key=lambda piece: piece.start)])
        fits = name in shapes and shapes[name].numel() == len(flat)
        whole[name] = flat.view(shapes[name]) if fits else flat
    return whole


def _raw(engine: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    if (engine / "torch_engine.pt").is_file():
        state = read(engine / "torch_engine.pt")
        return state["module"] | state["masters"]
    engine = engine / "engine"
    if (engine / "zero_pp_rank_0_mp_rank_00_model_states.pt").is_file():
        return _of_stage_3(engine)
    ranks = sorted(engine.glob("*_optim_states.pt"), key=_rank)
    if ranks:
        return _joined(_masters(ranks), shapes)
    return read(engine / "mp_rank_00_model_states.pt")["module"]


def _rank(file: Path) -> int:
    """Return the rank that wrote a file of DeepSpeed's, [bf16_]zero_pp_rank_<rank>_mp_rank_00_optim_states.pt."""
    return int(file.name.split("pp_rank_")[1].split("_")[0])


def _masters(files: Iterable[Path]) -> Iterator[tuple[str, Fragment]]:
    """Yield the fragments of ZeRO-1 and 2, in the order of the ranks, each of which names its own."""
    passed: Counter[str] = Counter()
    for file in files:
        state = read(file)["optimizer_state_dict"]
        for flat, held in zip(state["single_partition_of_fp32_groups"], state["param_slice_mappings"], strict=True):
            for name, address in held.items():
                values = flat.detach()[address.start : address.start + address.numel]
                yield name, Fragment(passed[name], values)
                passed[name] += address.numel


def _of_stage_3(engine: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        with no_code():
            found: Any = get_fp32_state_dict_from_zero_checkpoint(str(engine.parent), tag=engine.name)
        return found
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {str(engine)!r} has no generator that can be read: {error}") from error
