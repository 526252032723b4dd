"""How the blocking face reaches a service: its channel, its calls, and how they end."""

from collections.abc import Callable, Generator, Iterable

import grpc

from genaid_client.channel import GIVEN_CHANNEL, OPTIONS, Service, no_address, typed_errors
from genaid_client.convert import Page, PageRequest
from genaid_client.tracing import call_metadata

type Target = str | grpc.Channel
"""Where a service is: `host:port`, or a channel to it, which whoever made it closes."""


class Connection:
    """A channel to one service, or none where the client was told of no such service.

    Threads may share it. gRPC connects it with the first call. `timeout` is the deadline in seconds of calls that have
    none of their own.
    """

    def __init__(self, service: Service, target: Target | None, timeout: float) -> None:
        self.timeout = timeout
        self._service: Service = service
        self._address = target if isinstance(target, str) else GIVEN_CHANNEL
        self._owned = isinstance(target, str)
        self._channel = grpc.insecure_channel(target, options=OPTIONS) if isinstance(target, str) else target

    @property
    def channel(self) -> grpc.Channel:
        """The channel. Raises NoAddressError."""
        if self._channel is None:
            raise no_address(self._service)
        return self._channel

    def close(self) -> None:
        """End the calls that are under way in other threads with ConnectionFailedError, and close the channel."""
        if self._channel is not None and self._owned:
            self._channel.close()

    def call[Request, Response](
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        message: Request,
        timeout: float | None = None,
    ) -> Response:
        """The answer to a message."""
        with typed_errors(self._address):
            deadline = self.timeout if timeout is None else timeout
            return method(message, timeout=deadline, metadata=call_metadata())

    def stream[Request, Response, Item](
        self,
        method: "grpc.UnaryStreamMultiCallable[Request, Response]",
        message: Request,
        unpack: Callable[[Response], Iterable[Item]],
        timeout: float | None = None,
    ) -> Generator[Item, None, None]:
        """What `unpack` makes of each answer to a message; without a deadline if none is given."""
        call = method(message, timeout=timeout, metadata=call_metadata())
        try:
            with typed_errors(self._address):
                for response in call:
                    yield from unpack(response)
        finally:
            call.cancel()  # an iterator that is left early would keep the call open

    def pages[Request: PageRequest, Response: Page](
        self, method: "grpc.UnaryUnaryMultiCallable[Request, Response]", message: Request
    ) -> list[Response]:
        """All pages of a list, each asked for with the token of the one before."""
        pages = [self.call(method, message)]
        while pages[-1].next_page_token:
            message.page_token = pages[-1].next_page_token
            pages.append(self.call(method, message))
        return pages
