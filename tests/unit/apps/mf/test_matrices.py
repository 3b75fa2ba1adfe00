"""Matrices that need no file, how ratings are shared out, and which values are managed how."""

import numpy as np
import pytest

import lapse
from lapse.apps._shared.job import AppError
from lapse.apps._shared.placement import Ranks
from lapse.apps._shared.stdlib import StrippedPythonError
from lapse.apps.mf import matrix, placement, stdlib_matrix, synthetic
from lapse.apps.mf import options as mf_options
from lapse.apps.mf.data import Share, Source, read_share
from lapse.apps.mf.descent import Rates
from lapse.apps.mf.synthetic import Recipe
from mpi4py import MPI

SMALL = Recipe(rows=60, columns=40, entries=500)


def options(*given):
    return mf_options.parse([str(option) for option in given])


# --- synthetic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_row_is_the_same_whoever_makes_it(count):
    whole = synthetic.make_share(SMALL)
    parts = [synthetic.make_share(SMALL, index, count) for index in range(count)]
    identities = np.concatenate([part.identities for part in parts])
    values = np.concatenate([part.values for part in parts])[np.argsort(identities)]
    assert np.array_equal(np.sort(identities), whole.identities)
    assert np.array_equal(values, whole.values)


@pytest.mark.parametrize("recipe", [SMALL, Recipe(50, 5, 250), Recipe(1000, 300, 3000), Recipe(3, 1, 3)])
def test_as_many_distinct_cells_as_were_asked_for(recipe):
    share = synthetic.make_share(recipe)
    assert len(share) == len(set(share.identities.tolist())) == recipe.entries
    assert np.bincount(share.rows, minlength=recipe.rows).min() >= 1


def test_rows_and_columns_follow_zipf():
    share = synthetic.make_share(Recipe(2000, 1000, 20_000))
    for numbers in (share.rows, share.columns):
        counts = np.bincount(numbers)
        assert counts[0] == counts.max() > 5 * counts[20] > 10 * counts[200]


def test_entries_are_planted_products_plus_noise():
    recipe = Recipe(300, 100, 20_000, noise=0.1)
    share = synthetic.make_share(recipe)
    p = synthetic.planted(recipe, synthetic.ROW_FACTORS, np.arange(300))
    q = synthetic.planted(recipe, synthetic.COLUMN_FACTORS, np.arange(100))
    noise = share.values - (p @ q.T)[share.rows, share.columns]
    assert abs(noise.std() - 0.1) < 0.005
    assert 0.7 < share.values.std() < 1.4


def test_sparse_and_dense_rows_draw_from_the_same_distribution():
    weights = synthetic.zipf(24, 1.1)
    counts = []
    for dense in (0.0, 1.0):
        rng = np.random.default_rng(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(synthetic, "DENSE", dense)
            drawn = [synthetic.draw_cells(rng, weights, np.cumsum(weights), 3) for _ in range(4000)]
        assert all(len(set(cells)) == 3 for cells in drawn)
        counts.append(np.bincount(np.concatenate(drawn), minlength=24))
    np.testing.assert_allclose(counts[0], counts[1], atol=6 * np.sqrt(counts[0].max()))


def test_too_many_or_too_few_entries():
    with pytest.raises(ValueError, match="must be from 5"):
        Recipe(5, 4, 21)
    with pytest.raises(ValueError, match="must be from 5"):
        Recipe(5, 4, 4)


# --- the standard library --------------------------------------------------------------------------


def test_identifiers_of_modules(tmp_path):
    (tmp_path / "pkg").mkdir()
    for name, text in (("a.py", "x = y.z\nx = x"), ("pkg/__init__.py", "x.z"), ("b.py", "z(x)"), ("bad.py", "def")):
        (tmp_path / name).write_text(text)
    share = read_share(Source("m", stdlib_matrix.gather(tmp_path, least=3).encode()))
    assert sorted(share.row_ids) == ["a", "b", "pkg"]
    assert sorted(share.column_ids) == ["x", "z"]  # y is in one module only
    values = {(share.row_ids[r], share.column_ids[c]): v for r, c, v in zip(share.rows, share.columns, share.values)}
    assert values["a", "x"] == pytest.approx(np.log(4))
    assert values["pkg", "z"] == pytest.approx(np.log(2))


def test_a_python_without_sources(tmp_path):
    with pytest.raises(StrippedPythonError, match="--ratings"):
        stdlib_matrix.gather(tmp_path)


# --- sharing out -----------------------------------------------------------------------------------


def assemble(share, test=None, fraction=0.2, workers=1, seed=1):
    return matrix.assemble(MPI.COMM_SELF, workers, share, test, fraction, seed)


@pytest.mark.parametrize("workers", [1, 2, 5, 100])
def test_every_rating_is_in_one_part(workers):
    share = synthetic.make_share(SMALL)
    found = assemble(share, workers=workers)
    assert len(found.bounds) == workers + 1 and found.bounds[0] == 0 and found.bounds[-1] == 60
    cells = []
    for parts in (found.training, found.held_out):
        for worker, part in enumerate(parts):
            assert (part.rows < found.bounds[worker + 1] - found.bounds[worker]).all()
            cells += ((part.rows + found.bounds[worker]) * 40 + part.columns).tolist()
    assert sorted(cells) == sorted(share.identities.tolist())
    assert found.num_training + found.num_held_out == 500
    values = np.concatenate([part.values for part in found.training]).astype(np.float64)
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean())
    assert found.column_counts.sum() == found.row_counts.sum() == len(values)


