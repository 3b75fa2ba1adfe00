"""Floor 5. The life of a server: set-up, collective calls, checkpoints, the end."""
