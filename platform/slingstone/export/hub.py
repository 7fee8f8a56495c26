"""Pushes an export to the Hugging Face hub."""

from pathlib import Path
from typing import Any


def push(directory: Path, repository: str, private: bool, api: Any = None) -> str:
    """Upload a directory to `owner/name`, a repository of models that is created if need be; return its address.

    The token is what `hf auth login` keeps, or HF_TOKEN. `api` is huggingface_hub's, or what stands in for it.

    Raises:
        ValueError: if the hub refuses; nothing is uploaded then.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi() if api is None else api
    try:
        address = str(api.create_repo(repository, repo_type="model", private=private, exist_ok=True))
        api.upload_folder(
            folder_path=str(directory), repo_id=repository, repo_type="model", commit_message="Export of slingstone"
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"push to {repository!r} failed: {reason}; log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    return address
