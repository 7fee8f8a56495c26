"""The embedded world: captioned scenes with ground truth, their tiny checkpoints and their oracle."""
