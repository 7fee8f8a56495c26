"""Measure steps at published sizes on a GPU: python jobs/bench_gpu.py [--tiny] [--device cuda]; prints Markdown."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed


def main() -> int:
    """Take steps of random networks of SDXL's and SD1.5's size in each way, and time one step against fifty."""
    parser = argparse.ArgumentParser(description="Seconds and peak GiB of a training step, and one-step latency.")
    parser.add_argument("--tiny", action="store_true", help="tiny networks: tries the job itself, on any device")
    parser.add_argument("--device", help="default: cuda, and cpu for --tiny")
    given = parser.parse_args()

    import torch

    from slingstone.runtime.benchmark import gpu

    device = given.device or ("cpu" if given.tiny else "cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        print("error: there is no CUDA device; --tiny tries the job on the CPU", file=sys.stderr)
        return 1
    gpu.report(gpu.plan(given.tiny, device), say=lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
