"""The console command `slingstone`, of which jobs/*.py are the parts. Each imports what it needs when it is called."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slingstone.arguments import expanded
from slingstone.terminal import complain, say


def align(given: argparse.Namespace) -> None:
    """Align a one-step generator with human preference."""
    from slingstone.config import load, to_yaml
    from slingstone.driver import preflight

    loaded = load(given.config, given.overrides)
    if given.submit:
        submit(given, loaded, preflight.prepare)
        return
    experiment = preflight.prepare(loaded)
    if given.dry_run:
        from slingstone.plan import report
        from slingstone.plan.cut_prompts import cut_prompts, told  # which may import torch, for unknown networks

        print(to_yaml(experiment) + report.dry_run(experiment), end="", flush=True)
        for line in told(cut_prompts(experiment)):
            say(f"# {line}")
        return
    from slingstone.driver import launch  # imports torch and ray, which take seconds

    launch.align(experiment, say)


def evaluate(given: argparse.Namespace) -> None:
    """Score models on prompts, or rewards on people's votes, side by side."""
    from slingstone.compare import shards
    from slingstone.config import Comparison, kind_of, load_as, to_yaml

    if kind_of(given.config) == "rewards":
        _evaluate_rewards(given)
        return
    loaded = load_as(Comparison, given.config, given.overrides)
    if given.submit:
        submit(given, loaded, shards.prepare)
        return
    comparison = shards.prepare(loaded)
    if given.dry_run:
        from slingstone.compare.cut_prompts import cut_prompts
        from slingstone.plan.cut_prompts import told

        print(to_yaml(comparison), end="")
        for line in told(cut_prompts(comparison)):
            say(f"# {line}")
        return
    from slingstone.compare import schedule  # imports torch and ray, which take seconds

    schedule.compare(comparison, say)


def _evaluate_rewards(given: argparse.Namespace) -> None:
    from slingstone.config import RewardComparison, load_as, to_yaml
    from slingstone.preferences import preflight

    loaded = load_as(RewardComparison, given.config, given.overrides)
    if given.submit:
        submit(given, loaded, preflight.prepare_comparison)
        return
    prepared = preflight.prepare_comparison(loaded)
    if given.dry_run:
        print(to_yaml(prepared), end="")
        return
    from slingstone.preferences import comparison  # imports torch, which takes seconds

    comparison.compare(prepared, say)


def reward(given: argparse.Namespace) -> None:
    """Fit a reward to people's votes."""
    from slingstone.config import RewardFit, load_as, to_yaml
    from slingstone.preferences import preflight

    loaded = load_as(RewardFit, given.config, given.overrides)
    if given.submit:
        submit(given, loaded, preflight.prepare)
        return
    fitting = preflight.prepare(loaded)
    if given.dry_run:
        print(to_yaml(fitting), end="")
        return
    from slingstone.preferences import launch  # imports torch and ray, which take seconds

    launch.fit(fitting, say)


def sweep(given: argparse.Namespace) -> None:
    """Vary a run's configuration and find what is best held out."""
    from slingstone.config import Sweep, load_as, to_yaml
    from slingstone.sweep import trials

    loaded = load_as(Sweep, given.config, given.overrides)
    if given.submit:
        submit(given, loaded, trials.prepare)
        return
    planned = trials.prepare(loaded)
    if given.dry_run:
        print(to_yaml(planned.sweep), end="")
        return
    from slingstone.sweep import search  # imports torch and ray, which take seconds

    search.sweep(planned, say)


def export(given: argparse.Namespace) -> None:
    """Export a run's generator as a diffusers pipeline."""
    from slingstone.export import hub, request  # import torch, which takes seconds

    asked = request.Request(given.run, given.target, given.checkpoint, given.weights, given.precision, given.onnx)
    request.export(asked, say=say)
    if given.push:
        say(f"pushed    {hub.push(given.target, given.push, private=not given.public)}")


def plan(given: argparse.Namespace) -> None:
    """Model a run's step time and memory on 1 to 1,024 GPUs; nothing is loaded and nothing started."""
    from dataclasses import replace

    from slingstone.config import load
    from slingstone.config.paths import resolved
    from slingstone.plan.cost import DEVICES, Assumptions
    from slingstone.plan.report import scaling

    if given.device not in DEVICES:
        raise ValueError(f"--device {given.device}: choose one of {', '.join(sorted(DEVICES))}")
    if given.gpus < 1 or not 0 < given.utilisation <= 1:
        raise ValueError("--gpus must be at least 1, --utilisation above 0 and at most 1")
    assumed = replace(Assumptions(DEVICES[given.device]), utilisation=given.utilisation)
    experiment = load(given.config, given.overrides)
    found = experiment.model_copy(update={"models": resolved(experiment.models)})  # nothing is written
    print(scaling(found, given.gpus, assumed))


