"""Names of the files that a model too large for one was split into: `NAME-00001-of-00003.gguf`.

llama.cpp is given the first one, and finds the others beside it by these names.
"""

import re
from dataclasses import dataclass
from typing import Final

MAX_SHARDS: Final = 1000
"""The largest models have some hundred."""

_SHARD: Final = re.compile(r"(?P<base>.+)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})(?P<suffix>\.gguf)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ShardName:
    """The parts of a shard's name; `number` counts from 1 to `total`."""

    base: str
    number: int
    total: int
    suffix: str

    def __str__(self) -> str:
        return f"{self.base}-{self.number:05}-of-{self.total:05}{self.suffix}"

    def siblings(self) -> "tuple[ShardName, ...]":
        """All shards of the model, this one included, in order."""
        return tuple(ShardName(self.base, number, self.total, self.suffix) for number in range(1, self.total + 1))


def shard_name(name: str) -> ShardName | None:
    """Take a file's name apart; None where it is no shard's, or one of an impossible number of shards."""
    found = _SHARD.fullmatch(name)
    if not found:
        return None
    number, total = int(found["number"]), int(found["total"])
    if not 1 <= number <= total <= MAX_SHARDS:
        return None
    return ShardName(found["base"], number, total, found["suffix"])
