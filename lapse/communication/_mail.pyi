from typing_extensions import Self

from lapse.protocol._protocol import Protocol

MAX_LETTER_BYTES: int

class Mail:
    def __new__(cls, protocol: Protocol) -> Self: ...
    def post(self, destination: int, data: bytes) -> None: ...
    def take(self, source: int) -> bytes | None: ...
