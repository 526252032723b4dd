"""Whether the installed engine can use GPUs at all: most builds of it compute on the processor alone."""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Final

from genaid_server.resource.core.llm.process import BUILT_IN
from genaid_server.supervision.child import Exit, child

log = logging.getLogger(__name__)

TIMEOUT: Final = 20.0  # seconds; a GPU runtime takes some to start
MAX_ANSWER: Final = 65_536


async def engine_gpus(command: Sequence[str] = BUILT_IN) -> int:
    """How many GPUs the engine can use; 0 where it can't tell, which the log then explains."""
    out, errors, end = bytearray(), bytearray(), Exit(0)

    def take(data: bytes) -> None:
        out.extend(data[: MAX_ANSWER - len(out)])

    def note(data: bytes) -> None:
        errors.extend(data)
        del errors[:-MAX_ANSWER]

    try:
        async with asyncio.timeout(TIMEOUT), child([*command, "devices"], take, note, grace=0.1) as process:
            end = await process.exited()
        return int(json.loads(out)["gpus"])
    except TimeoutError:
        log.warning("the LLM engine did not tell within %g s which GPUs it can use; it is taken to have none", TIMEOUT)
    except (OSError, ValueError, KeyError, TypeError) as error:
        last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
        log.warning("the LLM engine did not tell which GPUs it can use (%s, %s): %s", end, error, last)
    return 0
