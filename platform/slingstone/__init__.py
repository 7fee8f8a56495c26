"""Align one-step text-to-image generators with human preference: Diff-Instruct* on Ray."""
