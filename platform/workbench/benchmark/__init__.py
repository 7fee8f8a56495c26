"""What the platform costs: the job beside a plain training loop, and how much of a reward's latency it hides."""
