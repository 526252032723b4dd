"""Both faces of the client behind one awaitable one, so that a test is written once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import Any, Protocol

from genaid_client import AsyncClient, Client

END = object()


class Face(Protocol):
    """One client; methods are called by the names of their group and their own, as in `models.list`."""

    async def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """The result of a method that returns one."""

    def iterate(self, name: str, /, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """The items of a method that returns an iterator; closing this closes that."""

    async def close(self) -> None:
        """Close the client."""


class AsyncFace:
    """The asyncio face."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    async def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return await attrgetter(name)(self.client)(*args, **kwargs)

    async def iterate(self, name: str, /, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        iterator = attrgetter(name)(self.client)(*args, **kwargs)
        try:
            async for item in iterator:
                yield item
        finally:
            await iterator.aclose()

    async def close(self) -> None:
        await self.client.close()


class BlockingFace:
    """The blocking face, driven from threads."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(attrgetter(name)(self.client), *args, **kwargs)

    async def iterate(self, name: str, /, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        iterator = attrgetter(name)(self.client)(*args, **kwargs)
        try:
            while (item := await asyncio.to_thread(next, iterator, END)) is not END:
                yield item
        finally:
            await asyncio.to_thread(iterator.close)

    async def close(self) -> None:
        await asyncio.to_thread(self.client.close)


@asynccontextmanager
async def _closing(face: Face) -> AsyncIterator[Face]:
    try:
        yield face
    finally:
        await face.close()


type Connect = Callable[..., Any]

IMAGE: dict[str, Connect] = {
    "asyncio": lambda address, **kwargs: _closing(AsyncFace(AsyncClient(image=address, **kwargs))),
    "blocking": lambda address, **kwargs: _closing(BlockingFace(Client(image=address, **kwargs))),
}
RESOURCE: dict[str, Connect] = {
    "asyncio": lambda address, **kwargs: _closing(AsyncFace(AsyncClient(resource=address, **kwargs))),
    "blocking": lambda address, **kwargs: _closing(BlockingFace(Client(resource=address, **kwargs))),
}
