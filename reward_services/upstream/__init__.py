"""Rewards computed by the upstream packages themselves, each in an environment of its own.

The upstream packages clash with each other and with this project's environment, so none of these modules is imported
unless a replica or `make parity` runs in the environment that `environment.py` describes.
"""
