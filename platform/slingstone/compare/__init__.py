"""Several models side by side: the same prompts, noise, rewards and code for all."""
