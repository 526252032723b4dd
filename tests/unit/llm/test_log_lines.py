"""What the service's log says of the LLM: that it leaves, that it is back or isn't, and why it did not start."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from genaid_server.kit.watchable import Watchable
from genaid_server.resource.core.llm.info import LlmInfo
from genaid_server.resource.log_lines import Line, line_between, llm_logged
from genaid_server.supervision.supervisor import ServerState, Snapshot

CONFIG: Any = SimpleNamespace(model_id="tiny")


def info(state: ServerState = ServerState.STOPPED, *, offloaded: bool = False, error: str = "") -> LlmInfo:
    return LlmInfo(Snapshot(state=state, config=CONFIG, last_error=error), offloaded=offloaded)


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        (info(), info(ServerState.RUNNING), None),
        (info(ServerState.RUNNING), info(ServerState.CRASHED, error="died"), None),  # the supervisor has said that
        (
            info(ServerState.RUNNING),
            info(ServerState.RUNNING, offloaded=True),
            Line(logging.INFO, "the LLM (tiny) makes room for another engine, and comes back by itself"),
        ),
        (
            info(ServerState.STARTING, offloaded=True),
            info(ServerState.RUNNING),
            Line(logging.INFO, "the LLM (tiny) is back"),
        ),
        (
            info(offloaded=True),
            info(),
            Line(logging.INFO, "the LLM (tiny) stays stopped: it is not brought back any more"),
        ),
        (
            info(offloaded=True),
            info(offloaded=True, error="no room\nmore"),
            Line(logging.WARNING, "the LLM (tiny) could not be brought back yet: no room"),
        ),
        (info(offloaded=True, error="no room\na"), info(offloaded=True, error="no room\nb"), None),
        (info(), info(error="no model"), Line(logging.WARNING, "the LLM (tiny) could not be started: no model")),
    ],
)
def test_what_is_said_of_a_change(before: LlmInfo, now: LlmInfo, line: Line | None) -> None:
    assert line_between(before, now) == line


async def test_changes_are_logged_as_they_come(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "genaid_server")
    watched = Watchable(info(ServerState.RUNNING))
    async with llm_logged(watched):
        await asyncio.sleep(0)
        watched.set(info(offloaded=True))
        await asyncio.sleep(0)
        watched.set(info(ServerState.RUNNING))
        await asyncio.sleep(0)
        watched.set(info(ServerState.STOPPED))
        watched.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the LLM (tiny) makes room for another engine, and comes back by itself",
        "the LLM (tiny) is back",
    ]
