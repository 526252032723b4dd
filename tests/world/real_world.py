"""Runs of random commands over gRPC, on real engines: all under way at once, then all at rest."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from llm_service import PATIENCE
from sharing import DIFFUSION, LLM
from world.commands import Command, Commands, Outcome, Wanted
from world.engines import Kind
from world.real_stage import RealStage
from world.streams import Stream

SHORTEST_PAUSE: Final = 0.05
"""Seconds between two commands, so that they arrive in the order in which they are given."""
LONGEST_PAUSE: Final = 0.5
COMMANDS: Final = 7
ACTIONS: Final = {
    "start": 4,
    "restart": 3,
    "stop": 3,
    "forget": 1,
    "generate": 4,
    "create": 2,
    "cancel": 2,
    "start_engine": 2,
    "stop_engine": 1,
    "delete": 2,
    "import": 1,
    "download": 1,
    "cancel_download": 1,
    "crash llm": 1,
    "crash image": 1,
    "leave": 2,
}
"""How often each, of so many."""


@dataclass
class RealWorld:
    """Runs in one scene, one after the other. `tally` counts what was done."""

    stage: RealStage
    dice: random.Random
    tally: "Counter[str]" = field(default_factory=Counter)
    commands: Commands = field(default_factory=Commands)
    streams: list[Stream] = field(default_factory=list)
    last: Wanted = Wanted.STOP
    choice: str | None = ""

    async def run(self) -> None:
        """So many commands, with pauses between them; returns when all has come to rest."""
        self.commands, self.streams = Commands(before=self.last), []
        for model_id in {LLM, DIFFUSION} - await self.stage.models():
            await self.stage.import_model(model_id)
        if self.choice is None:  # it may be stopped
            await self.stage.start_engine()
            self.choice = DIFFUSION
        for _ in range(COMMANDS):
            (action,) = self.dice.choices(list(ACTIONS), list(ACTIONS.values()))
            self.tally[action] += 1
            self._perform(action)
            await asyncio.sleep(SHORTEST_PAUSE + self.dice.random() ** 2 * LONGEST_PAUSE)  # the moments are the test
        try:
            await self._come_to_rest()
        except Exception as error:
            error.add_note("\n".join(str(command) for command in self.commands.all))
            raise

    def _perform(self, action: str) -> None:
        stage, created = self.stage, [each for each in self.commands.all if each.verb in ("create", "download")]
        match action:
            case "start":
                place = self.dice.randrange(2)
                self._do("start", LLM, lambda: stage.start(place))
            case "generate":
                self.streams.append(Stream(asyncio.get_running_loop(), stage.generate(), slow=False))
            case "cancel" | "cancel_download":
                verb = "create" if action == "cancel" else "download"
                cancel = stage.cancel if action == "cancel" else stage.cancel_download
                for known in [each.answer for each in created if each.verb == verb and each.answer][-1:]:
                    self._do(action, known, partial(cancel, known))
            case "delete" | "import":
                model_id = self.dice.choice((LLM, DIFFUSION))
                call = stage.delete_model if action == "delete" else stage.import_model
                self._do(action, model_id, lambda: call(model_id))
            case "crash llm":
                self._do("crash", "llm", lambda: stage.crash(Kind.LLM))
            case "crash image":
                self._do("crash", "image", lambda: stage.crash(Kind.IMAGE))
            case "leave":
                for command in self.commands.pending[-1:]:
                    if command.task is not None:
                        command.task.cancel()
            case _:
                self._do(action, DIFFUSION if action == "start_engine" else "", getattr(stage, action))

    def _do(self, verb: str, target: str, call: Callable[[], Awaitable[Any]]) -> Command:
        return self.commands.issue(asyncio.get_running_loop(), verb, target, call, lambda _: None)

    async def _come_to_rest(self) -> None:
        tasks = [command.task for command in self.commands.all if command.task is not None]
        _, waiting = await asyncio.wait([*tasks, *(stream.task for stream in self.streams)], timeout=2 * PATIENCE)
        assert not waiting, f"waits for ever: {[task.get_name() for task in waiting]}"
        broken = [command for command in self.commands.all if command.outcome is Outcome.BROKEN]
        assert not broken, broken[0]
        assert not any(stream.lost for stream in self.streams), "images that were complete are lost"
        for command in self.commands.all:
            if command.answer and command.verb == "create":
                self._do("finished", command.answer, partial(self.stage.finished, command.answer))
            if command.answer and command.verb == "download":
                await asyncio.wait_for(self.stage.follow_download(command.answer), PATIENCE)
        await self._llm_is_as_wanted()
        if (choice := self.commands.engine_choice()) != "":
            self.choice = choice
        if self.choice is not None and DIFFUSION in await self.stage.models():
            await self._images_can_be_made()
            await self._llm_is_as_wanted()

    async def _llm_is_as_wanted(self) -> None:
        self.last = wanted = self.commands.of_llm()
        if wanted is Wanted.RUN and LLM not in await self.stage.models():
            wanted = Wanted.UNKNOWN  # it had crashed when its model was deleted
        states = {Wanted.RUN: ("RUNNING",), Wanted.STOP: ("STOPPED",)}.get(wanted, ("RUNNING", "STOPPED", "CRASHED"))
        try:
            await self.stage.llm_is(lambda state, offloaded: state in states and not offloaded)
        except TimeoutError:
            raise AssertionError(f"it is to {wanted.name}, and is {await self.stage.llm()}") from None
        now = await self.stage.llm()
        if now.state in ("RUNNING", "STOPPED") and now.state in states:
            assert now.saved == (now.state == "RUNNING"), now

    async def _images_can_be_made(self) -> None:
        stream = Stream(asyncio.get_running_loop(), self.stage.generate(), slow=False)
        await asyncio.wait([stream.task], timeout=PATIENCE)
        assert "image" in stream.seen, (stream.seen[-1:], stream.error)
