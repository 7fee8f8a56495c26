"""Prompts: files, datasets, and a sampler whose position can be saved."""
