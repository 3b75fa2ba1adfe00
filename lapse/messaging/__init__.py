"""Floor 1. What ranks send each other: kinds of messages, queues of frames, operations that wait for answers."""
