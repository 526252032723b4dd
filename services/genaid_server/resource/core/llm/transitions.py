"""What the LLM engine does next: a pure function of what its owner knows and of what it is told.

Nothing is awaited here. Effects run outside and come back as events, with the number of the direction that they serve.
A later command wins over an earlier one, also where that is half done. Waiters are told by the state.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from genaid_server.kit.errors import DomainError, InvalidRequestError, ServerError
from genaid_server.resource.core.llm import events as on
from genaid_server.resource.core.llm.events import (
    RETRIES,
    Deciding,
    Effect,
    Event,
    LlmStage,
    LlmState,
    ReturnFailure,
    Waiter,
)
from genaid_server.resource.core.llm.saved import SavedLlm
from genaid_server.resource.core.llm.waiting import Next, answered, busy, refuse, tell_waiters, waiting
from genaid_server.supervision.logbook import Level

FOUND_ON_DISK: Final = "The resource manager ended without having stopped it."


def step(state: LlmState, event: Event, now: float) -> Next:
    """What the owner knows after an event, and what is to be done. `now` is in seconds since the epoch."""
    after, effects = _follow(state, event, now)
    after, answers = tell_waiters(after)
    return after, [*effects, *answers]


def outdated(effect: Effect, state: LlmState) -> bool:
    """Whether an effect serves a direction that is over, and is to be ended; the end of a process never is."""
    match effect:
        case on.Decide(number):
            return state.deciding is None or state.deciding.number != number
        case on.Launch(number):
            return number != state.launch
        case on.SaveCaches(plan) | on.RestoreCaches(plan) | on.Wait(plan):
            return plan != state.plan
        case _:
            return False


def _follow(state: LlmState, event: Event, now: float) -> Next:  # noqa: C901 - one line an event
    match event:
        case on.Start():
            return _start(state, event)
        case on.Restart():
            return _restart(state, event)
        case on.Stop():
            return _stop(state, event)
        case on.Recover():
            return _recover(state, event, now)
        case on.Close():
            return replace(state, closing=True, deciding=None, stage=LlmStage.DOWN, plan=state.newest + 1, launch=0), []
        case on.Left(waiter):
            return replace(state, waiters=tuple(each for each in state.waiters if each.id != waiter)), []
        case on.Decided() if state.deciding is not None and state.deciding.number == event.number:
            return _decided(state, state.deciding, event)
        case on.Refused(number, error) if state.deciding is not None and state.deciding.number == number:
            wrong = isinstance(error, InvalidRequestError)  # which says something of the request, not of the engine
            refusal = error if state.stage is LlmStage.DOWN and not wrong else state.refusal
            return answered(replace(state, deciding=None, refusal=refusal), number, error)
        case on.Renewed(launch, decision) if launch == state.launch:
            return replace(state, decision=decision), []
        case on.Granted(launch) if launch == state.launch and state.stage is LlmStage.AWAY:
            return replace(state, stage=LlmStage.STARTING), []
        case on.Reclaimed(launch, reason) if launch == state.launch:
            return _reclaimed(state, reason, now)
        case on.LetStay(launch) if launch == state.launch:
            return _let_stay(state)
        case on.Serves() if event.launch == state.launch:
            return _serves(state, event, now)
        case on.Failed(launch, error) if launch == state.launch:
            return _failed(state, error, now)
        case on.Crashed(launch, message) if launch == state.launch:
            return _crashed(state, message, now)
        case on.CachesSaved(plan, slots) if plan == state.plan and state.stage is LlmStage.LEAVING:
            return _caches_saved(state, slots)
        case on.CachesRestored(plan) if plan == state.plan and state.stage is LlmStage.RESTORING:
            discard = on.DiscardCaches(_model_id(state))
            return _joined([discard], _is_there(state, now))
        case on.Halted(number):
            return _halted(state, number)
        case on.Due(plan) if plan == state.plan and state.stage is LlmStage.AWAY:
            return _launch(state, background=True)
        case _:  # it serves a direction that is over
            return state, []


# --- commands


def _start(state: LlmState, command: on.Start) -> Next:
    if state.closing:
        return refuse(state, command.waiter, ServerError("The resource manager is shutting down."))
    target = state.deciding.request if state.deciding is not None else state.wanted
    if target == command.request:
        return _join(state, command)
    if target is not None and not command.replace:
        return refuse(state, command.waiter, busy(target))
    number = state.newest + 1
    deciding = Deciding(number, command.request, command.replace)
    decided = replace(state, newest=number, deciding=deciding, refusal=None)
    return waiting(decided, command.waiter, number), [on.Decide(number, command.request, None)]


def _join(state: LlmState, command: on.Start) -> Next:
    """The same start is under way already, or done."""
    waiter = command.waiter
    if state.deciding is not None:
        deciding = replace(state.deciding, replace=state.deciding.replace or command.replace)
        return waiting(replace(state, deciding=deciding), waiter, deciding.number), []
    if state.stage in (LlmStage.AWAY, LlmStage.GOING):  # somebody waits now: no more in the background
        after, effects = _launch(replace(state, stage=LlmStage.STARTING), background=False)
        return waiting(after, waiter, after.launch), effects
    return waiting(state, waiter, state.launch), []


def _restart(state: LlmState, command: on.Restart) -> Next:
    if state.closing:
        return refuse(state, command.waiter, ServerError("The resource manager is shutting down."))
    if state.deciding is not None:  # that begins anew in any case
        return waiting(state, command.waiter, state.deciding.number), []
    if state.decision is None:
        return refuse(
            state,
            command.waiter,
            ServerError("The LLM engine has never been started. Start it with a model: genaid llm start MODEL"),
        )
    number, request = state.newest + 1, state.decision.request
    deciding = Deciding(number, request, replace=True, again=state.decision)
    decided = replace(state, newest=number, deciding=deciding, refusal=None)
    return waiting(decided, command.waiter, number), [on.Decide(number, request, state.decision)]


def _stop(state: LlmState, command: on.Stop) -> Next:
    if command.offloaded_only and not state.offloaded:
        return state, [on.TellWaiter(command.waiter, acted=False)]
    number = state.newest + 1
    after, effects = _forgotten(state)
    after = replace(
        after,
        newest=number,
        plan=number,
        launch=0,
        stage=LlmStage.DOWN,
        deciding=None,
        endpoint=None,
        crashed=False,
        reclaimed="",
        failure=None,
        refusal=None,
        waiters=(*state.waiters, Waiter(command.waiter, number, until_gone=True)),
    )
    return after, [*effects, on.Halt(number, "stopped")]


def _recover(state: LlmState, command: on.Recover, now: float) -> Next:
    if state.newest or state.closing:  # somebody has started it, or stopped it, already
        return state, []
    saved, decision, configured = command.saved, command.decision, command.configured
    if saved is None or decision is None or (configured and configured.model_id != saved.request.model_id):
        effects: list[Effect] = [on.Keep(None), on.DiscardCaches()]
        return _joined(effects, _start(state, on.Start(configured)) if configured else (state, []))
    offloaded_at = now if saved.offloaded_at is None else saved.offloaded_at
    saved = replace(saved, offloaded_at=offloaded_at, reason=saved.reason or FOUND_ON_DISK)
    away = replace(state, stage=LlmStage.AWAY, decision=decision, saved=saved, last_port=saved.port)
    said = on.Say(Level.INFO, f"{saved.request.model_id} ran before, and is brought back")
    return _joined([said, on.Keep(saved)], _try_again(away, command.delay))


# --- starting


def _decided(state: LlmState, deciding: Deciding, event: on.Decided) -> Next:
    request = state.wanted
    if request == deciding.request and deciding.again is None:  # it came back by itself meanwhile
        return _same_is_there(replace(state, deciding=None), deciding.number), []
    if request is not None and not deciding.replace:
        return answered(replace(state, deciding=None), deciding.number, busy(request))
    effects: list[Effect]
    if deciding.again is None:
        after, effects = _forgotten(state)
        after = replace(after, last_port=0)
    else:
        after, effects = _without_caches(state)
    after = replace(
        after,
        plan=deciding.number,
        stage=LlmStage.STARTING,
        decision=event.decision,
        deciding=None,
        endpoint=None,
        crashed=False,
        reclaimed="",
        failure=None,
    )
    return _joined(effects, _launch(after, background=False, number=deciding.number))


def _same_is_there(state: LlmState, wish: int) -> LlmState:
    """Who waits for a start waits for the life that there is."""
    moved = (replace(each, wish=state.launch) if each.wish == wish else each for each in state.waiters)
    return replace(state, waiters=tuple(moved))


def _launch(state: LlmState, *, background: bool, number: int = 0) -> Next:
    assert state.decision is not None  # noqa: S101 - nothing starts before it is decided
    newest = state.newest if number else state.newest + 1
    number = number or newest
    after = replace(state, newest=newest, plan=number, launch=number, endpoint=None, crashed=False, reclaimed="")
    return after, [on.Launch(number, state.decision, state.last_port, background)]


def _serves(state: LlmState, event: on.Serves, now: float) -> Next:
    again = state.stage is LlmStage.RUNNING and (state.crashed or state.endpoint != event.endpoint)
    if state.stage is not LlmStage.STARTING and not again:
        return state, []
    after = replace(state, endpoint=event.endpoint, last_port=event.endpoint.port, crashed=False)
    saved, decision = state.saved, state.decision
    assert decision is not None  # noqa: S101
    if saved is None or saved.offloaded_at is None:
        return _is_there(after, now)
    if not saved.slots or saved.llm != decision.config.llm:  # what another one has computed is of no use to it
        discard = on.DiscardCaches(_model_id(state))
        return _joined([discard], _is_there(after, now))
    restore = on.RestoreCaches(state.plan, event.endpoint, _model_id(state), saved.slots)
    return replace(after, stage=LlmStage.RESTORING), [restore]


def _is_there(state: LlmState, now: float) -> Next:
    """It serves, with its prompt caches."""
    assert state.decision is not None  # noqa: S101
    assert state.endpoint is not None  # noqa: S101
    effects: list[Effect] = [on.Say(Level.INFO, "it is back")] if state.offloaded else []
    decision = state.decision
    config = decision.config
    saved = SavedLlm(
        decision.request,
        config.llm,
        dict(decision.reasons),
        config.amount,
        state.endpoint.port,
        model_stamp=decision.model_stamp,
    )
    after = replace(state, stage=LlmStage.RUNNING, saved=saved, failure=None, refusal=None)
    effects.append(on.Keep(saved))
    return _joined(effects, _leave(after, state.reclaimed, now) if state.reclaimed else (after, []))


def _failed(state: LlmState, error: DomainError, now: float) -> Next:
    after, answers = answered(state, state.launch, error)
    if state.closing:
        return after, answers
    if not state.offloaded:
        after, effects = _forgotten(after)
        down = replace(after, stage=LlmStage.DOWN, launch=0, plan=after.newest, reclaimed="", refusal=error)
        return down, [*answers, *effects]
    attempts = state.failure.attempts + 1 if state.failure else 1
    delay = RETRIES.delay(attempts)
    cause = error.message.partition("\n")[0]
    said = on.Say(Level.ERROR, f"could not be brought back, again in {delay:g} s: {cause}")
    away = replace(after, stage=LlmStage.AWAY, failure=ReturnFailure(attempts, error.message, now + delay))
    return _joined([*answers, said], _try_again(away, delay))


def _crashed(state: LlmState, message: str, now: float) -> Next:
    match state.stage:
        case LlmStage.RESTORING:  # nobody has been told yet that it is there, and nothing may begin by itself
            return _joined([on.Halt(0, "offloaded")], _failed(state, ServerError(message), now))
        case LlmStage.LEAVING:  # it has left
            return _launch(replace(state, stage=LlmStage.AWAY), background=True)
        case LlmStage.RUNNING:
            return replace(state, crashed=True, endpoint=None, reclaimed=""), []
        case _:
            return state, []


# --- out of memory, and back


def _reclaimed(state: LlmState, reason: str, now: float) -> Next:
    match state.stage:
        case LlmStage.STARTING | LlmStage.RESTORING if state.offloaded and not state.waiters:
            said = on.Say(Level.INFO, "is stopped again: the next image needs its memory")
            return _joined([said], _go(state))
        case LlmStage.STARTING | LlmStage.RESTORING:  # whoever waits for it is told before it leaves again
            return replace(state, reclaimed=reason), []
        case LlmStage.RUNNING if state.crashed:  # it is being loaded again, and leaves when it is there
            return replace(state, reclaimed=reason), []
        case LlmStage.RUNNING:
            return _leave(state, reason, now)
        case _:
            return state, []


def _leave(state: LlmState, reason: str, now: float) -> Next:
    assert state.saved is not None  # noqa: S101 - it serves
    assert state.endpoint is not None  # noqa: S101
    number = state.newest + 1
    saved = replace(state.saved, offloaded_at=now, reason=reason, slots={})
    after = replace(state, newest=number, plan=number, stage=LlmStage.LEAVING, saved=saved, reclaimed="")
    said = on.Say(Level.INFO, f"is being offloaded: {reason}")
    return after, [said, on.Keep(saved), on.SaveCaches(number, state.endpoint, _model_id(state))]


def _let_stay(state: LlmState) -> Next:
    if state.stage is not LlmStage.LEAVING:
        return replace(state, reclaimed=""), []
    number = state.newest + 1
    after, effects = _without_caches(replace(state, newest=number, plan=number, stage=LlmStage.RUNNING))
    return after, [on.Say(Level.INFO, "keeps running: its memory is not needed any more"), *effects]


def _caches_saved(state: LlmState, slots: dict[int, int]) -> Next:
    assert state.saved is not None  # noqa: S101 - it leaves, so it served
    saved = replace(state.saved, slots=slots, port=state.last_port)
    after, effects = _go(replace(state, saved=saved))
    return after, [on.Keep(saved), *effects]


def _go(state: LlmState) -> Next:
    """End the process of one that comes back."""
    number = state.newest + 1
    after = replace(
        state, newest=number, plan=number, launch=0, stage=LlmStage.GOING, endpoint=None, crashed=False, reclaimed=""
    )
    return after, [on.Halt(number, "offloaded")]


def _halted(state: LlmState, number: int) -> Next:
    after = replace(state, halted=max(state.halted, number))
    if state.stage is not LlmStage.GOING or number != state.plan:
        return after, []
    return _launch(replace(after, stage=LlmStage.AWAY), background=True)


def _try_again(state: LlmState, delay: float) -> Next:
    if delay <= 0:
        return _launch(state, background=True)
    number = state.newest + 1
    return replace(state, newest=number, plan=number, launch=0), [on.Wait(number, delay)]


# --- what is kept, and who is told


def _forgotten(state: LlmState) -> Next:
    """Nothing is to come back."""
    discarded: list[Effect] = [on.DiscardCaches(state.saved.request.model_id)] if state.saved is not None else []
    return replace(state, saved=None), [*discarded, on.Keep(None)]


def _without_caches(state: LlmState) -> Next:
    """It is to run, and not to come back from anywhere."""
    if state.saved is None or not state.offloaded:
        return state, []
    saved = replace(state.saved, offloaded_at=None, reason="", slots={})
    return replace(state, saved=saved), [on.DiscardCaches(saved.request.model_id), on.Keep(saved)]


def _model_id(state: LlmState) -> str:
    assert state.decision is not None  # noqa: S101
    return state.decision.request.model_id


def _joined(effects: Sequence[Effect], rest: Next) -> Next:
    after, more = rest
    return after, [*effects, *more]
