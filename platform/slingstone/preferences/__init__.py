"""Votes of people on pairs of pictures, and the rewards that are learnt from them."""
