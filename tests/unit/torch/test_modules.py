"""`Embedding` and `EmbeddingBag` against those of PyTorch, in one process."""

import contextlib

import numpy as np
import pytest

import lapse

torch = pytest.importorskip("torch", reason="needs PyTorch, which is not installed: pip install 'lapse[torch]'")
import lapse.torch as lt  # noqa: E402

nn = torch.nn
ROWS, LENGTH = 100, 6
#: Where the output is computed: by the package's own loops, or by PyTorch on a device.
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and there is none")
DEVICES = [None, "cpu", pytest.param("cuda", marks=NEEDS_GPU)]


@contextlib.contextmanager
def served(rows=None, optimizer=None, dtype="float32"):
    """A worker, and a table with some rows, behind another table of other lengths."""
    optimizer = lapse.optim.SGD(lr=0.1) if optimizer is None else optimizer
    tables = lapse.Tables(
        other=lapse.Table(7, 3, optimizer=optimizer), words=lapse.Table(ROWS, LENGTH, optimizer=optimizer)
    )
    with lapse.Server(tables, dtype=dtype) as server, server.worker() as kv:
        if rows is not None:
            kv.set(tables["words"].keys(), rows.reshape(-1)).wait()
        yield kv, tables["words"]


def new_rows(dtype=None):
    return torch.randn(ROWS, LENGTH, dtype=dtype)


def train_both(ours, theirs, optimizer, batches, steps=5):
    """The same steps with both; outputs must agree at each of them."""
    for step in range(steps):
        args = batches(step)
        a, b = ours(*args), theirs(*args)
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)
        weights = torch.randn(b.shape, dtype=b.dtype)
        (a * weights.to(a.device)).sum().backward()
        optimizer.zero_grad()
        (b * weights).sum().backward()
        optimizer.step()
        lt.flush(ours.kv)
    torch.testing.assert_close(ours.to_local().weight, theirs.weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding_idx", [None, 3, -2])
@pytest.mark.parametrize("shape", [(), (5,), (4, 7), (2, 3, 4), (3, 0)])
def test_an_embedding_is_that_of_pytorch(shape, padding_idx, device):
    rows = new_rows()
    theirs = nn.Embedding.from_pretrained(rows.clone(), freeze=False, padding_idx=padding_idx)
    with served(rows) as (kv, table):
        ours = lt.Embedding(kv, table, padding_idx, device=device)
        kinds = [torch.int64, torch.int32]
        batches = lambda step: (torch.randint(90, 100, shape).to(kinds[step % 2]),)  # noqa: E731
        train_both(ours, theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), batches)
        assert ours.to_local().padding_idx == theirs.padding_idx


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("include_last_offset", [False, True])
@pytest.mark.parametrize("mode, weighted", [("sum", False), ("sum", True), ("mean", False)])
def test_an_embedding_bag_is_that_of_pytorch(mode, weighted, include_last_offset, padding_idx, device):
    rows = new_rows()
    options = dict(mode=mode, include_last_offset=include_last_offset, padding_idx=padding_idx)
    theirs = nn.EmbeddingBag.from_pretrained(rows.clone(), freeze=False, **options)
    offsets = torch.tensor([0, 3, 3, 10, 25, 28][: 6 if include_last_offset else 5])

    def batches(step):
        shape = (28,) if step % 2 else (4, 7)
        weights = torch.randn(shape) if weighted else None
        return torch.randint(0, 12, shape), offsets if step % 2 else None, weights

    with served(rows) as (kv, table):
        ours = lt.EmbeddingBag(kv, table, device=device, **options)
        train_both(ours, theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), batches)
        assert (ours.to_local().mode, ours.to_local().padding_idx) == (theirs.mode, theirs.padding_idx)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_of_samples_get_their_gradients(device):
    rows, ids = new_rows(), torch.randint(0, 20, (4, 5))
    theirs = nn.EmbeddingBag.from_pretrained(rows.clone(), mode="sum", padding_idx=2)
    with served(rows) as (kv, table):
        ours = lt.EmbeddingBag(kv, table, "sum", padding_idx=2, device=device)
        weights = [torch.linspace(-1, 1, 20).view(4, 5).requires_grad_() for _ in range(2)]
        for module, w in zip((ours, theirs), weights):
            module(ids, per_sample_weights=w).pow(2).sum().backward()
        torch.testing.assert_close(weights[0].grad, weights[1].grad)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (lapse.optim.SGD(lr=0.1, weight_decay=0.0), lambda p: torch.optim.SGD(p, lr=0.1)),
        (lapse.optim.Adagrad(lr=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
        (lapse.optim.Adam(lr=0.01), lambda p: torch.optim.SparseAdam(p, lr=0.01)),
    ],
    ids=["SGD", "Adagrad", "Adam"],
)
def test_optimizers_of_tables_are_those_of_pytorch(ours, theirs):
    rows = new_rows()
    reference = nn.Embedding.from_pretrained(rows.clone(), freeze=False, sparse=True)
    with served(rows, ours) as (kv, table):
        batches = lambda step: (torch.randint(0, ROWS, (30,)),)  # noqa: E731  (most rows get no gradient)
        train_both(lt.Embedding(kv, table), reference, theirs(reference.parameters()), batches, steps=20)


