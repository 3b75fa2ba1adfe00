"""Whether a model fits is asked before anything of its size is allocated."""

import pytest

from lapse.apps._shared import memory
from lapse.apps._shared.job import AppError
from lapse.apps._shared.memory import Room


class Hosts:
    """Two ranks on one host, and one on another."""

    size = 3

    def allgather(self, mine):
        return [("here", 1000), ("here", 900), ("there", mine[1])]


def test_the_room_of_all_hosts_counts_each_once(monkeypatch):
    monkeypatch.setattr(memory, "available_here", lambda: 500)
    assert Room.of(Hosts()) == Room(3, 1400)
    monkeypatch.setattr(memory, "available_here", lambda: None)
    assert Room.of(Hosts()).available is None


def test_what_does_not_fit_is_named_with_its_size_and_the_way_out():
    keys = 10 * memory.BYTES_PER_KEY * 2
    Room(2, 1000 + keys).check("it", 1000, 10, "buy memory")
    Room(2, None).check("it", 10**18, 10, "buy memory")
    with pytest.raises(AppError, match=r"^it: 3,000 GB on 2 rank\(s\), but 5.0 kB are available .*: buy memory$"):
        Room(2, 5000).check("it", 3 * 10**12, 10, "buy memory")


def test_this_machine_has_memory():
    size = memory.available_here()
    assert size is None or size > 1 << 20
