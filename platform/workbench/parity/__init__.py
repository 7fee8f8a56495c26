"""Whether the native rewards equal the upstream packages: tiny checkpoints, both sides' results, their comparison."""
