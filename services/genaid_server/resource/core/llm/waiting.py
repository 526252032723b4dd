"""Who waits for the LLM engine, and what they are told: by what the owner knows, whoever asked for it."""

from dataclasses import replace

from genaid_server.kit.errors import DomainError, ServerBusyError, ServerError
from genaid_server.resource.core.llm import events as on
from genaid_server.resource.core.llm.config import LlmRequest
from genaid_server.resource.core.llm.events import Effect, LlmStage, LlmState, Waiter

type Next = tuple[LlmState, list[Effect]]


def waiting(state: LlmState, waiter: int, wish: int) -> LlmState:
    """The same, with somebody who waits for the engine of that wish; `waiter` 0 is nobody."""
    return replace(state, waiters=(*state.waiters, Waiter(waiter, wish))) if waiter else state


def refuse(state: LlmState, waiter: int, error: DomainError) -> Next:
    """Tell a waiter at once."""
    return state, [on.TellWaiter(waiter, error)] if waiter else []


def answered(state: LlmState, wish: int, error: DomainError) -> Next:
    """Tell all who wait for a start what it failed with."""
    told = [waiter for waiter in state.waiters if waiter.wish == wish and not waiter.until_gone]
    others = tuple(waiter for waiter in state.waiters if waiter not in told)
    return replace(state, waiters=others), [on.TellWaiter(waiter.id, error) for waiter in told]


def tell_waiters(state: LlmState) -> Next:
    """Tell everybody whose wait is over."""
    others: list[Waiter] = []
    answers: list[Effect] = []
    deciding = state.deciding.number if state.deciding is not None else -1
    serves = state.stage in (LlmStage.RUNNING, LlmStage.LEAVING) and not state.crashed
    for waiter in state.waiters:
        if waiter.until_gone:
            over, error = state.halted >= waiter.wish, None
        elif waiter.wish == deciding or (waiter.wish == state.launch and not state.crashed):
            over, error = serves and waiter.wish == state.launch, None
        else:
            over, error = True, _superseded(state)
        if over:
            answers.append(on.TellWaiter(waiter.id, error))
        else:
            others.append(waiter)
    return replace(state, waiters=tuple(others)), answers


def _superseded(state: LlmState) -> ServerError:
    if state.stage is LlmStage.DOWN and state.deciding is None:
        return ServerError("The LLM engine was stopped.")
    if state.crashed:
        return ServerError("The LLM engine ended unexpectedly.")
    return ServerError("Another start of the LLM engine has taken the place of this one.")


def busy(running: LlmRequest) -> ServerBusyError:
    """Why another start is refused."""
    return ServerBusyError(
        f"The LLM engine runs already, with the model {running.model_id} and the options that it was started with. "
        "Stop it first (genaid llm stop), or replace it (genaid llm start MODEL --replace).",
        modelId=running.model_id,
    )
