"""How a command begins and ends at the shell: its arguments, its signals, its errors."""

import argparse
import signal
import sys
from collections.abc import Callable


def add_config(parser: argparse.ArgumentParser, config: str, override: str, dry_run: str = "") -> None:
    """Add the arguments that most commands share: a configuration and overrides of it.

    Args:
        parser: of the command.
        config: an example of a configuration file.
        override: an example of an override.
        dry_run: what `--dry-run` does; without it there is none.
    """
    parser.add_argument("config", help=f"YAML file, such as {config}")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help=f"such as {override}")
    if dry_run:
        parser.add_argument("--dry-run", action="store_true", help=dry_run)


def parser(description: str, config: str, override: str, dry_run: str = "") -> argparse.ArgumentParser:
    """Return a parser of these arguments alone."""
    made = argparse.ArgumentParser(description=description)
    add_config(made, config, override, dry_run)
    return made


def run(job: Callable[[argparse.Namespace], None], arguments: argparse.ArgumentParser) -> int:
    """Run a job with the shell's arguments; return its exit status."""
    return attempt(job, arguments.parse_intermixed_args())


def attempt(job: Callable[[argparse.Namespace], None], given: argparse.Namespace) -> int:
    """Run a job; return its exit status.

    What the user can mend is one line on stderr. SIGTERM ends the job as an exception with status 143, so that what
    it started is taken down.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        job(given)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def say(line: str) -> None:
    """Print a line at once, whatever stdout is."""
    print(line, flush=True)