def test_what_is_held_out_is_chosen_by_seed_and_identity_alone():
    identities = np.arange(100_000, dtype=np.uint64) * np.uint64(17)
    chosen = matrix.is_held_out(identities, 0.1, 1)
    assert abs(chosen.mean() - 0.1) < 0.005
    assert np.array_equal(matrix.is_held_out(identities[::-1], 0.1, 1)[::-1], chosen)
    other = matrix.is_held_out(identities, 0.1, 2)
    assert abs((chosen & other).mean() - 0.01) < 0.002
    assert not matrix.is_held_out(identities, 0.0, 1).any()


def test_names_are_numbered_in_the_same_way_whatever_their_order():
    found = assemble(read_share(Source("m", b"10 b 1\n9 c 2\n10 a 3\n")), fraction=0.0)
    assert found.row_ids == ["9", "10"]
    assert found.column_ids == ["a", "b", "c"]
    assert found.training[0].columns.tolist() == [0, 1, 2]
    assert found.training[0].rows.tolist() == [1, 1, 0]


def test_a_file_of_held_out_ratings_may_have_new_names():
    found = assemble(read_share(Source("m", b"a x 1\nb y 2\n")), read_share(Source("t", b"a z 5\nc x 1\n")))
    assert found.row_ids == ["a", "b", "c"] and found.column_ids == ["x", "y", "z"]
    assert found.num_held_out == 2 and found.high == 2
    assert found.row_counts.tolist() == [1, 1, 0]


def test_matrices_that_do_not_belong_together():
    named = read_share(Source("m", b"a x 1\n"))
    with pytest.raises(AppError, match="one matrix"):
        assemble(synthetic.make_share(SMALL), named)
    with pytest.raises(AppError, match="no ratings"):
        assemble(read_share(Source("m", b"")))


