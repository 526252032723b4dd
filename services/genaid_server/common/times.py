"""Times and durations, to the contract's."""

from typing import Final

from google.protobuf import duration_pb2, timestamp_pb2

_LONGEST: Final = 315_576_000_000  # seconds in a Duration: ten thousand years


def time_to_pb(seconds: float) -> timestamp_pb2.Timestamp:
    """Seconds since the epoch."""
    message = timestamp_pb2.Timestamp()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


def duration_to_pb(seconds: float) -> duration_pb2.Duration:
    """Seconds, negative ones as well; what a Duration can't hold becomes the nearest that it can."""
    message = duration_pb2.Duration()
    message.FromMicroseconds(round(min(max(seconds, -_LONGEST), _LONGEST) * 1e6))
    return message
