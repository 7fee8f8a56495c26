"""Export a checkpoint: python jobs/export.py RUN_DIRECTORY TARGET [--checkpoint NAME] [--weights ema|raw] ..."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed


def main() -> int:
    """Write a pipeline that diffusers runs in one step, with its model card."""
    parser = argparse.ArgumentParser(description="Export a run's generator as a diffusers pipeline.")
    parser.add_argument("run", type=Path, help="directory of the run, such as outputs/align/scenes")
    parser.add_argument("target", type=Path, help="directory to write")
    parser.add_argument("--checkpoint", help="name of one of the run's checkpoints; default: the latest")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="the average, or the latest weights")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the files")
    parser.add_argument(
        "--onnx", action="store_true", help="generator and decoder as ONNX, too; needs the extra `onnx`"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the export to the Hugging Face hub")
    parser.add_argument("--public", action="store_true", help="let everybody see what --push creates")
    given = parser.parse_args()
    try:
        from slingstone.export import (
            hub,  # imports torch, which takes seconds
            request,  # imports torch, which takes seconds
        )

        asked = request.Request(given.run, given.target, given.checkpoint, given.weights, given.precision, given.onnx)
        request.export(asked, say=lambda line: print(line, flush=True))
        if given.push:
            print(f"pushed    {hub.push(given.target, given.push, private=not given.public)}", flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
