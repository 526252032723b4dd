"""Why an engine has no process, told from what its supervisor knows."""

from enum import Enum, auto

from genaid_server.kit.errors import InsufficientResourcesError
from genaid_server.supervision.supervisor import ServerState, Snapshot


class StopReason(Enum):
    """Why an engine has no process."""

    NEVER_STARTED = auto()
    STOPPED = auto()
    UNLOADED_WHEN_IDLE = auto()
    OFFLOADED = auto()
    REFUSED_FOR_MEMORY = auto()
    CRASHED = auto()


_BY_EVENT = {"": StopReason.NEVER_STARTED, "unloaded": StopReason.UNLOADED_WHEN_IDLE, "offloaded": StopReason.OFFLOADED}


def stop_reason[C](life: Snapshot[C], *, offloaded: bool = False) -> StopReason | None:
    """Why an engine has no process; None while it has one, and while that starts or ends.

    `offloaded` says that it makes room for another engine, or has, and comes back by itself; how often that has failed
    doesn't matter.
    """
    if life.state not in (ServerState.STOPPED, ServerState.CRASHED):
        return None
    if offloaded:
        return StopReason.OFFLOADED
    if life.state is ServerState.STOPPED:
        return _BY_EVENT.get(life.event, StopReason.STOPPED)
    refused = life.last_error_reason == InsufficientResourcesError.reason
    return StopReason.REFUSED_FOR_MEMORY if refused else StopReason.CRASHED
