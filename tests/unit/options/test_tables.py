"""Tables: ranges of keys with names, and what is said when something does not fit."""

import numpy as np
import pytest

import lapse
from lapse import optim


def make_tables(users=10, items=5):
    return lapse.Tables(
        users=lapse.Table(users, 3, lapse.Normal(0, 0.1), optim.Adagrad()),
        items=lapse.Table(items, 4, optimizer=optim.SGD()),
    )


def test_rows_have_keys_one_table_behind_the_other():
    tables = make_tables()
    assert list(tables) == ["users", "items"] and len(tables) == 2
    assert tables.num_keys == 15
    assert tables.value_lengths.tolist() == [3] * 10 + [4] * 5
    assert tables["users"].keys([0, 9]).tolist() == [0, 9]
    assert tables["items"].keys(np.array([[0, 4]], dtype=np.uint8)).tolist() == [[10, 14]]
    assert tables["items"].keys(3) == 13
    assert tables["items"].keys([]).shape == (0,)
    assert tables["items"].keys().tolist() == [10, 11, 12, 13, 14]
    assert tables["items"].ids([10, 14]).tolist() == [0, 4]
    assert tables.table_of(9).name == "users" and tables.table_of(10).name == "items"
    assert tables.shapes() == {"users": [10, 3], "items": [5, 4]}


def test_one_length_is_a_number():
    assert lapse.Tables({"a b": lapse.Table(3, 2)}, c=lapse.Table(4, 2)).value_lengths == 2


def test_an_id_outside_is_named_with_its_table():
    table = make_tables()["items"]
    for bad in (-1, 5, 2**40):
        with pytest.raises(IndexError, match=f"id {bad} is outside the range 0 .. 4 of table 'items'"):
            table.keys([0, bad, 7])
    with pytest.raises(TypeError, match="ids of table 'items' must be integers, not float64"):
        table.keys([0.5])
    with pytest.raises(IndexError, match="key 9 is outside the range 10 .. 14 of table 'items'"):
        table.ids([9])


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: lapse.Table(0, 3), "num_rows is 0"),
        (lambda: lapse.Table(3, 0), "length is 0"),
        (lambda: lapse.Table(3, "a"), "length must be an int"),
        (lambda: lapse.Table(3, 1, optimizer=optim.SGD), "give an instance"),
        (lambda: lapse.Table(3, 1, init=3), "init must be"),
        (lambda: lapse.Tables(), "there is no table"),
        (lambda: lapse.Tables(a=3), "table 'a' must be a lapse.Table, not 3"),
        (lambda: lapse.Tables([1]), "tables must be a dict"),
        (lambda: lapse.Tables({"": lapse.Table(1, 1)}), "must be a string that is not empty"),
        (lambda: lapse.Tables({"a": lapse.Table(1, 1)}, a=lapse.Table(1, 1)), "'a' is given twice"),
        (lambda: lapse.Tables(a=lapse.Table(2**31, 1), b=lapse.Table(2**31, 1)), "at most 4294967294"),
        (lambda: make_tables()["user"], "there is no table 'user': there are 'users', 'items'"),
    ],
)
def test_what_is_wrong_is_named(make, error):
    with pytest.raises((TypeError, ValueError, KeyError), match=error):
        make()


def test_a_server_takes_what_its_tables_say():
    tables = make_tables()
    with lapse.Server(tables) as server, server.worker() as kv:
        assert server.tables is tables and server.num_keys == 15
        users = kv.pull(tables["users"].keys()).wait()
        assert 0.05 < users.std() < 0.2
        assert (kv.pull(tables["items"].keys()).wait() == 0).all()
        kv.push(tables["users"].keys(), np.ones(30, "f4")).wait()
        server.initialize()
        assert (kv.pull(tables["users"].keys()).wait() == users).all()
    for more in ({"value_lengths": 3}, {"optimizer": optim.SGD()}):
        with pytest.raises(TypeError, match=f"{next(iter(more))} is .*, but there are tables"):
            lapse.Server(tables, **more)
    with lapse.Server(3, 2) as server:
        with pytest.raises(TypeError, match="give both keys and init"):
            server.initialize()


def test_tables_with_the_same_initializer_do_not_begin_alike():
    tables = lapse.Tables(a=lapse.Table(50, 4, lapse.Normal()), b=lapse.Table(50, 4, lapse.Normal()))
    with lapse.Server(tables) as server, server.worker() as kv:
        a, b = (kv.pull(tables[name].keys()).wait() for name in "ab")
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.3
    moved = lapse.Tables(first=lapse.Table(7, 4), b=lapse.Table(90, 4, lapse.Normal()))
    with lapse.Server(moved) as server, server.worker() as kv:
        assert (kv.pull(moved["b"].keys(range(50))).wait() == b).all()


def test_an_initializer_that_fails_closes_the_server():
    tables = lapse.Tables(a=lapse.Table(3, 4, lapse.Columns((lapse.Normal(), 2))))
    with pytest.raises(ValueError, match="have 2 columns, but values have 4"):
        lapse.Server(tables)
    with lapse.Server(3, 4):
        pass


def test_gradients_of_replicated_keys_are_summed_only():
    tables = lapse.Tables(a=lapse.Table(3, 4), b=lapse.Table(3, 4, optimizer=optim.SGD()))
    clipping = lapse.Replication(clip=2.0)
    with lapse.Server(tables, replicated_keys=[0, 2], replication=clipping):
        pass
    with lapse.Server(tables, replicated_keys=[0, 4]):
        pass
    for replication in (clipping, lapse.Replication(combine="adagrad"), lapse.Replication(threshold=0.1)):
        with pytest.raises(ValueError, match=r"replicated_keys has 4, which has the optimizer SGD.* replication has"):
            lapse.Server(tables, replicated_keys=[0, 4], replication=replication)
