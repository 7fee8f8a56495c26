"""Exported pipelines as versions of a registered model, with aliases that say which one to take."""

import math
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from slingstone.config.tree import Registry
from slingstone.evaluation.ranking import rank
from slingstone.tracking import Run

CODE = Path(__file__).with_name("picture_model.py")
REQUIRED = ("mlflow", "diffusers", "transformers", "torch", "pandas", "pillow")


def publish(run: Run, pipeline: Path, folder: str) -> None:
    """Upload an exported pipeline to an artifact folder, together with what makes it an MLflow model."""
    run.artifact(pipeline, folder)
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory) / "model"
        _write_model(files)
        run.artifact(files, folder)


def register(
    run: Run, settings: Registry, folder: str, found: Mapping[str, float], tags: Mapping[str, str], initial: bool
) -> str:
    """Make what `publish` uploaded a version of the registered model, and give it its aliases; return the version.

    Args:
        settings: name of the model, and what makes one version the best.
        folder: of the run's artifacts.
        found: numbers of the evaluation; they become tags of the version.
        tags: more of them; `evaluation` must be equal where numbers may be compared.
        initial: whether it is where training started, the alias `init`. MLflow itself calls the last version `latest`.
    """
    client = run.client
    if not client.search_registered_models(f"name = '{settings.name}'"):
        client.create_registered_model(settings.name, description="One-step pipelines aligned by slingstone")
    artifacts = client.get_run(run.run_id).info.artifact_uri
    tags = {name: repr(value) for name, value in found.items()} | dict(tags)
    made = client.create_model_version(
        settings.name, f"{artifacts}/{folder}", run.run_id, tags=tags, await_creation_for=0
    )
    if initial:
        client.set_registered_model_alias(settings.name, "init", made.version)
    aliases = client.get_registered_model(settings.name).aliases
    champion = client.get_model_version(settings.name, aliases["best"]).tags if "best" in aliases else None
    if beats(settings, tags, champion):
        client.set_registered_model_alias(settings.name, "best", made.version)
    return str(made.version)


def beats(settings: Registry, tags: Mapping[str, str], champion: Mapping[str, str] | None) -> bool:
    """Tell whether a version is better than the best one; numbers of another evaluation are never better or worse."""
    if (found := _rank(settings, tags)) == -math.inf:
        return False
    if champion is None or (best := _rank(settings, champion)) == -math.inf:
        return True
    return tags.get("evaluation") == champion.get("evaluation") and found > best


def _rank(settings: Registry, tags: Mapping[str, str]) -> float:
    return rank(float(tags[settings.metric]) if settings.metric in tags else None, settings.mode)


def known(run: Run, settings: Registry, alias: str, tag: str, value: str) -> bool:
    """Tell whether the version under an alias carries a tag of this value."""
    found = run.client.search_registered_models(f"name = '{settings.name}'")
    if not found or alias not in found[0].aliases:
        return False
    return run.client.get_model_version(settings.name, found[0].aliases[alias]).tags.get(tag) == value


def _write_model(directory: Path) -> None:
    """Write MLflow's files of a model whose pipeline lies in the same directory."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    signature = ModelSignature(
        Schema([ColSpec(DataType.string, "prompt"), ColSpec(DataType.long, "seed", required=False)]),
        Schema([ColSpec(DataType.binary, "png")]),
    )
    requirements = [f"{name}=={version(name).split('+')[0]}" for name in REQUIRED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an example of the input would have to be run
        mlflow.pyfunc.save_model(
            str(directory), python_model=str(CODE), signature=signature, pip_requirements=requirements
        )
    # The pipeline was uploaded already: one copy of it, named from the model's own directory.
    model = Model.load(str(directory))
    model.flavors["python_function"]["artifacts"] = {"pipeline": {"path": ".", "uri": "."}}
    model.save(str(directory / "MLmodel"))
