"""Training from a DataLoader whose worker processes are forked or spawned; argument: how, or "interrupt" for Ctrl-C.

Nothing here initializes MPI before the server does: a spawned process imports this file, and is no rank.
"""

import itertools
import os
import signal
import sys

import torch

import lapse
import lapse.torch

ROWS, BATCHES = 100, 12


class Numbers(torch.utils.data.Dataset):
    """Batch i has the ids i and i + 1."""

    def __len__(self):
        return BATCHES

    def __getitem__(self, number):
        return torch.tensor([number, number + 1])


def train(kv, users, loader, at_step):
    module = lapse.torch.Embedding(kv, users)
    seen = []
    for step, batch in enumerate(lapse.torch.Prefetcher(loader, kv, users.keys, 3)):
        module(batch).sum().backward()
        seen += batch.flatten().tolist()
        at_step(step)
    kv.barrier()
    counts = -module.to_local().weight.detach()[: BATCHES + 1, 0]
    in_order, once = (
        seen == [n + i for n in range(BATCHES) for i in (0, 1)],
        counts.sum() == 2 * BATCHES * kv.num_workers,
    )
    sys.stdout.write(f"[{kv.rank}] {in_order} {bool(once)}\n")  # in one write: ranks cannot mix it
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    method = sys.argv[1]
    tables = lapse.Tables(users=lapse.Table(ROWS, 4, optimizer=lapse.optim.SGD(lr=1.0)))
    with lapse.Server(tables) as server, server.worker() as kv:
        if method == "interrupt":
            last = kv.num_workers - 1
            endless = itertools.repeat(Numbers()[0])
            train(
                kv, tables["users"], endless, lambda n: n == 5 and kv.id == last and os.kill(os.getpid(), signal.SIGINT)
            )
        loader = torch.utils.data.DataLoader(Numbers(), batch_size=None, num_workers=1, multiprocessing_context=method)
        train(kv, tables["users"], loader, lambda step: None)
