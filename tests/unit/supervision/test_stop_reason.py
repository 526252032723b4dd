"""Why an engine has no process: told from its snapshot, and from a supervisor's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from genaid_server.kit.errors import BackendError, DomainError, InsufficientResourcesError
from genaid_server.supervision.stop_reason import StopReason, stop_reason
from genaid_server.supervision.supervisor import Report, ServerState, Snapshot, Supervisor

REFUSED = InsufficientResourcesError.reason


@pytest.mark.parametrize(
    ("life", "reason"),
    [
        (Snapshot(), StopReason.NEVER_STARTED),
        (Snapshot(ServerState.STOPPED, event="stopped"), StopReason.STOPPED),
        (Snapshot(ServerState.STOPPED, event="unloaded"), StopReason.UNLOADED_WHEN_IDLE),
        (Snapshot(ServerState.STOPPED, event="offloaded"), StopReason.OFFLOADED),
        (Snapshot(ServerState.CRASHED, event="crashed", last_error_reason="BACKEND_ERROR"), StopReason.CRASHED),
        (Snapshot(ServerState.CRASHED, event="crashed", last_error_reason=REFUSED), StopReason.REFUSED_FOR_MEMORY),
        (Snapshot(ServerState.STOPPED, event="stopped", last_error_reason=REFUSED), StopReason.STOPPED),
    ],
)
def test_why_there_is_no_process(life: Snapshot[str], reason: StopReason) -> None:
    assert stop_reason(life) is reason


@pytest.mark.parametrize("state", [ServerState.STOPPED, ServerState.CRASHED])
def test_what_comes_back_by_itself_is_offloaded_whatever_failed(state: ServerState) -> None:
    life: Snapshot[str] = Snapshot(state, event="reload_failed", last_error_reason=REFUSED)
    assert stop_reason(life, offloaded=True) is StopReason.OFFLOADED


@pytest.mark.parametrize("offloaded", [True, False])
@pytest.mark.parametrize("state", [ServerState.STARTING, ServerState.RUNNING, ServerState.STOPPING])
def test_where_there_is_a_process_there_is_no_reason(state: ServerState, offloaded: bool) -> None:
    life: Snapshot[str] = Snapshot(state, event="stopped", last_error_reason=REFUSED)
    assert stop_reason(life, offloaded=offloaded) is None


class Unloadable:
    """A life that never begins to serve."""

    pid = 1

    def __init__(self, error: DomainError) -> None:
        self._error = error

    async def ready(self) -> None:
        raise self._error

    async def exited(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InsufficientResourcesError("It is too large."), StopReason.REFUSED_FOR_MEMORY),
        (BackendError("It is no model."), StopReason.CRASHED),
    ],
)
async def test_the_last_start_decides(error: DomainError, reason: StopReason) -> None:
    @asynccontextmanager
    async def launch(config: str, report: Report) -> AsyncIterator[Unloadable]:
        yield Unloadable(error)

    async with Supervisor("engine", launch) as supervisor:
        assert stop_reason(supervisor.snapshot.value) is StopReason.NEVER_STARTED
        with pytest.raises(type(error)):
            await supervisor.ensure_ready("tiny")
        assert stop_reason(supervisor.snapshot.value) is reason
        await supervisor.stop()
        assert stop_reason(supervisor.snapshot.value) is StopReason.STOPPED
