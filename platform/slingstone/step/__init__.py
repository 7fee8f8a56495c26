"""One alternating step: trainer, panel of rewards, average. It does not know where it runs."""
