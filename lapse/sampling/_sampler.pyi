from typing_extensions import Self

from lapse.options.sampling import Sampling
from lapse.sampling._draws import Table

DRAWS: int
ORDERS: int

class Sampler:
    def __new__(cls, sampling: Sampling, table: Table, seed: int, worker: int) -> Self: ...
    @property
    def num_open(self) -> int: ...

class Sample:
    @property
    def number(self) -> int: ...
    @property
    def left(self) -> int: ...
    def __del__(self) -> None: ...
