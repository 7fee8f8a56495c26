"""Many runs of one configuration with some values varied, and which of them to take."""
