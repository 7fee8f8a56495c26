"""Whose weights these are: adapters that turn checkpoints into the few callables that a step needs."""
