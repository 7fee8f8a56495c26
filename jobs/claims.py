"""Put claims to the test: jobs/claims.py CONFIG.yaml [--dry-run] [path=value ...]; needs the workbench, so a clone."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]  # this source, whatever is installed

from slingstone import cli  # noqa: E402
from slingstone.arguments import expanded  # noqa: E402
from slingstone.config import load_as, to_yaml  # noqa: E402
from workbench.claims import plan  # noqa: E402

ARGUMENTS = cli.add_config(
    argparse.ArgumentParser(description="Compare ways of training over seeds, and write down what comes out."),
    config="configs/claims/scenes.yaml",
    override="seeds=[0]",
    dry_run="check everything, print the studies and stop",
)
ARGUMENTS.set_defaults(kind="claims")


def claims(given: argparse.Namespace) -> None:
    """Check every run of all studies, then hand over to the driver."""
    loaded = load_as(plan.Claims, given.config, given.overrides)
    # Where results lie changes none of them.
    told = [override for override in given.overrides if not override.startswith("storage=")]
    if given.submit:
        also = {"workbench": ROOT / "platform" / "workbench", "jobs": ROOT / "jobs"}
        cli.submit(given, loaded, plan.prepare, ("python", "jobs/claims.py"), also, told)
        return
    planned = plan.prepare(loaded)
    if given.dry_run:
        print(f"{to_yaml(planned.claims)}# {len(planned.runs)} runs for {len(planned.cells)} cells")
        return
    from workbench.claims import studies  # imports torch and ray, which take seconds

    studies.study(planned, " ".join(["python jobs/claims.py", given.config, *told]), cli.say)


if __name__ == "__main__":
    sys.exit(cli.run(claims, ARGUMENTS.parse_intermixed_args(expanded(sys.argv[1:]))))
