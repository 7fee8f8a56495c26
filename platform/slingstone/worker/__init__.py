"""What each Ray Train worker runs."""
