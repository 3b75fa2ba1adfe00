"""Floor 1. The memory of values: segments, replicas, and what ranks of one host share."""
