"""What asking a service costs beside computing in process, as ratios of one run."""
