"""What a job's process runs: check, place, start the rewards, survive, conclude."""