def test_rows_may_be_float64():
    rows = new_rows(torch.float64)
    theirs = nn.EmbeddingBag.from_pretrained(rows.clone(), freeze=False)
    with served(rows, dtype="float64") as (kv, table):
        batches = lambda step: (torch.randint(0, 100, (3, 4)),)  # noqa: E731
        train_both(lt.EmbeddingBag(kv, table), theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), batches)


def test_a_learning_rate_may_change():
    with served(new_rows()) as (kv, table):
        ours = lt.Embedding(kv, table)
        for rate, change in [(None, 0.1), (0.5, 0.5), (0.0, 0.0)]:
            ours.lr = rate
            before = ours(torch.tensor([4])).detach()
            ours(torch.tensor([4])).sum().backward()
            torch.testing.assert_close(ours(torch.tensor([4])).detach(), before - change)


def test_no_rows_are_in_the_state_and_there_is_nothing_to_optimize():
    with served() as (kv, table):
        for module in (lt.Embedding(kv, table), lt.EmbeddingBag(kv, table)):
            assert module.state_dict() == {} and list(module.parameters()) == [] and list(module.buffers()) == []
            assert "'words', 100, 6" in repr(module)


def test_a_table_that_is_not_trained_stays_as_it_is():
    rows = new_rows()
    with served(rows) as (kv, table):
        ours = lt.Embedding(kv, table).requires_grad_(False)
        layer = nn.Linear(LENGTH, 1)
        layer(ours(torch.arange(5))).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad():
            assert not lt.Embedding(kv, table)(torch.arange(5)).requires_grad
        assert not ours(torch.arange(5)).requires_grad
        torch.testing.assert_close(ours.to_local().weight.detach(), rows)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_several_batches_accumulate(device):
    """One step for their sum, where AdaGrad would see two."""
    rows = new_rows()
    theirs = nn.Embedding.from_pretrained(rows.clone(), freeze=False, sparse=True)
    optimizer = torch.optim.Adagrad(theirs.parameters(), lr=0.1)
    with served(rows, lapse.optim.Adagrad(lr=0.1)) as (kv, table):
        model = nn.Sequential(lt.Embedding(kv, table, device=device))
        for _ in range(3):
            parts = [torch.randint(0, 10, (8,)) for _ in range(3)]
            with lt.no_sync(model):
                for part in parts[:-1]:
                    model(part).pow(2).sum().backward()
            model(parts[-1]).pow(2).sum().backward()
            lt.flush(kv)
            optimizer.zero_grad()
            for part in parts:
                theirs(part).pow(2).sum().backward()
            optimizer.step()
        torch.testing.assert_close(model[0].to_local().weight, theirs.weight)


