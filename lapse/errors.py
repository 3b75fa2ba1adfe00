"""Floor 0. The errors that only Lapse has. For everything else it raises Python's built-in exceptions."""


class LapseError(RuntimeError):
    """Base class of the errors that only a parameter server can have."""


class RemoteError(LapseError):
    """The server has failed by an error of another rank, or of another worker of this rank."""


class CommError(LapseError):
    """MPI failed, memory for messages could not be allocated, or the protocol was violated."""


class ClosedError(LapseError):
    """A server was used after it was closed, or a worker after its run."""


class CheckpointError(LapseError, ValueError):
    """A checkpoint is damaged, or does not fit the server that is to load it."""
