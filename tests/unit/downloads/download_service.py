"""A service of downloads over a source in memory, which waits for nothing between two tries."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fakes.scripted_remote import ScriptedRemote
from genaid_server.resource.core.downloads.manager import DownloadLimits, Downloads, Pauses
from genaid_server.resource.core.store.store import ModelStore


@asynccontextmanager
async def running(
    folder: Path, remote: ScriptedRemote, limits: DownloadLimits
) -> AsyncIterator[tuple[Downloads, ModelStore]]:
    async def no_wait(seconds: float) -> None:
        await asyncio.sleep(0)

    store = await ModelStore.open(folder)
    try:
        async with Downloads(folder, store, remote, limits, Pauses(no_wait, lambda: 0.0)) as downloads:
            yield downloads, store
    finally:
        await store.close()
