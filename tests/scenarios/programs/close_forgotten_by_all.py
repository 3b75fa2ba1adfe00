"""No rank closes its server."""

import time

import numpy as np

import lapse
from common import rank, tell

server = lapse.Server(20, 2)
server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
time.sleep(0.3 * rank)
tell("end")
