"""What a user sees of the class `Server`: its help, and nothing of its inside."""

import inspect
import re

import lapse


def test_the_help_of_stats_explains_every_counter():
    described = re.findall(r"^ {4}(\w+)  +\w", inspect.getdoc(lapse.Server.stats), re.MULTILINE)
    with lapse.Server(3, 1) as server:
        assert sorted(described) == sorted(["name", *server.stats()])


def test_every_public_member_is_documented():
    members = inspect.getmembers(lapse.Server, lambda member: not inspect.isclass(member))
    public = [(name, member) for name, member in members if not name.startswith("_")]
    assert public and [name for name, member in public if not inspect.getdoc(member)] == []


PUBLIC = """
    bytes_sent_to close comm dtype initialize load local_keys num_keys num_workers owner rank reset_stats run sampling
    save seconds_waited seed sharing_ranks size stats tables value_length waiting_times worker workers
"""


def test_the_public_members_are_those_of_the_contract():
    assert sorted(name for name in dir(lapse.Server) if not name.startswith("_")) == PUBLIC.split()
