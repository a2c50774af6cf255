"""Turn a fuzzer's bytes into choices."""

import struct
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Makes choices from bytes; each choice uses some. Without bytes, it is the first option."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        """Take up to `count` bytes."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def byte(self) -> int:
        return (self.take(1) or b"\0")[0]

    def number(self) -> int:
        """A number: mostly small, sometimes any of 64 bits."""
        first = self.byte()
        if first < 240:
            return first % 16
        return int(struct.unpack("<Q", self.take(8).ljust(8, b"\0"))[0])

    def blob(self) -> bytes:
        """Bytes, preceded by their length."""
        return self.take(self.byte())

    def one_of(self, values: Sequence[T]) -> T:
        return values[self.byte() % len(values)]