def votes(given: argparse.Namespace) -> None:
    """Look at votes of people on pairs of pictures, convert them, and split them by prompt."""
    from itertools import islice

    from slingstone.preferences.census import Census
    from slingstone.preferences.locations import read, write
    from slingstone.preferences.splits import split
    from slingstone.preferences.table import decodable, stop

    skipped: list[ValueError] = []
    bad = skipped.append if given.skip_bad else stop
    taken = islice(decodable(read(given.votes, bad), bad), given.limit)
    match given.action:
        case "stats":
            census = Census.of(taken)
            for name, value in census.table().items():
                say(f"{name:<32} {value}")
            census.refuse_useless(given.votes)
        case "split":
            counts = split(taken, given.target, given.share, given.seed)
            say("  ".join(f"{given.target / side}.parquet {count} votes" for side, count in counts.items()))
        case _:
            say(f"{given.target}: {write(str(given.target), taken)} votes")
    for error in skipped[:10]:
        say(f"skipped {error}")
    if skipped:
        say(f"skipped {len(skipped)} bad rows")


def arena(given: argparse.Namespace) -> None:
    """Serve generators in a page in which people draw, compare and vote."""
    from slingstone.arena.preparation import prepare
    from slingstone.config import Arena, load_as, to_yaml

    loaded = load_as(Arena, given.config, given.overrides)
    if given.submit:
        submit(given, loaded, prepare)
        return
    planned = prepare(loaded)
    if given.dry_run:
        print(to_yaml(planned), end="")
        return
    from slingstone.arena.opening import open_arena  # imports torch and ray, which take seconds

    open_arena(planned, say)


def status(given: argparse.Namespace) -> None:
    """List the runs under a storage, those at work first, with their state and where they are."""
    from tabulate import tabulate

    from slingstone.driver import runs

    rows = [(run.called, run.state, run.where) for run in runs.all_runs(given.storage.resolve())]
    say(tabulate(rows, headers=("run", "state", "where"), tablefmt="plain") if rows else f"no run in {given.storage}")


def follow(given: argparse.Namespace) -> None:
    """Show what a submitted run says until it ends; Ctrl-C twice stops it, saved."""
    from slingstone.driver import runs

    runs.follow(given.name, given.storage.resolve(), say, given.verbose)


def stop(given: argparse.Namespace) -> None:
    """Stop a run, which saves first; the command that began it continues it."""
    from slingstone.driver import runs

    runs.stop(given.name, given.storage.resolve(), say)


def head(given: argparse.Namespace) -> None:
    """Start or stop the local Ray head of this installation; `start` prints how a shell reaches it."""
    from slingstone.config.paths import ROOT
    from slingstone.driver.head import Head

    if given.action == "start":
        environment = Head(ROOT).start()
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()))
        return
    if Head(ROOT).pid is not None:
        from slingstone.driver import runs

        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)  # another cluster's jobs are not meant
        try:
            runs.stop_all(say)
        except (OSError, RuntimeError, ValueError) as error:
            complain(f"its jobs end without being asked first: {error}")
    print("stopped the local Ray head" if Head(ROOT).stop() else "no local Ray head runs")


