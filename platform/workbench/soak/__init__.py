"""Long runs under faults: an unmodified job whose processes are killed, and whether its end is the same."""
