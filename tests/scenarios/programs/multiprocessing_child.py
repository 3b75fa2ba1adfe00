"""A child of `multiprocessing` starts and ends while a server is open."""

import multiprocessing
import time

import numpy as np

import lapse
from common import size

with lapse.Server(20, 2) as server:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=time.sleep, args=(0.01,))
    process.start()
    process.join()
    assert process.exitcode == 0
    server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
    assert (server.run(lambda kv: kv.pull(range(20)).wait())[0] == size).all()
