"""A small scene, and all that can be done to it: commands at any moment, engines that misbehave, services that end.

Nothing waits: each verb gives a command and returns. `turn` runs so many rounds of the event loop, `advance` lets time
pass; `come_to_rest` has all behave and looks at what came of it. What must hold is in `invariants`.
"""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import pytest

from fakes.scripted_remote import Hold, ScriptedRemote, Served, sha256
from genaid_server.kit.errors import DomainError, PortInUseError
from unit.formats.gguf_files import diffusion_model, language_model
from world import invariants
from world.clock import SteppedLoop
from world.commands import Command, Commands, Wanted
from world.engines import EngineChild, Kind, Manners, Nursery
from world.stage import Stage, has_saved, play
from world.streams import Stream

TALKERS: Final = ("talker", "parrot")
PAINTERS: Final = ("painter", "sketcher")
VARIANTS: Final = 3
SCARCE: Final = 1000
"""Bytes: either engine needs more than a third of them, and both together more than three quarters."""
FOR_EVER: Final = 400.0
"""Seconds in which all that behaves has come to an end."""
MEMORY_DISK: Final = Path("/dev/shm")  # noqa: S108 - only a disk that is fast


class World:
    """The scene. `violations` is what was seen that must not be; `check` raises it."""

    def __init__(self, seed: int = 0, *, scarce: bool = True) -> None:
        self.loop = SteppedLoop(seed, self._each_round)
        self.violations: list[str] = []
        self.nursery = Nursery(self._opened)
        self.contents = {f"http://models.test/{name}": content for name, content in _contents().items()}
        self.remote = ScriptedRemote({url: Served(content) for url, content in self.contents.items()}, chunk=200)
        self.holds: list[Hold] = []
        self.streams: list[Stream] = []
        self.stuck: set[str] = set()
        self.budget = SCARCE if scarce else 0
        self.commands = Commands()
        self.stage: Stage | None = None
        self._patch = pytest.MonkeyPatch()
        self._root = Path(tempfile.mkdtemp(prefix="world-", dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None))
        self._numbers = itertools.count(1)
        self._block: AbstractAsyncContextManager[Stage] | None = None
        play(self._patch, self.nursery, self.stuck, self.loop.time)
        self._open(self._root / "0")
        self.import_model("talker", 0)
        self.import_model("painter", 0)
        self.advance(1.0)

    # --- time

    def turn(self, rounds: int) -> None:
        self.loop.turn(rounds)
        self.check()

    def advance(self, seconds: float) -> None:
        self.loop.advance(seconds)
        self.check()

    def pause(self, length: int | float) -> None:
        """So many rounds, or so many seconds."""
        if isinstance(length, int):
            self.turn(length)
        else:
            self.advance(length)

    # --- the LLM engine

    def start(self, model_id: str = "talker", context: int = 256, *, replace_running: bool = True) -> Command:
        return self._do("start", model_id, lambda: self.here.start(model_id, context, replace_running))

    def restart(self) -> Command:
        return self._do("restart", "", lambda: self.here.restart())

    def stop(self) -> Command:
        return self._do("stop", "", lambda: self.here.stop())

    def forget(self) -> Command:
        return self._do("forget", "", lambda: self.here.forget())

    # --- images

    def start_engine(self, model_id: str = "painter") -> Command:
        return self._do("start_engine", model_id, lambda: self.here.start_engine(model_id, replace_running=True))

    def stop_engine(self) -> Command:
        return self._do("stop_engine", "", lambda: self.here.stop_engine())

    def create(self) -> Command:
        return self._do("create", "", lambda: self.here.create())

    def cancel(self, place: int = 0) -> None:
        """Cancel one of the generations, the newest first."""
        if generation_id := _at([each.id for each in self.here.generations], place):
            self._do("cancel", generation_id, lambda: self.here.cancel(generation_id))

    def forget_images(self, place: int = 0) -> None:
        """Delete a generation that somebody created."""
        created = [command.answer.id for command in self.commands.all if command.verb == "create" and command.answer]
        if generation_id := _at(created[::-1], place):
            self._do("forget_images", generation_id, lambda: self.here.forget_images(generation_id))

    def generate(self, *, slow: bool = False) -> Stream:
        """Images in one call. A slow reader takes what it is told to, and all of it in the end."""
        stream = Stream(self.loop, self.here.generate(), slow=slow)
        self.streams.append(stream)
        return stream

    def read(self, place: int = 0) -> None:
        """A slow reader takes the next response."""
        if stream := _at(self.streams[::-1], place):
            stream.take()

    # --- models and downloads

    def import_model(self, model_id: str, variant: int) -> Command:
        """Import a file under an id; each has a name of its own."""
        kind = "llm" if model_id in TALKERS else "diffusion"
        content = self.contents[f"http://models.test/{kind}{variant % VARIANTS}.gguf"]
        name = f"{model_id}-{next(self._numbers)}.gguf"
        return self._do("import", model_id, lambda: self.here.import_model(model_id, content, name))

    def delete_model(self, model_id: str) -> Command:
        return self._do("delete", model_id, lambda: self.here.delete_model(model_id))

    def download(self, place: int = 0, model_id: str = "") -> Command:
        url = sorted(self.contents)[place % len(self.contents)]
        checksum = sha256(self.contents[url])
        return self._do("download", model_id, lambda: self.here.download(url, checksum, model_id))

    def download_again(self, model_id: str) -> None:
        """Download what a model has that is installed, if it is."""
        if model := self.here.models.get(model_id):
            url = next(url for url, content in self.contents.items() if sha256(content) == model.checksum)
            self._do("download", model_id, lambda: self.here.download(url, model.checksum, ""))

    def source_holds(self, place: int = 0, after: int = 300) -> None:
        """The source stops in the middle of a file, for as long as the scene has not come to rest."""
        self.holds.append(Hold(after))
        self.remote.fail(sorted(self.contents)[place % len(self.contents)], self.holds[-1])

    def cancel_download(self, place: int = 0) -> None:
        if download_id := _at([each.id for each in self.here.downloads], place):
            self._do("cancel_download", download_id, lambda: self.here.cancel_download(download_id))

    # --- misfortune

    def leave(self, place: int = 0) -> None:
        """A caller leaves, who waits for an answer."""
        if (command := _at(self.commands.pending[::-1], place)) and command.task:
            command.task.cancel()

    def crash(self, kind: Kind) -> None:
        for child in self.nursery.living(kind):
            child.end(-11)

    def next_life(self, kind: Kind, manners: Manners) -> None:
        self.nursery.manners[kind] = manners

    def leave_partial_folder(self, place: int = 0) -> None:
        """What a download that has ended had fetched is still there, and can't be removed."""
        if ended := _at([each.id for each in self.here.downloads if each.phase.terminal], place):
            folder = self.here.data_dir / "downloads" / ended
            folder.mkdir(exist_ok=True)
            (folder / "0.partial").write_bytes(b"x")
            self.stuck.add(ended)

    # --- the services end, and begin again

    def reopen(self, *, killed: bool = False, port_taken: bool = False) -> None:
        """End the services in order, or as one that was killed, and start them again, at first perhaps in vain."""
        data_dir, wanted = self.here.data_dir, self._wanted_at_the_end(killed)
        if killed:
            data_dir = self._root / str(next(self._numbers))
            shutil.copytree(self.here.data_dir, data_dir, ignore=shutil.ignore_patterns("*.lock", "*.tmp"))
        self._close()
        if wanted is not Wanted.UNKNOWN:
            self.expect(has_saved(data_dir) == (wanted is Wanted.RUN), f"{wanted} is not what is on disk")
        try:
            if port_taken:
                with contextlib.suppress(PortInUseError):
                    self._open(data_dir, port_taken=True)
                kept = has_saved(data_dir) == (wanted is Wanted.RUN) or wanted is Wanted.UNKNOWN
                self.expect(kept, "a start of the service that failed forgot what was to come back")
            self._open(data_dir)
        except DomainError as error:
            self.violations.append(f"the services do not begin again: {error.message}")
        self.check()
        self.commands.before = wanted

    def _wanted_at_the_end(self, killed: bool) -> Wanted:
        if not killed:
            return Wanted.STOP
        pending = any(each.verb in ("start", "restart", "stop", "forget") for each in self.commands.pending)
        settled = self.here.llm.state != "CRASHED"
        return self.commands.of_llm() if settled and not pending else Wanted.UNKNOWN

    # --- the end

    def come_to_rest(self) -> None:
        """Everybody behaves from now on; what must hold then is checked."""
        invariants.come_to_rest(self)
        self.check()

    def close(self) -> None:
        """Come to rest, end the services in order and leave nothing behind."""
        try:
            if not self.violations and self.stage is not None:
                self.come_to_rest()
                self._close()
                self.check()
        finally:
            self.abandon()
        for context in self.loop.unexpected:
            self.violations.append(f"nobody took note of an error: {context}")
        self.check()

    def abandon(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        self.loop.finish()
        self._patch.undo()
        shutil.rmtree(self._root, ignore_errors=True)

    def behave(self) -> None:
        """Engines and sources do what they should, and so do readers."""
        self.nursery.all_behave()
        for hold in self.holds:
            hold.go.set()
        for stream in self.streams:
            stream.take_all()

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.violations.append(otherwise)

    def check(self) -> None:
        if self.violations:
            log = "\n".join(str(command) for command in self.commands.all)
            raise AssertionError(f"{self.violations[0]}\nwhat was asked for:\n{log}")

    @property
    def here(self) -> Stage:
        assert self.stage is not None
        return self.stage

    def _do(self, verb: str, target: str, call: Callable[[], Awaitable[Any]]) -> Command:
        return self.commands.issue(self.loop, verb, target, call, lambda each: invariants.at_the_answer(self, each))

    def _each_round(self) -> None:
        if getattr(self, "stage", None) is not None:
            invariants.each_round(self)

    def _opened(self, child: EngineChild, model_id: str) -> None:
        invariants.at_opening(self, child, model_id)

    def _open(self, data_dir: Path, *, port_taken: bool = False) -> None:
        block = Stage.open(data_dir, self.nursery, self.remote, budget=self.budget, port_taken=port_taken)
        self.stage = self.loop.run_until_complete(block.__aenter__())
        self._block, self.commands = block, Commands()

    def _close(self) -> None:
        self.behave()
        for stream in self.streams:
            stream.leave()
        for command in self.commands.pending:
            assert command.task is not None
            command.task.cancel()
        self.loop.turn(3)
        assert self._block is not None
        closing = self.loop.create_task(self._block.__aexit__(None, None, None))
        self.stage, self.streams = None, []
        if not self.loop.until(closing.done, FOR_EVER):
            self.violations.append("the services do not end")
            self.check()
        closing.result()
        alive = [child.kind for kind in Kind for child in self.nursery.living(kind)]
        self.expect(not alive, f"children outlive the services: {alive}")
        self.check()


def _contents() -> dict[str, bytes]:
    llms = {f"llm{number}.gguf": language_model(f"Tiny {number}", salt=number) for number in range(VARIANTS)}
    return llms | {f"diffusion{number}.gguf": diffusion_model(f"Tiny {number}") for number in range(VARIANTS)}


def _at[T](items: list[T], place: int) -> T | None:
    return items[place % len(items)] if items else None
