"""JSON that is read into dataclasses and checked."""

from functools import cached_property
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pydantic import TypeAdapter


class ShapeError(ValueError):
    """The JSON is not of the shape."""


class Shape[T]:
    """The form of a dataclass as JSON.

    It is worked out when it is first needed, and pydantic imported only then: a service starts in half of the time
    without, and many a one never reads a file or asks a probe (decision 0021).
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind

    def read(self, content: bytes | str) -> T:
        """What the JSON holds. Raises ShapeError, which says what is wrong first."""
        from pydantic import ValidationError

        try:
            return self._adapter.validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ShapeError(f"{where}: {first['msg']}" if where else first["msg"]) from None

    def write(self, value: T, indent: int | None = None) -> bytes:
        """The value as JSON."""
        return self._adapter.dump_json(value, indent=indent)

    @cached_property
    def _adapter(self) -> "TypeAdapter[T]":
        from pydantic import TypeAdapter

        return cast("TypeAdapter[T]", TypeAdapter(self._kind))
