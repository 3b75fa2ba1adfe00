"""The last worker raises exceptions whose text is hard to send or to show; each time the next server works."""

import lapse
from common import rank, tell


class Unshowable(Exception):
    """One whose own code fails."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Unsendable(Exception):
    """One that cannot be made again from what it was made from."""

    def __init__(self, first, second):
        super().__init__(first)


def fail(kv, error):
    if kv.id == kv.num_workers - 1:
        raise error
    kv.barrier()


ERRORS = [
    ValueError("caf\udce9"),
    Unshowable(),
    ValueError("x" * 1_000_000),
    Unsendable("first", "second"),
    ValueError("a\0b"),
]
for error in ERRORS:
    server = lapse.Server(10, 2)
    try:
        server.run(fail, error)
        tell("run returned")
    except lapse.RemoteError as caught:
        tell("RemoteError", caught.rank, caught.worker, len(str(caught)), ascii(str(caught))[:60])
    except Exception as caught:
        tell(type(caught).__name__)
    server.close()

with lapse.Server(10, 2) as server:

    def save():
        server._calls.attempt("a call that fails", raise_on_last_rank)

    def raise_on_last_rank():
        if rank == server.size - 1:
            raise Unshowable

    try:
        save()
    except Exception as caught:
        tell(type(caught).__name__)
    assert server.stats(all_ranks=True)["pulled_keys"] == 0  # the server works as before
