"""What a running LLM engine is at work on, and its prompt caches: waited for, saved and restored."""

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from genaid_server.supervision.logbook import Level, Logbook

log = logging.getLogger(__name__)

LOOK_INTERVAL: Final = 0.05  # seconds
SETTLED_AFTER: Final = 0.1
"""Seconds without a request after which none is on its way any more from callers who have been told to wait."""


@dataclass(frozen=True, slots=True)
class EngineEndpoint:
    """Where an engine listens, and the key that it asks for, empty for none."""

    host: str
    port: int
    api_key: str = field(default="", repr=False)


class SlotsError(Exception):
    """The engine does not answer, or not as one with slots does."""


class NoAnswerError(SlotsError):
    """The engine takes its time, as one does that is hard at work."""


class SlotsApi(Protocol):
    """What llama-server can be asked about its slots."""

    async def slots(self, engine: EngineEndpoint) -> list[bool]:
        """For each slot whether it is at work on a request. Raises SlotsError."""

    async def save(self, engine: EngineEndpoint, slot: int, name: str) -> int:
        """Write the prompt cache of a slot to the file of that name; returns its tokens. Raises SlotsError."""

    async def restore(self, engine: EngineEndpoint, slot: int, name: str) -> int:
        """Read the prompt cache of a slot from the file of that name; returns its tokens. Raises SlotsError."""


class PromptCaches:
    """The slots of one engine; `folder` is where it writes their caches."""

    def __init__(self, api: SlotsApi, engine: EngineEndpoint, folder: Path, logbook: Logbook) -> None:
        self._api, self._engine, self._folder, self._logbook = api, engine, folder, logbook
        self._silent = False

    async def drain(self, timeout: float) -> bool:
        """Return once no request is at work; False where that takes longer than `timeout` seconds.

        An engine that doesn't tell counts as one that is through.
        """
        loop = asyncio.get_running_loop()
        deadline, idle_since = loop.time() + timeout, None
        while True:
            busy = await self._busy()
            now = loop.time()
            if busy:
                idle_since = None
            elif idle_since is None:
                idle_since = now
            elif now - idle_since >= SETTLED_AFTER:
                return True
            if now >= deadline:
                return not busy
            await asyncio.sleep(LOOK_INTERVAL)

    async def save(self) -> dict[int, int]:
        """Save the caches of all slots that have one; the tokens of each. What can't be saved is left out.

        So is a slot that is at work: the engine would save it when it is through, however long that takes.
        """
        saved: dict[int, int] = {}
        try:
            slots = await self._api.slots(self._engine)
        except SlotsError as error:
            self._logbook.append(Level.WARN, f"no prompt cache is saved: {error}")
            return saved
        for slot, busy in enumerate(slots):
            if busy:
                continue
            try:
                tokens = await self._api.save(self._engine, slot, file_name(slot))
            except SlotsError as error:
                self._logbook.append(Level.WARN, f"the prompt cache of slot {slot} could not be saved: {error}")
                continue
            if tokens:
                saved[slot] = tokens
        return saved

    async def restore(self, slots: dict[int, int]) -> None:
        """Read back what was saved. What can't be read is left out: it costs time, and nothing else."""
        for slot in slots:
            try:
                await self._api.restore(self._engine, slot, file_name(slot))
            except SlotsError as error:
                self._logbook.append(Level.WARN, f"the prompt cache of slot {slot} could not be restored: {error}")

    def discard(self) -> None:
        """Remove what was saved: it holds people's conversations."""
        discard(self._folder)

    async def _busy(self) -> bool:
        try:
            return any(await self._api.slots(self._engine))
        except NoAnswerError:
            return True
        except SlotsError as error:
            if not self._silent:
                self._logbook.append(Level.WARN, f"whether requests are being computed is not known: {error}")
            self._silent = True
            return False


def file_name(slot: int) -> str:
    """The file that the prompt cache of a slot is saved to."""
    return f"slot-{slot}.bin"


def discard(folder: Path) -> None:
    """Remove the prompt caches that were saved there, and in folders below."""
    for file in folder.rglob("slot-*.bin"):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:  # Windows removes none that an engine has open
            log.warning("%s can't be removed: %s", file.name, error.strerror or error)
