"""The calls about an engine's log, which all services with an engine have."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any, ClassVar

from genaid_server.common.convert import record_to_pb
from genaid_server.supervision.logbook import Logbook, in_portions, lines_asked, newest_within


class LogServicer(ABC):
    """ListLogs, TailLogs and ClearLogs of a service; `messages` is the module that has its responses."""

    messages: ClassVar[ModuleType]

    @abstractmethod
    def logbook_of(self, request: Any) -> Logbook:
        """The log that a request is about. Raises DomainError where there is none."""

    async def ListLogs(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The newest log lines."""
        logbook = self.logbook_of(request)
        lines = lines_asked(request.lines if request.HasField("lines") else None)
        return self.messages.ListLogsResponse(
            entries=[record_to_pb(record) for record in newest_within(logbook.tail(lines))]
        )

    async def TailLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Log lines as they come."""
        logbook = self.logbook_of(request)
        start = request.from_sequence if request.HasField("from_sequence") else None
        async for records in logbook.watch(start):
            for portion in in_portions(records):
                yield self.messages.TailLogsResponse(entries=[record_to_pb(record) for record in portion])

    async def ClearLogs(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Forget the log."""
        self.logbook_of(request).clear()
        return self.messages.ClearLogsResponse()
