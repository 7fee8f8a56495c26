"""What a soak found, in words and in a file."""

import json
from pathlib import Path

from workbench.soak.run import Outcome

MIB = 2**20


def report(outcome: Outcome, storage: Path) -> str:
    """Write soak.json under the storage; return the same as text: levels of memory, then every claim."""
    lines = ["", "memory of long-lived processes, after warm-up and at the end:"]
    for run, found in outcome.levels.items():
        for one in found:
            first, last = (value / MIB for value in one.memory)
            files = f"{one.files[0]:.0f} -> {one.files[1]:.0f} files"
            lines.append(f"  {run:12} {one.who.role:44} {first:7.1f} -> {last:7.1f} MiB  {one.growth:+6.1%}  {files}")
    lines.append("")
    for verdict in outcome.verdicts:
        lines.append(f"{'ok  ' if verdict.holds else 'FAIL'} {verdict.claim}: {verdict.found}")
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.seconds.items())
    lines += ["", f"{len(outcome.done)} faults; {took}"]
    (storage / "soak.json").write_text(
        json.dumps(
            {
                "verdicts": [verdict._asdict() for verdict in outcome.verdicts],
                "faults": [fault._asdict() | {"did": did} for fault, did in outcome.done],
                "levels": {
                    run: [{"role": one.who.role, "memory": one.memory, "files": one.files} for one in found]
                    for run, found in outcome.levels.items()
                },
                "seconds": outcome.seconds,
            },
            indent=1,
        )
    )
    return "\n".join(lines)
