"""Demand that the native rewards equal the upstream packages: `python jobs/parity.py DIRECTORY [GOLDEN]`.

DIRECTORY keeps the packages' environments. With GOLDEN, upstream's results are also kept there, for the tests.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from reward_services.parity.compare import Comparison, compare
from reward_services.parity.tiny import write_checkpoints, write_pictures
from reward_services.spec import RewardKind
from reward_services.upstream.environment import prepare

KINDS: dict[RewardKind, str] = {
    "imagereward": "imagereward",
    "clip_score": "imagereward",
    "aesthetic": "imagereward",
    "hps": "hps",
}


def main() -> None:
    """Make the environments, run both sides, print a row a reward, and fail if one differs."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    root, golden = Path(sys.argv[1]).absolute(), Path(sys.argv[2]) if len(sys.argv) == 3 else None
    files = {name: root / name for name in ("checkpoints", "pictures", "results")}
    for path in files.values():
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    write_checkpoints(files["checkpoints"])
    write_pictures(files["pictures"])

    found: list[Comparison] = []
    for kind, package in KINDS.items():
        result = files["results"] / f"{kind}.safetensors"
        arguments = [kind, files["checkpoints"], files["pictures"], result]
        python = prepare(package, root / package)
        subprocess.run([python, "-W", "ignore", "-m", "reward_services.parity.reference", *arguments], check=True)
        found.append(compare(kind, files["checkpoints"], files["pictures"], result))
        if golden is not None:
            golden.mkdir(parents=True, exist_ok=True)
            shutil.copy(result, golden)
    for row in found:
        print(
            f"{row.kind:12} {row.upstream['package']:18} torchvision {row.upstream['torchvision']:9} "
            f"score {row.score:.1e}  gradient {row.gradient:.1e}  {'equal' if row.equal else 'DIFFERENT'}"
        )
    print(f"hpsv2==1.2.0: {_original_hpsv2(root)}")
    if not all(row.equal for row in found):
        sys.exit("native and upstream differ")


def _original_hpsv2(root: Path) -> str:
    """Return how far the package that hpsv2x mends can be imported."""
    target = root / "hpsv2"
    python = prepare("hps", root / "hps")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", target, "hpsv2==1.2.0"]
    subprocess.run(install, check=True)
    program = (
        f"import sys; sys.path.insert(0, {str(target)!r}); "
        "from reward_services.upstream.environment import provide_torchvision; provide_torchvision(); "
        f"import hpsv2; assert hpsv2.__file__.startswith({str(target)!r}); import hpsv2.img_score"
    )
    tried = subprocess.run([python, "-W", "ignore", "-c", program], capture_output=True, text=True)
    return "imports" if tried.returncode == 0 else f"cannot be imported: {tried.stderr.strip().splitlines()[-1]}"


if __name__ == "__main__":
    main()
