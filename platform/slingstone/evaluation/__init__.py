"""One protocol for every number: sampling, rewards, oracle, diversity, distances between sets, win rates, grids."""
