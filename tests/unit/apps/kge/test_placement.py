"""Options and their defaults, shares of triples, and what is replicated."""

import argparse

import numpy as np
import pytest

from lapse.apps._shared import placement as shared
from lapse.apps._shared.job import AppError
from lapse.apps._shared.placement import Ranks
from lapse.apps.kge import options as kge_options
from lapse.apps.kge import placement, train
from lapse.apps.kge.data import Dataset
from lapse.apps.kge.models import Model


def options(*given):
    return kge_options.parse([str(option) for option in given])


def graph(num_entities=100, num_relations=5, triples=2000, seed=0):
    """Entity and relation 0 are the most frequent ones."""
    rng = np.random.default_rng(seed)
    s, o = (np.minimum(rng.zipf(1.5, triples) - 1, num_entities - 1) for _ in range(2))
    r = np.minimum(rng.zipf(2.0, triples) - 1, num_relations - 1)
    return np.stack([s, r, o], axis=1)


def model_of(args, num_entities=100, num_relations=5):
    return Model(args.model, args.dim, args.norm, args.reciprocal_relations, num_entities, num_relations)


def test_defaults_come_from_common_then_model_then_preset_and_options_win():
    assert options().dim == kge_options.DEFAULTS["complex"]["dim"]
    assert options().loss == kge_options.COMMON["loss"]
    assert options("--model", "rescal").reciprocal_relations is False
    assert options("--model", "rescal", "--dim", 8).dim == 8
    papers = options("--preset", "lapse")
    assert (papers.loss, papers.num_negs_per_pos, papers.reciprocal_relations) == ("bce", 10, False)
    assert papers.entity_n3 == 0
    fast = options("--preset", "fast", "--model", "rescal", "--dim", 8, "--dura", 0.01)
    assert (fast.num_negs_per_pos, fast.dim, fast.dura) == (kge_options.ALL, 8, 0.01)
    assert fast.reciprocal_relations and fast.entity_n3 == 0
    assert options("--preset", "fast", "--epochs", 3).min_triples == 0 < fast.min_triples
    assert options("--preset", "fast", "--epochs", 3, "--min-triples", 7).min_triples == 7
    adam = options("--preset", "fast", "--optimizer", "adam")
    assert (adam.lr, adam.combine) == (kge_options.ADAM_LR, "sum")
    assert options("--optimizer", "adam", "--lr", 0.5, "--combine", "sum").lr == 0.5
    assert (options().lr, options().combine) == (kge_options.COMMON["lr"], "adagrad")
    sampled = options("--preset", "quality", "--num-negs-per-pos", 64)
    assert (sampled.num_negs_per_pos, sampled.relation_weight, sampled.entity_n3) == (64, 0, options().entity_n3)


def test_small_graphs_are_trained_for_more_epochs_if_a_number_of_triples_is_wanted():
    assert kge_options.epochs_for(options("--epochs", 3), 10) == 3
    assert kge_options.epochs_for(options("--epochs", 3, "--min-triples", 31), 10) == 4
    assert kge_options.epochs_for(options("--epochs", 5, "--min-triples", 31), 10) == 5
    assert kge_options.epochs_for(options("--epochs", 3, "--min-triples", 31), 0) == 31
    for name in ("fast", "quality", "best"):  # the graph that the presets were found on, and a larger one
        for model in kge_options.DEFAULTS:
            args = options("--preset", name, "--model", model)
            assert kge_options.epochs_for(args, 272_115) == kge_options.epochs_for(args, 1_000_000) == args.epochs


@pytest.mark.parametrize(
    "given, said",
    [
        (("--num-negs-per-pos", "all", "--model", "transe"), "distances"),
        (("--num-negs-per-pos", "all", "--loss", "bce"), "--loss softmax"),
        (("--num-negs-per-pos", "all", "--partition", "relation"), "together"),
        (("--relation-weight", 1), "all"),
        (("--dura", 0.1, "--num-negs-per-pos", 4), "all"),
        (("--targets-per-query", 4), "argument --targets-per-query: requires --num-negs-per-pos all"),
        (("--relation-weight", 1, "--num-negs-per-pos", "all", "--model", "rescal"), "rescal"),
        (("--num-negs-per-pos", 0), "at least 1"),
        (("--optimizer", "adam", "--combine", "adagrad"), "adagrad is a rule about AdaGrad's steps"),
    ],
)
def test_options_that_do_not_go_together(given, said, capsys):
    with pytest.raises(SystemExit):
        options(*given)
    assert said in capsys.readouterr().err
    assert options("--preset", "lapse", "--loss", "softmax").loss == "softmax"
    assert options("--no-reciprocal-relations").reciprocal_relations is False
    assert options("--entity-n3", 0).entity_n3 == 0
    assert None not in {name: value for name, value in vars(options()).items() if name in kge_options.COMMON}.values()


