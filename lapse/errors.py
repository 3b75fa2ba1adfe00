"""Floor 0. The errors that only Lapse has. For everything else it raises Python's built-in exceptions."""


class LapseError(RuntimeError):
    """Base class of the errors that only a parameter server can have."""


class RemoteError(LapseError):
    """The server has failed by an error of another rank, or of another worker of this rank.

    Parameters
    ----------
    message : str
    rank, worker : int, optional
        Where the error began, as far as that is known.

    """

    def __init__(self, message: str = "", rank: int | None = None, worker: int | None = None) -> None:
        super().__init__(message)
        self._origin = rank, worker

    @property
    def rank(self) -> int | None:
        """The rank where the error began."""
        return self._origin[0]

    @property
    def worker(self) -> int | None:
        """The global number of the worker that raised it; None if no worker did."""
        return self._origin[1]


class CommError(LapseError):
    """MPI failed, memory for messages could not be allocated, or the protocol was violated."""


class ClosedError(LapseError):
    """A server was used after it was closed, or a worker after its run."""


class CheckpointError(LapseError, ValueError):
    """A checkpoint is damaged, or does not fit the server that is to load it."""
