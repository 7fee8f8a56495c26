"""DeepSpeed and plain torch behind `step.trainer.Engine`; shards of their state."""