def test_the_length_of_a_relation():
    assert Model("rescal", 6, 1, False, 10, 3).relation_length == 36
    two_ways = Model("complex", 6, 1, True, 10, 3)
    assert (two_ways.relation_length, two_ways.num_keys) == (6, 16)
    with pytest.raises(AppError, match="even"):
        Model("complex", 7, 1, True, 10, 3)


@pytest.mark.parametrize(
    "bad",
    [
        ("--lr", 0),
        ("--lr-final", 2),
        ("--entity-dropout", 1),
        ("--entity-n3", -1),
        ("--entity-l2", "x"),
        ("--relation-dropout", "nan"),
    ],
)
def test_numbers_out_of_range(bad, capsys):
    with pytest.raises(SystemExit):
        options(*bad)
    assert str(bad[1]) in capsys.readouterr().err


def test_all_options_have_help(capsys):
    with pytest.raises(SystemExit):
        options("--help")
    shown = capsys.readouterr().out
    for name in (
        "--dataset",
        "--model",
        "--replicate",
        "--sync-triples",
        "--sampling-scheme",
        "--eval-every",
        "--checkpoint-every",
        "--resume",
        "rescal",
    ):
        assert name in shown
    assert isinstance(options(), argparse.Namespace)


def test_the_learning_rate_falls_linearly():
    args = options("--epochs", 5, "--lr", 0.2, "--lr-final", 0.1)
    assert [train.learning_rate(args, epoch) for epoch in (0, 2, 4)] == pytest.approx([0.2, 0.11, 0.02])


def plan_of(args, triples, workers):
    names = [str(i) for i in range(100)]
    dataset = Dataset(names, names[:5], triples, triples[:0], triples[:0])
    return train.Plan(args, dataset, None, None, model_of(args), None, train.assign_triples(args, triples, workers))


@pytest.mark.parametrize("partition", ["random", "relation"])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_each_triple_is_trained_once_an_epoch(partition, workers):
    triples = graph()
    plan = plan_of(options("--partition", partition, "--batch-size", 64), triples, workers)
    epochs = []
    for epoch in (0, 1):
        blocks = [block for worker in range(workers) for block in train.batches(plan, worker, epoch)]
        assert max(map(len, blocks)) <= 64
        epochs.append(np.concatenate(blocks))
        assert sorted(map(tuple, epochs[-1])) == sorted(map(tuple, triples))
    assert (epochs[0] != epochs[1]).any()


def test_triples_of_a_relation_stay_together():
    triples = graph(num_relations=5)
    shares = train.assign_triples(options("--partition", "relation"), triples, 3)
    owners = [{worker for worker, share in enumerate(shares) if r in triples[share, 1]} for r in range(5)]
    assert all(len(owner) <= 1 for owner in owners)


def test_the_order_depends_on_seed_epoch_and_worker_only():
    triples = graph()
    for management in ("classic", "lapse2"):
        plan = plan_of(options("--management", management, "--seed", 3), triples, 2)
        first = next(train.batches(plan, 1, 4))
        assert (first == next(train.batches(plan_of(options("--seed", 3), triples, 2), 1, 4))).all()


def test_usage_counts_the_blocks_that_use_a_key():
    args = options("--model", "distmult", "--batch-size", 100, "--num-negs-per-pos", 5)
    triples, model = graph(), model_of(args)
    usage = placement.expect_usage(args, model, triples)
    counted = np.zeros(model.num_keys)
    for block in train.batches(plan_of(args, triples, 1), 0, 0):
        keys = np.concatenate([block[:, 0], block[:, 2], 100 + block[:, 1], 105 + block[:, 1]])
        counted[np.unique(keys)] += 1
    np.testing.assert_allclose(usage.positive, counted, atol=6)
    assert usage.units == 20
    assert usage.sampled[:100] == pytest.approx(20 * (1 - 0.99**10))
    assert not usage.sampled[100:].any()
    assert (usage.together <= usage.units + 1e-9).all()


def test_what_is_used_most_is_replicated():
    args = options("--replicate", 2)
    model = model_of(args)
    chosen = placement.decide(args, model, graph(), Ranks(4))
    usage = placement.expect_usage(args, model, graph())
    assert usage.positive[chosen.replicated_keys].min() >= np.sort(usage.positive)[-2]
    assert chosen.replication.max_pending >= 1 and chosen.localize
    for given, ranks in ((args, Ranks(1)), (options("--management", "lapse"), Ranks(4))):
        assert len(placement.decide(given, model, graph(), ranks).replicated_keys) == 0