def submit(
    given: argparse.Namespace,
    loaded: Any,
    check: Callable[[Any], object],
    command: Sequence[str] = (),
    also: Mapping[str, Path] | None = None,
    arguments: Sequence[str] = (),
) -> None:
    """Send a job that was loaded here to a cluster, and follow it; see `driver.submission.Job`."""
    from slingstone.driver import submission

    ours = tuple(command) or ("python", "-m", "slingstone", given.kind)
    job = submission.Job(given.kind, given.config, loaded, check, ours, also or {}, tuple(arguments))
    submission.submit(job, say, given.verbose)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command with the shell's arguments, or with these; return its exit status."""
    parser = _parser()
    try:
        argv = expanded(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        parser.error(str(error))
    # argparse takes the overrides before an option, and leaves those behind it over.
    given, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in given or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        given.overrides += rest
    return run(given.job, given)


def run(job: Callable[[argparse.Namespace], None], given: argparse.Namespace) -> int:
    """Run a job; return its exit status.

    What the user can mend is one line on stderr. SIGTERM ends the job as an exception with status 143, so that what
    it started is taken down.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    from slingstone.driver.job_environment import adopt_environment

    try:
        adopt_environment()
        job(given)
    except (ValueError, RuntimeError) as error:
        from slingstone.config.credentials import concealed

        complain(f"error: {concealed(str(error))}")
        return 1
    return 0


def add_config(
    parser: argparse.ArgumentParser, config: str, override: str, dry_run: str = ""
) -> argparse.ArgumentParser:
    """Return a parser with the arguments that most jobs share: a configuration and overrides of it.

    Args:
        parser: of the job.
        config: an example of a configuration file.
        override: an example of an override.
        dry_run: what `--dry-run` does; without it there is none.
    """
    parser.add_argument("config", help=f"YAML file, such as {config}")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help=f"such as {override}")
    if dry_run:
        parser.add_argument("--dry-run", action="store_true", help=dry_run)
        parser.add_argument("--submit", action="store_true", help="send it to a Ray cluster, as make does")
        parser.add_argument("--verbose", action="store_true", help="with --submit: also what Ray and libraries print")
    parser.epilog = "--args TEXT stands for several arguments, split at spaces outside brackets and quotes."
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("slingstone", description="Align one-step text-to-image generators, on Ray.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(job: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        made = commands.add_parser(job.__name__, help=job.__doc__, description=job.__doc__)
        made.set_defaults(job=job, kind=job.__name__)
        return made

    check, ends = "check everything, print the", "and stop"
    shown = "print the resolved run and its memory, and stop"
    add_config(command(align), "configs/align/scenes.yaml", "training.num_images=6400", shown)
    example = "prompts.parti.num_prompts=100"
    add_config(command(evaluate), "configs/evaluate/scenes.yaml", example, f"{check} evaluation {ends}")
    add_config(command(sweep), "configs/sweep/scenes.yaml", "search.trials=6", f"{check} sweep {ends}")
    add_config(command(arena), "configs/arena/scenes.yaml", "door.port=8500", f"{check} arena {ends}")
    add_config(command(reward), "configs/reward/scenes.yaml", "votes.limit=300", f"{check} fitting {ends}")
    planned = add_config(command(plan), "configs/align/sdxl.yaml", "runtime.zero_stage=3")
    planned.add_argument("--gpus", type=int, default=8, help="GPUs that train")
    planned.add_argument("--device", default="h100", help="kind of GPU, such as a100")
    planned.add_argument("--utilisation", type=float, default=0.3, help="part of the GPU's peak that networks reach")
    _add_export(command(export))
    _add_votes(command(votes))
    _add_runs(command(status), named=False)
    watched = _add_runs(command(follow))
    watched.add_argument("--verbose", action="store_true", help="also what Ray and libraries print")
    _add_runs(command(stop))
    command(head).add_argument("action", choices=("start", "stop"))
    return parser


def _add_runs(parser: argparse.ArgumentParser, named: bool = True) -> argparse.ArgumentParser:
    if named:
        parser.add_argument("name", help="of the run, NAME or JOB/NAME, such as align/scenes")
    parser.add_argument("--storage", type=Path, default=Path("outputs"), help="where runs write; default: outputs")
    return parser


def _add_votes(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    does = {
        "stats": "count choices, voters, duplicates and contradictions, and how far voters agree",
        "import": "read votes of any format into a .parquet table, every picture decoded once",
        "export": "write votes as .parquet, .csv, .json (HPDv2's) or .ranked.json (ImageReward's)",
        "split": "write train.parquet and test.parquet, no prompt in both",
    }
    for action, told in does.items():
        own = actions.add_parser(action, help=told, description=told)
        own.add_argument("votes", help=".parquet, .csv or .json, a folder with one, or hf://datasets/owner/name")
        if action != "stats":
            own.add_argument("target", type=Path, help="directory" if action == "split" else "file to write")
        if action == "split":
            own.add_argument("--share", type=float, default=0.1, help="of the prompts that go to test.parquet")
            own.add_argument("--seed", type=int, default=0, help="another one takes other prompts")
        own.add_argument("--skip-bad", action="store_true", help="leave out rows that cannot be read, and count them")
        own.add_argument("--limit", type=int, help="take only so many votes, from the start")


def _add_export(parser: argparse.ArgumentParser) -> None:
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
