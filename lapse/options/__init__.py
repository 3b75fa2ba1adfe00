"""Floor 1. What a user chooses: initial values, replication, sampling, hot spots."""
