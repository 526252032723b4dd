"""What the resource manager's log says of the LLM beyond what its supervisor does: why it left, and that it is back."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from genaid_server.kit.watchable import Watchable
from genaid_server.resource.core.llm.info import LlmInfo
from genaid_server.supervision.supervisor import ServerState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """A message and how grave it is."""

    level: int
    message: str


def line_between(before: LlmInfo, now: LlmInfo) -> Line | None:
    """What is to be said of a change; None for nothing."""
    model = f"the LLM ({now.life.config.model_id})" if now.life.config is not None else "the LLM"
    cause = now.life.last_error.partition("\n")[0]  # below are lines of its own log
    if now.offloaded and not before.offloaded:
        return Line(logging.INFO, f"{model} makes room for another engine, and comes back by itself")
    if before.offloaded and not now.offloaded:
        back = now.life.state is ServerState.RUNNING
        return Line(
            logging.INFO, f"{model} is back" if back else f"{model} stays stopped: it is not brought back any more"
        )
    if not cause or cause == before.life.last_error.partition("\n")[0]:
        return None
    if now.offloaded:
        return Line(logging.WARNING, f"{model} could not be brought back yet: {cause}")
    if now.life.state is ServerState.STOPPED:
        return Line(logging.WARNING, f"{model} could not be started: {cause}")
    return None


@asynccontextmanager
async def llm_logged(info: Watchable[LlmInfo]) -> AsyncIterator[None]:
    """Log what happens to the LLM while the block runs."""

    async def follow() -> None:
        before = info.value
        async for now in info.watch():
            if (line := line_between(before, now)) is not None:
                log.log(line.level, "%s", line.message)
            before = now

    following = asyncio.create_task(follow(), name="log of the LLM")
    try:
        yield
    finally:
        following.cancel()
        await asyncio.wait([following])
