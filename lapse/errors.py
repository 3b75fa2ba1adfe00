"""Floor 0. The errors that are Lapse's own. Everything else is a built-in exception."""


class LapseError(RuntimeError):
    """Base of the errors that only a parameter server can have."""


class RemoteError(LapseError):
    """Another rank, or another worker of this rank, ended the server by an error of its own."""


class CommError(LapseError):
    """MPI, memory for messages, or the protocol failed."""


class ClosedError(LapseError):
    """A server or worker was used after its end."""
