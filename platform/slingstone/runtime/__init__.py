"""Where and how a run executes: engines, checkpoints, tracking, workers, launch."""