def test_where_all_ranks_share_memory_everything_is_local():
    args = options()
    chosen = placement.decide(args, model_of(args), graph(), Ranks(4, 4))
    assert len(chosen.replicated_keys) == 0 and not chosen.localize and chosen.sampling.scheme == "naive"
    args = options("--replicate", 2)  # who asks for it gets it
    assert len(placement.decide(args, model_of(args), graph(), Ranks(4, 4)).replicated_keys) == 2


@pytest.mark.parametrize(
    "management, num_entities, scheme",
    [("classic", 100, "naive"), ("lapse", 100, "preloc"), ("lapse2", 100, "preloc"), ("lapse2", 100_000, "local")],
)
def test_each_management_has_a_sampling_scheme(management, num_entities, scheme):
    """Where a rank owns few entities, negatives are not drawn among them."""
    args = options("--management", management, "--replicate", 5)
    assert placement.decide(args, model_of(args, num_entities), graph(), Ranks(3)).sampling.scheme == scheme


def test_a_chosen_scheme_stays():
    args = options("--sampling-scheme", "pool", "--sampling-reuse", 4, "--sampling-postpone")
    sampling = placement.decide(args, model_of(args), graph(), Ranks(3)).sampling
    assert (sampling.scheme, sampling.reuse, sampling.postpone) == ("pool", 4, True)


def test_workers_wait_before_all_ranks_together_have_trained_the_triples_of_a_round():
    args = options("--sync-triples", 3000, "--batch-size", 100)
    model, triples = model_of(args), graph()
    usage = placement.expect_usage(args, model, triples)
    replicated = np.array([0, 1, 100])
    pushes_per_triple = usage.together[replicated].sum() / len(triples)
    for ranks in (2, 4):
        most = shared.pace(usage, replicated, args.sync_triples, Ranks(ranks)).max_pending
        assert 0.6 * 3000 < 1.5 * most / pushes_per_triple * ranks <= 3000


def test_all_values_are_replicated_if_they_fit():
    """Then nothing is relocated, and negatives may be any entities."""
    args = options("--dim", 100)
    chosen = placement.decide(args, model_of(args), graph(), Ranks(4))
    assert chosen.replicated_keys.tolist() == list(range(110))
    assert not chosen.localize and chosen.lookahead == 0 and chosen.sampling.scheme == "naive"
    assert (chosen.replication.combine, chosen.replication.wire) == ("adagrad", "bfloat16")
    assert placement.decide(options("--wire", "exact"), model_of(args), graph(), Ranks(4)).replication.wire == "exact"


@pytest.mark.parametrize("model_name", ["complex", "rescal"])
def test_the_most_used_values_that_fit_are_replicated(model_name):
    """Whatever their lengths: relations of RESCAL are matrices."""
    args = options("--model", model_name, "--dim", 400, "--replica-memory", 1)
    model = model_of(args)
    chosen = placement.decide(args, model, graph(), Ranks(4))
    usage = placement.expect_usage(args, model, graph()).positive
    lengths = placement.value_lengths(model, args.optimizer)
    others = np.setdiff1d(np.arange(model.num_keys), chosen.replicated_keys)
    taken = 3 * 4 * lengths[chosen.replicated_keys].sum()
    assert taken <= 1e6 < taken + 3 * 4 * lengths[others[usage[others].argmax()]]
    assert usage[chosen.replicated_keys].min(initial=np.inf) >= usage[others].max()
    assert chosen.localize


@pytest.mark.parametrize("ranks", [2, 4])
def test_rounds_are_frequent_in_the_first_epochs_and_rare_later(ranks):
    args = options("--batch-size", 10)
    model, triples = model_of(args), graph(triples=20_000)
    chosen = placement.decide(args, model, triples, Ranks(ranks))
    pushes = placement.expect_usage(args, model, triples).together.sum() / ranks
    for epoch, rounds, max_late in ((0, 25, 0), (4, 25, 0), (5, 4, None), (24, 4, None)):
        assert pushes / chosen.pace(epoch).max_pending == pytest.approx(rounds, rel=0.01)
        assert chosen.pace(epoch).max_late == max_late
    assert chosen.replication.max_pending == chosen.pace(0).max_pending


@pytest.mark.parametrize("given, triples", [(("--combine", "sum"), 4096), (("--sync-triples", 1000), 1000)])
def test_sums_and_a_chosen_pace_are_the_same_in_all_epochs(given, triples):
    args = options("--batch-size", 10, *given)
    model = model_of(args)
    chosen = placement.decide(args, model, graph(), Ranks(2))
    usage = placement.expect_usage(args, model, graph())
    expected = shared.pace(usage, chosen.replicated_keys, triples, Ranks(2)).max_pending
    assert chosen.pace(0) == chosen.pace(20) == (expected, None) and chosen.replication.max_pending == expected
    assert chosen.replication.combine == args.combine
