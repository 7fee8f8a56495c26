"""What a run does when something around it fails."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from slingstone.config.paths import Storage
from slingstone.config.tree import Section


class ExplodingLoss(Section):
    """When a step counts as an explosion, which goes back to the last checkpoint and on with other noise."""

    grad_norm: PositiveFloat | None = None
    """A gradient norm of either network above this, before clipping, is an explosion; null looks only for what is not
    finite."""
    rollbacks: PositiveInt = 3
    """So many times without a new checkpoint in between; then the run stops."""


class Recovery(Section):
    """What a run does when something around it fails; changes no result of a run that nothing befalls."""

    max_failures: Annotated[int, Field(ge=0)] = 3
    """How many deaths of workers (killed, out of memory, a lost node) without a new checkpoint in between are survived:
    all workers start again from the last checkpoint. A mistake that a worker names stops the run at once."""
    background: bool = True
    """Copies what is saved to host memory, about 16 bytes a trained weight on each worker that holds it, and writes it
    while training goes on; `false` waits until the checkpoint is published."""
    checkpoints: Storage | None = None
    """Where checkpoints go instead of `storage`: a directory that all nodes see, or a URI that pyarrow knows, such as
    s3://bucket/prefix, with credentials from the environment. They lie under `<checkpoints>/align/<name>`."""
    on_failed_save: Literal["stop", "go_on"] = "stop"
    """What a checkpoint that cannot be written costs, such as on a full disk: `go_on` says so and tries again at the
    next one. The checkpoints before it stay good either way."""
    on_damaged_checkpoint: Literal["stop", "previous"] = "stop"
    """What is done about a last checkpoint that is cut short, changed or another run's: `previous` sets it aside, says
    so, and continues from the one before."""
    exploding: ExplodingLoss | None = None
    """Goes back to the last checkpoint when training explodes; null stops the run at a norm that is not finite."""
