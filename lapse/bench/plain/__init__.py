"""The applications' training on arrays in memory, without a server: what the cost of the server is compared with."""
