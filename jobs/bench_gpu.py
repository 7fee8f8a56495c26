"""Measure steps at published sizes on a GPU: jobs/bench_gpu.py [--write PAGE]; needs the workbench, so a clone."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

HEADING = "## Time and memory at published sizes: GPU"


def main() -> int:
    """Measure on the GPU, print the tables and write them into a page if asked."""
    parser = argparse.ArgumentParser(description="Seconds and peak GiB of a step on random weights, in one process.")
    parser.add_argument("--minutes", type=float, default=7.0, help="steps that begin later are left out")
    parser.add_argument("--write", type=Path, help=f"a page whose part {HEADING!r} is written again")
    parser.add_argument("--tiny", action="store_true", help="tiny networks on the CPU: whether it runs at all")
    given = parser.parse_args()

    import torch  # takes seconds

    from workbench.benchmark import gpu, rival
    from workbench.benchmark.architecture import sdxl_like

    if not given.tiny and not torch.cuda.is_available():
        print("error: no GPU that torch can use; --tiny runs the same on the CPU with tiny networks", file=sys.stderr)
        return 1
    device = torch.device("cpu" if given.tiny else "cuda")
    models, cases, against, text = gpu.MODELS, gpu.CASES, rival.FLUX, (gpu.CLIP_L, gpu.CLIP_G)
    if given.tiny:
        models, against, text = {"a tiny model": sdxl_like(side=8, width=32, depth=1)}, rival.TINY, (gpu.TINY_TEXT,) * 2
        cases = [gpu.Case("a tiny model", way, 2) for way in gpu.REHEARSED]
    found = gpu.measure(models, cases, against, text, device, given.minutes, lambda line: print(line, flush=True))
    text = gpu.report(device, found, " ".join(["python jobs/bench_gpu.py", *sys.argv[1:]]))
    print(text)
    if given.write:
        given.write.write_text(replaced(given.write.read_text(), text))
    return 0


def replaced(page: str, part: str) -> str:
    """Return a page with another text under the heading, up to the next one of its level.

    Raises:
        ValueError: if the page has no such heading.
    """
    before, found, after = page.partition(f"{HEADING}\n")
    if not found:
        raise ValueError(f"the page has no heading {HEADING!r}")
    _, following, rest = after.partition("\n## ")
    return f"{before}{found}\n{part}\n{following}{rest}"


if __name__ == "__main__":
    sys.exit(main())
