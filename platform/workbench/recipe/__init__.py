"""How the embedded checkpoints were made; every stage is a function of its settings and seed."""
