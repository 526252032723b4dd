"""JSON that is read into dataclasses and checked."""

import msgspec


class ShapeError(ValueError):
    """The JSON is not of the shape."""


class Shape[T]:
    """The form of a dataclass as JSON. Keys that it doesn't have are passed over: they are a later version's."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)

    def read(self, content: bytes | str) -> T:
        """What the JSON holds. Raises ShapeError, which says what is wrong first."""
        try:
            return self._decoder.decode(content)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ShapeError(str(error)) from None
        except RecursionError:
            raise ShapeError("it is nested too deeply") from None

    def write(self, value: T, indent: int | None = None) -> bytes:
        """The value as JSON."""
        written = msgspec.json.encode(value)
        return written if indent is None else msgspec.json.format(written, indent=indent)
