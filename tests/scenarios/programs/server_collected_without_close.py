"""The server is garbage-collected before anybody closes it."""

import gc

import numpy as np

import lapse
from common import tell, world


def use():
    server = lapse.Server(20, 2)
    server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))


use()
gc.collect()
world.Barrier()
tell("end")
