"""The paper's equations: torch and jaxtyping only."""
