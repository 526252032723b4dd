"""Engines on this machine, asked over llama-server's HTTP API."""

from typing import Any, Final, Self

import aiohttp
from aiohttp import hdrs
from yarl import URL

from genaid_server.resource.core.llm.slots import EngineEndpoint, NoAnswerError, SlotsError

LOOK_SECONDS: Final = 5.0
CACHE_SECONDS: Final = 60.0
"""How long writing or reading the prompt cache of one slot may take: gigabytes on a slow disk."""


class EngineHttp:
    """Asks engines for their health and their slots; use it as an async context manager."""

    async def __aenter__(self) -> Self:
        # No proxy of the environment's: it could not reach this machine's loopback, or would answer in its name.
        self._session = aiohttp.ClientSession(trust_env=False, connector=aiohttp.TCPConnector(force_close=True))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def healthy(self, host: str, port: int, timeout: float) -> bool:
        """Whether the engine on a port says within `timeout` seconds that its model is loaded. Never raises."""
        url = URL.build(scheme="http", host=host, port=port, path="/health")
        try:
            async with self._session.get(url, timeout=aiohttp.ClientTimeout(timeout), allow_redirects=False) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def slots(self, engine: EngineEndpoint) -> list[bool]:
        """For each slot whether it is at work on a request. Raises SlotsError."""
        slots = await self._ask(hdrs.METH_GET, engine, "/slots", "", None, LOOK_SECONDS)
        try:
            return [bool(slot["is_processing"]) for slot in slots]
        except (KeyError, TypeError) as error:
            raise SlotsError("the answer is not a list of slots") from error

    async def save(self, engine: EngineEndpoint, slot: int, name: str) -> int:
        """Write the prompt cache of a slot to the file of that name; returns its tokens. Raises SlotsError."""
        return await self._cache(engine, slot, "save", name, "n_saved")

    async def restore(self, engine: EngineEndpoint, slot: int, name: str) -> int:
        """Read the prompt cache of a slot from the file of that name; returns its tokens. Raises SlotsError."""
        return await self._cache(engine, slot, "restore", name, "n_restored")

    async def _cache(self, engine: EngineEndpoint, slot: int, action: str, name: str, count: str) -> int:
        body = {"filename": name}
        answer = await self._ask(hdrs.METH_POST, engine, f"/slots/{slot}", f"action={action}", body, CACHE_SECONDS)
        try:
            return int(answer[count])
        except (KeyError, TypeError, ValueError) as error:
            raise SlotsError(f"the answer has no {count}") from error

    async def _ask(
        self, method: str, engine: EngineEndpoint, path: str, query: str, body: object, timeout: float
    ) -> Any:
        url = URL.build(scheme="http", host=engine.host, port=engine.port, path=path, query_string=query)
        headers = {hdrs.AUTHORIZATION: f"Bearer {engine.api_key}"} if engine.api_key else {}
        limits = aiohttp.ClientTimeout(timeout)
        try:
            async with self._session.request(
                method, url, json=body, headers=headers, timeout=limits, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise SlotsError(f"HTTP status {answer.status}")
                return await answer.json(content_type=None)
        except TimeoutError as error:  # before OSError, which it is one of
            raise NoAnswerError(f"no answer within {timeout:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise SlotsError(str(error) or type(error).__name__) from error
