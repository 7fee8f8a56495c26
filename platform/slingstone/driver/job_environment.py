"""What a job is told of its submitter's environment: what is secret by a private file, never by Ray's metadata."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from slingstone.config.credentials import URI_VARIABLE, has_credentials

PASSED = ("SLINGSTONE_GIT_COMMIT", URI_VARIABLE)
FILE_VARIABLE = "SLINGSTONE_ENVIRONMENT_FILE"
"""Names the file to a job on this machine."""


def job_environment(given: Mapping[str, str], private: Path | None) -> dict[str, str]:
    """Return the `env_vars` of a job's runtime environment, which every list of jobs shows and command lines may hold.

    Args:
        given: the submitter's environment.
        private: a directory of his that the job can read, and nobody else (see `private_directory`); None if the job
            runs elsewhere.

    Raises:
        ValueError: what is secret cannot get there unseen.
    """
    passed = {name: given[name] for name in PASSED if given.get(name)}
    secret = {name: value for name, value in passed.items() if has_credentials(value)}
    if not secret:
        return passed
    if private is None:
        raise ValueError(
            f"{' and '.join(secret)}: holds credentials, which a job's metadata would show; leave them out, and set"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGPASSWORD, where the cluster starts"
        )
    file = private / f"environment-{secrets.token_hex(8)}.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(secret))
    return {name: value for name, value in passed.items() if name not in secret} | {FILE_VARIABLE: str(file)}


def adopt_environment() -> None:
    """Take what `job_environment` left for this job into the process's environment, and delete the file."""
    if (path := os.environ.pop(FILE_VARIABLE, None)) is None:
        return
    file = Path(path)
    if file.exists():  # Ray starts a job's command once
        os.environ |= json.loads(file.read_text())
        file.unlink()