def test_ratings_travel_in_rounds(monkeypatch):
    share = synthetic.make_share(SMALL)
    expected = assemble(share).training[0]
    monkeypatch.setattr(matrix, "RECORDS_AT_ONCE", 7)
    found = assemble(share).training[0]
    for name in ("rows", "columns", "values"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_duplicates_are_ratings_too():
    empty = np.empty(0, np.int32)
    assert len(Share(empty, empty, empty, empty)) == 0
    found = assemble(read_share(Source("m", b"a x 1\na x 3\na x 2\n")), fraction=0.0)
    assert found.training[0].values.tolist() == [1, 2, 3]


# --- placement and rates ---------------------------------------------------------------------------


class TwoRanks:
    """As much of a communicator as a decision needs: this rank stands for two alike."""

    size, rank = 2, 0

    def Allreduce(self, mine, total):
        total[:] = 2 * mine


def decide(*given, sharing=1):
    args = options(*given)
    share = synthetic.make_share(Recipe(200, 100, 5000))
    return placement.decide(TwoRanks(), args, assemble(share), 6, Ranks(2, sharing)), args


@pytest.mark.parametrize("algorithm", ["dsgd", "columnwise", "plain"])
@pytest.mark.parametrize("management", ["classic", "lapse", "lapse2"])
def test_what_moves_and_what_is_replicated(management, algorithm):
    chosen, _ = decide("--management", management, "--algorithm", algorithm, "--replicate", 9)
    shares = algorithm != "dsgd"
    replicated = 9 if management == "lapse2" and shares else 0
    assert chosen.moves == (management != "classic")
    assert len(chosen.replicated_keys) == replicated
    assert chosen.localized_columns.sum() == (100 - replicated if chosen.moves and shares else 0)
    assert set(chosen.replicated_keys) <= set(range(200, 300)) and (np.diff(chosen.replicated_keys) > 0).all()
    assert not chosen.localized_columns[chosen.replicated_keys - 200].any()
    assert (chosen.lookahead > 0) == (chosen.moves and shares)
    assert (chosen.replication.max_pending is not None) == (replicated > 0)


def test_where_all_ranks_share_memory_nothing_moves():
    chosen, _ = decide("--algorithm", "plain", sharing=2)
    assert not chosen.moves and not chosen.localized_columns.any() and not len(chosen.replicated_keys)


def test_the_hottest_columns_are_replicated():
    chosen, _ = decide("--algorithm", "plain", "--batch", 100, "--replicate", 3)
    assert len(chosen.replicated_keys) == 3 and set(chosen.replicated_keys) < set(range(200, 208))


def test_by_default_replicas_take_a_tenth_of_the_size_of_all_values():
    chosen, _ = decide("--algorithm", "plain", "--batch", 100)
    assert len(chosen.replicated_keys) == 30


@pytest.mark.parametrize(
    "given, expected",
    [
        (("--batch", 10), 2 * 10 * 2),
        (("--batch", 10, "--workers", 3), 2 * 10 * 6),
        (("--sync-ratings", 77), 77),
    ],
)
def test_ratings_between_two_rounds(given, expected):
    ratings = assemble(synthetic.make_share(Recipe(200, 100, 5000)))
    assert placement.ratings_per_round(options(*given), ratings, 2) == expected


def test_a_round_has_few_ratings_of_the_hottest_column():
    ratings = assemble(synthetic.make_share(Recipe(2000, 100, 50_000)))
    most = placement.ratings_per_round(options("--batch", 100_000), ratings, 8)
    assert 99 < most * ratings.column_counts.max() / ratings.num_training <= 100


def test_one_rank_moves_nothing():
    args = options("--algorithm", "plain")
    chosen = placement.decide(MPI.COMM_SELF, args, assemble(synthetic.make_share(SMALL)), 6, Ranks(1))
    assert not chosen.moves and not chosen.localized_columns.any() and not len(chosen.replicated_keys)
    assert chosen.replication == lapse.Replication()


@pytest.mark.parametrize("algorithm", ["columnwise", "plain"])
def test_expected_batches_agree_with_a_simulation(algorithm):
    rng = np.random.default_rng(0)
    counts, batch, rounds = rng.geometric(0.02, 30) - 1, 50, 200
    columns = np.repeat(np.arange(30), counts)
    found = np.zeros(30)
    for _ in range(rounds):
        order = rng.permutation(len(columns))
        order = order if algorithm == "plain" else np.argsort(rng.permutation(30)[columns], kind="stable")
        for begin in range(0, len(order), batch):
            found[np.unique(columns[order[begin : begin + batch]])] += 1 / rounds
    np.testing.assert_allclose(placement.expected_batches(counts, batch, algorithm), found, rtol=0.05, atol=0.15)


def test_defaults_that_depend_on_other_options():
    assert (options().rank, options().entries, options().batch) == (5, 50_000, 16384)
    assert options("--rows", 10, "--columns", 5).entries == 10
    chosen = options("--ratings", "x", "--algorithm", "plain", "--step", "adagrad", "--decay", 1)
    assert (chosen.rank, chosen.learning_rate, chosen.decay, chosen.batch) == (40, 0.05, 1.0, 1024)


def test_rates():
    decaying = Rates(options("--decay", 0.5, "--learning-rate", 0.8), None)
    assert [decaying.rate(epoch) for epoch in range(3)] == [0.8, 0.4, 0.2]
    assert Rates(options("--step", "adagrad"), None).rate(7) == 0.05
    driver = Rates(options("--step", "bold-driver", "--learning-rate", 0.1), None)
    rates = []
    for loss in (1.0, 0.5, 0.7, 0.6):
        driver.learn(loss)
        rates.append(driver.rate(99))
    assert rates == pytest.approx([0.1, 0.105, 0.0525, 0.055125])
    assert Rates(options("--step", "bold-driver"), driver.state).rate(3) == pytest.approx(0.055125)


# What looks wrong ---------------------------------------------------------------------------------


MARKET = b"%%MatrixMarket matrix coordinate real general\n200000 2 2\n1 1 1\n2 2 2\n"


def doubts(ratings, test=None, fraction=0.0):
    share, held_out = (None if text is None else read_share(Source("m", text)) for text in (ratings, test))
    return matrix.doubts(MPI.COMM_SELF, assemble(share, held_out, fraction), test is not None, fraction)


@pytest.mark.parametrize(
    "ratings, test, fraction, expected",
    [
        (
            b"a x 1\na y 2\nb x 3\n",
            b"a x 1\nb x 2\nb y 2\n",
            0.0,
            "2 of 3 ratings of --test are of a cell",
        ),
        (
            b"a x 1\nb y 2\n",
            b"c x 1\na z 2\nb x 2\n",
            0.0,
            "2 of 3 ratings of --test are of users",
        ),
        (b"a x 1\na y 1\n", None, 0.0, "all ratings are 1"),
        (b"a x 1\nb y 2\na x 2\na x 3\n", None, 0.0, "2 ratings are of a cell that has another one"),
        (b"a x 1\nb y 2\n", None, 1e-9, "no rating is held out"),
        (
            b"%%MatrixMarket matrix coordinate real general\n200000 2 2\n1 1 1\n2 2 2\n",
            None,
            0.0,
            "2 of 200,000 rows have",
        ),
        (b"a x 1\nb y 2\n", b"a y 1\n", 0.0, None),
    ],
)
def test_what_looks_wrong_is_said(ratings, test, fraction, expected):
    found = doubts(ratings, test, fraction)
    assert len(found) == (expected is not None), found
    assert expected is None or expected in found[0]
