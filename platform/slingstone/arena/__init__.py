"""Generators served, compared and voted on, in a page."""
