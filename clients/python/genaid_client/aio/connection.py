"""How the asyncio face reaches a service: its channel, its calls, and how they end."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager

import grpc.aio

from genaid_client.channel import GIVEN_CHANNEL, OPTIONS, Service, cut_off, no_address, typed_errors
from genaid_client.convert import Page, PageRequest
from genaid_client.tracing import call_metadata

type AsyncTarget = str | grpc.aio.Channel
"""Where a service is: `host:port`, or a channel to it, which whoever made it closes."""


class AsyncConnection:
    """A channel to one service, or none where the client was told of no such service.

    It is made while the event loop runs that it is used in. gRPC connects it with the first call. `timeout` is the
    deadline in seconds of calls that have none of their own.
    """

    def __init__(self, service: Service, target: AsyncTarget | None, timeout: float) -> None:
        asyncio.get_running_loop()  # a channel that is made before its loop fails later, and strangely
        self.timeout = timeout
        self._service: Service = service
        self._address = target if isinstance(target, str) else GIVEN_CHANNEL
        self._owned = isinstance(target, str)
        self._channel = grpc.aio.insecure_channel(target, options=OPTIONS) if isinstance(target, str) else target

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel. Raises NoAddressError."""
        if self._channel is None:
            raise no_address(self._service)
        return self._channel

    async def close(self) -> None:
        """End the calls that are under way with ConnectionFailedError, and close the channel."""
        if self._channel is not None and self._owned:
            await self._channel.close()

    async def call[Request, Response](
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        message: Request,
        timeout: float | None = None,
    ) -> Response:
        """The answer to a message."""
        with self._typed_errors():
            deadline = self.timeout if timeout is None else timeout
            return await method(message, timeout=deadline, metadata=call_metadata())

    async def stream[Request, Response, Item](
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        message: Request,
        unpack: Callable[[Response], Iterable[Item]],
        timeout: float | None = None,
    ) -> AsyncGenerator[Item, None]:
        """What `unpack` makes of each answer to a message; without a deadline if none is given."""
        call = method(message, timeout=timeout, metadata=call_metadata())
        try:
            with self._typed_errors():
                async for response in call:
                    for item in unpack(response):
                        yield item
        finally:
            call.cancel()  # an iterator that is left early would keep the call open

    async def pages[Request: PageRequest, Response: Page](
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], message: Request
    ) -> list[Response]:
        """All pages of a list, each asked for with the token of the one before."""
        pages = [await self.call(method, message)]
        while pages[-1].next_page_token:
            message.page_token = pages[-1].next_page_token
            pages.append(await self.call(method, message))
        return pages

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            with typed_errors(self._address):
                yield
        except asyncio.CancelledError as error:
            # Closing the channel raises this as well, in tasks that nobody cancelled.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise cut_off(self._address) from error