def test_the_dense_part_may_compute_in_bfloat16():
    rows = new_rows()
    with served(rows) as (kv, table):
        ours, layer = lt.Embedding(kv, table), nn.Linear(LENGTH, 4)
        ids = torch.randint(0, 20, (16,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(ours(ids))
        assert out.dtype == torch.bfloat16
        out.float().pow(2).sum().backward()
        weight = rows.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(weight[ids])
        out.float().pow(2).sum().backward()
        torch.testing.assert_close(ours.to_local().weight.detach(), rows - 0.1 * weight.grad, rtol=0.02, atol=0.02)


def test_the_dense_part_may_be_compiled():
    """The module itself is left as it is; `eager` traces without a C++ compiler."""
    torch._dynamo.reset()
    rows = new_rows()
    with served(rows) as (kv, table):
        ours = lt.Embedding(kv, table)
        model = nn.Sequential(ours, nn.Linear(LENGTH, 1))
        compiled = torch.compile(model, backend="eager")
        ids = torch.randint(0, 20, (16,))
        torch.testing.assert_close(compiled(ids), model(ids))
        compiled(ids).sum().backward()
        assert not torch.equal(ours.to_local().weight, rows)


def test_a_second_backward_pass_counts_again():
    with served(torch.zeros(ROWS, LENGTH)) as (kv, table):
        ours = lt.Embedding(kv, table)
        loss = ours(torch.tensor([1, 1])).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        torch.testing.assert_close(ours.to_local().weight[1].detach(), torch.full((LENGTH,), -0.4))


def test_an_output_that_is_changed_in_place_changes_no_row():
    rows = new_rows()
    with served(rows) as (kv, table):
        ours, ids = lt.Embedding(kv, table), torch.arange(10)
        for (batch,) in lt.Prefetcher([(ids,)] * 3, kv, lambda batch: table.keys(batch[0])):
            with torch.no_grad():
                ours(batch).fill_(0)
                torch.testing.assert_close(ours(batch), rows[:10])


# Errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 100, 2**40])
def test_an_id_outside_the_table_is_named(bad):
    with served() as (kv, table):
        for module in (lt.Embedding(kv, table), lt.EmbeddingBag(kv, table)):
            with pytest.raises(IndexError, match=rf"id {bad} is outside the range 0 \.\. 99 of table 'words'"):
                module(torch.tensor([[4, bad]]))


def test_what_pytorch_refuses_is_refused_with_the_same_type():
    with served() as (kv, table):
        ids, cases = torch.arange(6), []
        for embedding, bag, weighted in (
            (nn.Embedding(ROWS, LENGTH), nn.EmbeddingBag(ROWS, LENGTH), nn.EmbeddingBag(ROWS, LENGTH, mode="sum")),
            (lt.Embedding(kv, table), lt.EmbeddingBag(kv, table), lt.EmbeddingBag(kv, table, "sum")),
        ):
            calls = [
                lambda e=embedding: e(torch.rand(3)),
                lambda e=embedding: e([1, 2]),
                lambda b=bag: b(ids),
                lambda b=bag: b(ids.view(2, 3), torch.tensor([0, 3])),
                lambda b=bag: b(ids.view(1, 2, 3)),
                lambda b=bag: b(ids, torch.tensor([1, 3])),
                lambda b=bag: b(ids, torch.tensor([0, 9])),
                lambda b=bag: b(ids, torch.tensor([[0, 3]])),
                lambda b=bag: b(ids.view(2, 3), per_sample_weights=torch.rand(2, 3)),
                lambda w=weighted: w(ids.view(2, 3), per_sample_weights=torch.rand(3)),
            ]
            raised = []
            for call in calls:
                with pytest.raises(Exception) as caught:  # noqa: PT011  (compared below)
                    call()
                raised.append(caught.value)
            cases.append(raised)
        for theirs, ours in zip(*cases):
            # PyTorch has RuntimeError for some offsets, where Python would have ValueError.
            assert type(ours) is type(theirs) or (isinstance(theirs, RuntimeError) and isinstance(ours, ValueError)), (
                ours
            )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_an_error_and_changes_nothing(bad):
    rows = new_rows()
    with served(rows) as (kv, table):
        for module in (lt.Embedding(kv, table), lt.EmbeddingBag(kv, table, "sum")):
            factor = torch.ones(module(torch.tensor([[7, 8]])).shape)
            factor.view(-1)[-1] = bad
            with pytest.raises(FloatingPointError, match=r"table 'words': the gradient of id \d has (nan|inf)"):
                (module(torch.tensor([[7, 8]])) * factor).sum().backward()
            torch.testing.assert_close(module.to_local().weight.detach(), rows)


@pytest.mark.parametrize("arguments", [{"padding_idx": 100}, {"padding_idx": -101}])
def test_a_padding_outside_the_table_is_refused(arguments):
    with (
        served() as (kv, table),
        pytest.raises(ValueError, match="padding_idx is -?10[01], but must be from -100 to 99"),
    ):
        lt.Embedding(kv, table, **arguments)


def test_arguments_of_another_kind_are_refused():
    with served() as (kv, table):
        with pytest.raises(TypeError, match="one of the server's tables"):
            lt.Embedding(kv, lapse.Table(3, 4))
        with pytest.raises(TypeError, match="kv must be a Worker"):
            lt.Embedding(table, table)
        with pytest.raises(ValueError, match="mode is 'max'"):
            lt.EmbeddingBag(kv, table, "max")
        with pytest.raises(TypeError, match="keys must be a function"):
            lt.Prefetcher([], kv, table.keys([1]))
        with pytest.raises(ValueError, match="lookahead is 0"):
            lt.Prefetcher([], kv, table.keys, lookahead=0)


def test_tensors_that_the_core_cannot_use_are_refused_with_the_call_that_helps():
    with lapse.Server(5, 2) as server, server.worker() as kv:
        for call in (lambda x: kv.push([1], x), lambda x: kv.set([1], x), lambda x: kv.pull([1], out=x)):
            with pytest.raises(TypeError, match=r"has requires_grad=True.*\.detach\(\)"):
                call(torch.ones(1, 2, requires_grad=True))
            with pytest.raises(TypeError, match=r"on meta.*\.cpu\(\)"):
                call(torch.ones(1, 2, device="meta"))
            for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64):
                with pytest.raises(
                    TypeError, match=rf"are {dtype}, but the server holds float32.*\.to\(torch\.float32\)"
                ):
                    call(torch.ones(1, 2, dtype=dtype))
        with pytest.raises(TypeError, match=r"keys is on meta.*keys\.cpu\(\)"):
            kv.pull(torch.ones(1, dtype=torch.int64, device="meta"))
        kv.push(torch.tensor([1]), torch.ones(1, 2)).wait()
        np.testing.assert_array_equal(kv.pull([1]).wait(), 1)


# A GPU, which nobody waits for ------------------------------------------------------------------------


def train_dense_with(bad_step, steps, device):
    """Steps of a linear layer over a table, in one of which a weight's gradient is NaN; returns how many were made."""
    made = 0
    with served(new_rows()) as (kv, table):
        embedding = lt.Embedding(kv, table, device=device)
        layer = nn.Linear(LENGTH, 1).to(device)
        dense = lt.Dense(layer, torch.optim.SGD(layer.parameters(), lr=0.1), kv)
        for step, ids in enumerate(lt.Prefetcher([torch.arange(10)] * steps, kv, table.keys)):
            dense.zero_grad()
            dense(embedding(ids)).sum().backward()
            if step == bad_step:
                layer.weight.grad[0, 0] = float("nan")
            dense.step()
            made += 1
        dense.join()
    return made


@pytest.mark.parametrize("bad_step", [0, 3])
def test_a_bad_gradient_of_a_layer_is_found_before_its_step(bad_step):
    with pytest.raises(FloatingPointError, match="the gradient of weight has NaN .*; no step was made"):
        train_dense_with(bad_step, 4, "cpu")


@NEEDS_GPU
@pytest.mark.parametrize("bad_step", [0, 3])
def test_on_a_gpu_it_is_found_a_step_later(bad_step):
    """In the next step, or at the end; the rows' gradients are NaN then, too, unless no batch follows."""
    with pytest.raises(FloatingPointError, match="the gradient of weight has NaN .*a step was made|table 'words'"):
        train_dense_with(bad_step, 4, "cuda")


@pytest.mark.parametrize("device", DEVICES)
def test_a_prefetched_batch_is_that_of_pytorch(device):
    """Steps of a bag and a layer: rows lack the gradients of one step on a device, which SGD's sum does not show."""
    rows, weights = new_rows(), torch.randn(8, 4, LENGTH)
    theirs = nn.EmbeddingBag.from_pretrained(rows.clone(), freeze=False, mode="sum")
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    batches = [torch.randint(0, ROWS, (4, 7)) for _ in weights]
    with served(rows) as (kv, table):
        ours = lt.EmbeddingBag(kv, table, "sum", device=device)
        for weight, ids in zip(weights, lt.Prefetcher(batches, kv, table.keys, lookahead=3)):
            out = ours(ids)
            (out * weight.to(out.device)).sum().backward()
            optimizer.zero_grad()
            (theirs(ids) * weight).sum().backward()
            optimizer.step()
        lt.flush(kv)
        torch.testing.assert_close(ours.to_local().weight, theirs.weight, rtol=1e-5, atol=1e-5)
