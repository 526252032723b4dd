"""Commands that are under way, and what they leave the engines in when all have come to an end."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from genaid_client.errors import GenaidError
from genaid_server.kit.errors import DomainError

TOLD = (DomainError, GenaidError)
"""What callers are told of, in the service and at a client."""


class Outcome(Enum):
    """What became of a command."""

    PENDING = auto()
    ANSWERED = auto()
    REFUSED = auto()
    NEVER = auto()
    """Its caller left before it was given."""
    LEFT = auto()
    """Its caller has left: nobody knows what came of it."""
    BROKEN = auto()
    """It raised what no caller is ever told."""


@dataclass(eq=False)
class Command:
    """One command, in the order of their numbers. `target` is the model, generation or download that it is about."""

    number: int
    verb: str
    target: str = ""
    outcome: Outcome = Outcome.PENDING
    answer: Any = None
    error: BaseException | None = None
    task: "asyncio.Task[None] | None" = None

    @property
    def over(self) -> bool:
        return self.outcome is not Outcome.PENDING

    def __str__(self) -> str:
        said = f": {str(self.error)[:200]!r}" if self.error else ""
        return f"{self.number} {self.verb} {self.target} {self.outcome.name}{said}"


class Wanted(Enum):
    """What an engine is to do after all that was asked for."""

    RUN = auto()
    STOP = auto()
    UNKNOWN = auto()
    """A command failed, or its caller left, and nothing was asked for since."""


@dataclass
class Commands:
    """All commands of one life of the services. `before` is what the LLM was to do when that began."""

    before: Wanted = Wanted.STOP
    all: list[Command] = field(default_factory=list)

    def issue(
        self,
        loop: asyncio.AbstractEventLoop,
        verb: str,
        target: str,
        call: Callable[[], Awaitable[Any]],
        check: Callable[[Command], None],
    ) -> Command:
        """Give a command; `check` is called in the step in which it is answered or refused."""
        command = Command(len(self.all), verb, target)
        self.all.append(command)

        async def perform() -> None:
            try:
                command.answer = await call()
                command.outcome = Outcome.ANSWERED
            except TOLD as error:
                command.error, command.outcome = error, Outcome.REFUSED
            except asyncio.CancelledError:
                command.outcome = Outcome.LEFT
                raise
            except Exception as error:  # noqa: BLE001 - what it is, `check` tells
                command.error, command.outcome = error, Outcome.BROKEN
            check(command)

        def settle(_: "asyncio.Task[None]") -> None:
            if not command.over:
                command.outcome = Outcome.NEVER

        command.task = loop.create_task(perform(), name=f"{verb} {target}")
        command.task.add_done_callback(settle)
        return command

    @property
    def pending(self) -> list[Command]:
        return [command for command in self.all if not command.over]

    def last(self, *verbs: str) -> Command | None:
        """The newest one of some kinds."""
        given = (command for command in reversed(self.all) if command.outcome is not Outcome.NEVER)
        return next((command for command in given if command.verb in verbs), None)

    def later(self, than: Command, *verbs: str) -> bool:
        """Whether one of some kinds was given after another."""
        return any(command.verb in verbs for command in self.all[than.number + 1 :])

    def of_llm(self) -> Wanted:
        """What the LLM is to do: the later command wins over the earlier one."""
        wanted = self.before
        for command in self.all:
            match command.verb, command.outcome:
                case _, Outcome.NEVER:
                    continue
                case "start" | "restart", Outcome.ANSWERED:
                    wanted = Wanted.RUN
                case "stop", Outcome.ANSWERED:
                    wanted = Wanted.STOP
                case "forget", Outcome.ANSWERED:
                    wanted = Wanted.STOP if command.answer else wanted
                case "start" | "restart" | "stop" | "forget", _:
                    wanted = Wanted.UNKNOWN
        return wanted

    def engine_choice(self) -> str | None:
        """The diffusion model that a caller's choice stands for; empty where none was ever made, None where that isn't
        known."""
        last = self.last("start_engine", "stop_engine")
        if last is None:
            return ""
        if last.verb == "start_engine" and last.outcome is Outcome.ANSWERED:
            return last.target
        return None
