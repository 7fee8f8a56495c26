"""A model of a run's step time and memory on 1 to 1,024 GPUs, from its configuration alone."""
