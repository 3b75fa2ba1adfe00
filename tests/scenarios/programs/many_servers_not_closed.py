"""No rank closes any of six servers; how much else each collects differs."""

import lapse
from common import rank, tell

servers = []
for number in range(6):
    waste = [object() for _ in range(1000 * rank + 77 * number)]
    servers.append(lapse.Server(20, 2))
tell("end")
