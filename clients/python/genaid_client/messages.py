"""What every conversion rests on: enums, requests, and results that mirror messages field by field."""

import dataclasses
from collections.abc import Callable
from datetime import UTC
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from genaid_client.errors import InvalidRequestError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

LONGEST: Final = 315_576_000_000  # seconds of the longest google.protobuf.Duration


class Names[Member: StrEnum, Number: int]:
    """An enum of `types` and its counterpart in the contract; their members have the same names."""

    def __init__(self, members: type[Member], wrapper: "_EnumTypeWrapper[Number]") -> None:
        self._unspecified = wrapper.values()[0]
        prefix = wrapper.Name(self._unspecified).removesuffix("UNSPECIFIED")
        self._numbers = {member: wrapper.Value(prefix + member.name) for member in members}
        self._members = {number: member for member, number in self._numbers.items()}

    def to_pb(self, member: Member | None) -> Number:
        """The number; that of unspecified for None."""
        return self._unspecified if member is None else self._numbers[member]

    def from_pb(self, number: Number) -> Member | None:
        """The member; None for unspecified, and for a number of a newer server's."""
        return self._members.get(number)


def request[**Fields, Request: Message](
    kind: Callable[Fields, Request], *args: Fields.args, **fields: Fields.kwargs
) -> Request:
    """The message with these fields; None leaves one absent.

    Raises InvalidRequestError for a value that no message can hold: a number beyond its type, text that is no Unicode.
    """
    try:
        return kind(*args, **fields)
    except ValueError as error:
        field = next(name for name, value in fields.items() if not _fits(kind, name, value))
        raise InvalidRequestError(f"`{field}` can't be sent: {error}.", {"field": field}) from error


def _fits(kind: Callable[..., Message], name: str, value: object) -> bool:
    try:
        kind(**{name: value})
    except ValueError:
        return False
    return True


def mirror[Result: "DataclassInstance"](kind: type[Result], message: Message, /, **converted: Any) -> Result:
    """A dataclass out of the message's fields of the same names, but for those that are given converted."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in converted]
    return kind(**{name: _value(message, name) for name in names}, **converted)


def _value(message: Any, name: str) -> Any:
    if message.DESCRIPTOR.fields_by_name[name].has_presence and not message.HasField(name):
        return None
    value = getattr(message, name)
    return value.ToDatetime(UTC) if isinstance(value, Timestamp) else value


def to_seconds(duration: Duration) -> float:
    """A duration of a message in seconds."""
    return duration.seconds + duration.nanos / 1e9


def to_duration(field: str, seconds: float) -> Duration:
    """Seconds as a message has them. Raises InvalidRequestError, which names `field`, where no message can."""
    if not abs(seconds) <= LONGEST:  # so written, it refuses NaN as well
        raise InvalidRequestError(f"`{field}` can't be {seconds} seconds.", {"field": field})
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
