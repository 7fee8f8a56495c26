"""Rewards computed by the upstream packages themselves, each in an environment of its own, see `environment`."""
