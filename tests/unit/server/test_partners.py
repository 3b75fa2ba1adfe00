"""Which ranks exchange heartbeats, which connections are watched, and how long silence and waits may last."""

import socket

import pytest

from lapse.base import environment
from lapse.base._connections import connections, own_addresses
from lapse.server.host import Place, far_addresses, partners_of


def places_of(*sizes):
    """Hosts with so many ranks, one after another."""
    places = []
    for number, size in enumerate(sizes):
        first = len(places)
        places += [Place(first, local_rank, f"host{number}") for local_rank in range(size)]
    return places


@pytest.mark.parametrize("sizes", [(1,), (4,), (1, 1), (2, 2, 2), (1, 4), (5, 1, 3), (8, 8, 7, 1)])
def test_each_rank_has_a_partner_on_each_other_host_and_they_are_mutual(sizes):
    places = places_of(*sizes)
    partners = [partners_of(rank, places) for rank in range(len(places))]
    hosts = {place.host for place in places}
    for rank, own in enumerate(partners):
        assert {places[other].host for other in own} == hosts - {places[rank].host}
        assert all(rank in partners[other] for other in own)
    if len(set(sizes)) == 1:
        assert all(len(own) == len(sizes) - 1 for own in partners)


def test_addresses_that_a_host_has_itself_are_not_those_of_others():
    bridge, first, second = b"b" * 16, b"1" * 16, b"2" * 16
    places = [
        Place(0, 0, "one", (first, bridge)),
        Place(0, 1, "one", (first, bridge)),
        Place(2, 0, "two", (bridge, second)),
    ]
    assert far_addresses(0, places) == {second: "two"}
    assert far_addresses(2, places) == {first: "one"}


@pytest.mark.parametrize(
    "family, host, address", [("AF_INET", "127.0.0.1", "::ffff:127.0.0.1"), ("AF_INET6", "::1", "::1")]
)
def test_connections_are_found_with_their_peers(family, host, address):
    address = socket.inet_pton(socket.AF_INET6, address)
    with socket.socket(getattr(socket, family)) as listening:
        try:
            listening.bind((host, 0))
        except OSError as reason:
            pytest.skip(f"no {host} here: {reason}")
        listening.listen()
        before = connections()
        with socket.create_connection(listening.getsockname()[:2]) as one, listening.accept()[0] as other:
            assert connections().items() - before.items() == {(one.fileno(), address), (other.fileno(), address)}
        assert connections().items() <= before.items()
    assert all(len(own) == 16 for own in own_addresses())
    assert address not in own_addresses()


@pytest.mark.parametrize("name", ["LAPSE_SILENCE_SECONDS", "LAPSE_STALL_REPORT"])
def test_seconds_from_the_environment(monkeypatch, name):
    read = environment.silence_seconds if "SILENCE" in name else environment.stall_seconds
    monkeypatch.delenv(name, raising=False)
    assert read() == 30
    for text, seconds in (("", 30), ("0", 0), ("1", 1), ("2.5", 2.5), ("86400", 86400)):
        monkeypatch.setenv(name, text)
        assert read() == seconds
    for text in ("0.5", "-1", "nan", "inf", "86401", "soon", "1e9"):
        monkeypatch.setenv(name, text)
        with pytest.raises(ValueError, match=f"{name} is '{text}'"):
            read()
