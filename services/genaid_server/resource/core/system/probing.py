"""Ask the probes, the programs that know native GPU libraries, and live through whatever these do.

A library may hang (drivers do, after a suspend), crash, or say nonsense. That costs a timeout and a note that says so;
it never costs the service, which loads none of these libraries itself.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from genaid_server.kit.errors import ServerError
from genaid_server.kit.shapes import Shape, ShapeError
from genaid_server.resource.core.system.facts import GpuMemory, GpuTraits
from genaid_server.resource.core.system.machine import Machine
from genaid_server.resource.core.system.probe_candidates import candidates
from genaid_server.supervision.child import Child, child

log = logging.getLogger(__name__)

TIMEOUT: Final = 2.0  # seconds that a probe may take to start and to answer
IDLE: Final = 10.0  # seconds that a probe lives unasked: an open NVIDIA driver keeps a laptop's GPU awake
RETRY: Final = 30.0  # seconds during which a probe that failed isn't asked for memory
CLOSE_TIMEOUT: Final = 2.0  # seconds to wait for the end of a killed probe: it may be stuck in the kernel
MAX_ANSWER: Final = 1 << 20  # bytes
MAX_STDERR: Final = 4096  # bytes that are kept of it, the last ones

MEASURING: Final = ("nvidia", "drm")
"""The probes that can be asked for memory."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a note calls a probe, what is lost where it fails, and what to do about that."""

    title: str
    loss: str
    advice: str


WORDS: Final = {
    "nvidia": Words(
        "The NVIDIA driver",
        "its GPUs are left out",
        "See whether nvidia-smi answers; where it doesn't either, restart the machine.",
    ),
    "drm": Words(
        "The graphics driver of the kernel",
        "its GPUs are left out",
        "Look for its errors in the log of the kernel (dmesg), or restart the machine.",
    ),
    "vulkan": Words(
        "The Vulkan driver",
        "which GPUs it could use is not known",
        "See whether vulkaninfo answers; where it doesn't either, update the driver.",
    ),
    "apple": Words("The query of Apple's GPU", "it is left out", "See whether sysctl hw.memsize answers."),
}


@dataclass(frozen=True, slots=True)
class FoundGpu(GpuTraits):
    """A GPU as one probe sees it; what that doesn't know is left at its default. The ids of vendor and device have
    four hexadecimal digits."""

    id: str
    vendor: str
    name: str
    vendor_id: str = ""
    device_id: str = ""


@dataclass(frozen=True, slots=True)
class ProbeFindings:
    """The answer to `detect`."""

    gpus: tuple[FoundGpu, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProbeMemory:
    """The answer to `memory`: of the GPUs whose drivers tell."""

    memory: tuple[GpuMemory, ...]
    notes: tuple[str, ...]


_FOUND: Final = Shape(ProbeFindings)
_MEASURED: Final = Shape(ProbeMemory)


@dataclass(frozen=True, slots=True)
class Detection:
    """What each probe found, by its name; `notes` say what could not be found out."""

    gpus: Mapping[str, tuple[FoundGpu, ...]]
    notes: tuple[str, ...]


class ProbeError(Exception):
    """A probe gave no answer; the message says what happened instead and goes on after its title."""


class Probes:
    """The probes of a machine, as an async context manager; all their processes have ended when the block ends.

    All methods belong to one event loop. Whoever waits for an answer while the block ends gets a ServerError.
    `timeout`, `idle` and `retry` are seconds, as the constants above.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        timeout: float = TIMEOUT,
        idle: float = IDLE,
        retry: float = RETRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._machine = machine
        self._retry = retry
        self._probes = {
            name: _Probe(name, (*machine.probe_command, name), machine.probe_env, timeout, idle, clock)
            for name in WORDS
        }
        self._measuring: list[str] | None = None  # the probes that had a GPU, or failed, when they were asked last

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(probe.close() for probe in self._probes.values()))

    async def detect(self) -> Detection:
        """Ask all probes that make sense on this machine at once; each may take the timeout."""
        names = await asyncio.to_thread(candidates, self._machine)
        answers = await _all(self._detect(name) for name in names)
        gpus = {
            name: answer.gpus for name, answer in zip(names, answers, strict=True) if isinstance(answer, ProbeFindings)
        }
        self._measuring = [name for name in names if name in MEASURING and gpus.get(name, True)]
        losses = [WORDS[name].loss for name in names]
        return Detection(gpus, _notes(names, answers, losses))

    async def memory(self) -> ProbeMemory:
        """Ask how much memory the GPUs have now, those that were found last. A probe that failed has a rest."""
        if self._measuring is None:
            found = await asyncio.to_thread(candidates, self._machine)
            self._measuring = [name for name in found if name in MEASURING]
        names = self._measuring
        answers = await _all(
            self._probes[name].ask("memory", _MEASURED, keep=lambda measured: bool(measured.memory), rest=self._retry)
            for name in names
        )
        memory = [gpu for answer in answers if isinstance(answer, ProbeMemory) for gpu in answer.memory]
        losses = ["the free memory of its GPUs is not known"] * len(names)
        return ProbeMemory(tuple(memory), _notes(names, answers, losses))

    async def _detect(self, name: str) -> ProbeFindings:
        # Only a probe that will be asked for memory is worth keeping.
        return await self._probes[name].ask("detect", _FOUND, keep=lambda found: name in MEASURING and bool(found.gpus))


class _Probe:
    """One probe: its process, which is kept for a while after an answer, and how it failed last."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        timeout: float,
        idle: float,
        clock: Callable[[], float],
    ) -> None:
        self._name, self._argv, self._env = name, argv, env
        self._timeout, self._idle, self._clock = timeout, idle, clock
        self._lock = asyncio.Lock()
        self._session: _Session | None = None
        self._last: _Session | None = None  # the newest one, which may have to end yet
        self._timer: asyncio.TimerHandle | None = None
        self._fault = ""
        self._faults = 0
        self._failed_at = 0.0
        self._closed = False

    async def ask[T](self, question: str, shape: Shape[T], *, keep: Callable[[T], bool], rest: float = 0.0) -> T:
        """The answer; where `keep` says so of it, the process is kept for the next question.

        Raises ProbeError; at once where the probe failed less than `rest` seconds ago, or while this call waited
        for its turn. Raises ServerError once it is closed.
        """
        faults = self._faults
        async with self._lock:
            if self._closed:
                raise _shutting_down()
            if self._faults != faults or (self._fault and self._clock() - self._failed_at < rest):
                raise ProbeError(self._fault)
            self._cancel_timer()
            kept = False
            try:
                answer = await self._answer(question, shape)
                kept = keep(answer)
            except ProbeError as fault:
                self._note(str(fault))
                raise
            finally:
                if not kept:
                    self._end()
            self._fault = ""
            if kept:
                self._timer = asyncio.get_running_loop().call_later(self._idle, self._end)
            return answer

    async def close(self) -> None:
        """End the process, and whoever waits for it with a ServerError."""
        self._closed = True
        self._cancel_timer()
        if self._session is not None:
            self._session.fail(_shutting_down())
        self._end()
        if self._last is not None and not await self._last.ended(CLOSE_TIMEOUT):
            log.warning("The probe %s was killed and has not ended; its driver hangs in the kernel.", self._name)

    async def _answer[T](self, question: str, shape: Shape[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                session = await self._ready()
                return shape.read(await session.ask(question))
        except TimeoutError:
            raise ProbeError(f"did not answer within {self._timeout:g} s") from None
        except ShapeError as error:
            log.warning("The probe %s gave an answer of a wrong shape: %s", self._name, error)
            raise ProbeError("gave an answer that makes no sense") from None

    async def _ready(self) -> "_Session":
        """The session to ask."""
        if self._session is None or self._session.over:
            self._end()
            # One at a time: processes that a hanging driver does not let die must not pile up.
            if self._last is not None:
                await self._last.ended()
            if self._closed:
                raise _shutting_down()
            self._session = self._last = _Session(self._argv, self._env)
        return self._session

    def _note(self, fault: str) -> None:
        words = self._session.last_words() if self._session is not None else ""
        log.warning("%s %s. The last that its probe said: %s", WORDS[self._name].title, fault, words or "nothing")
        self._fault, self._faults, self._failed_at = fault, self._faults + 1, self._clock()

    def _end(self) -> None:
        if self._session is not None:
            self._session.end()
            self._session = None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Session:
    """One process of a probe, from its start to its end; it is asked one question at a time."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None) -> None:
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._output = bytearray()
        self._errors = bytearray()
        self._process: Child | None = None
        self._unsent = b""
        self.over = False
        self._task = asyncio.create_task(self._run(argv, env))

    async def ask(self, question: str) -> bytes:
        """The line that it answers. Raises ProbeError where it ends instead, or says too much."""
        self._answer = asyncio.get_running_loop().create_future()
        line = question.encode() + b"\n"
        if self._process is None:
            self._unsent = line
        else:
            self._process.write(line)
        return await self._answer

    def fail(self, error: Exception) -> None:
        """Let it answer no more; whoever waits for an answer gets `error`."""
        self.over = True
        if not self._answer.done():
            self._answer.set_exception(error)

    def end(self) -> None:
        """Kill the process, without waiting for its end."""
        self.over = True
        self._task.cancel()

    async def ended(self, timeout: float | None = None) -> bool:
        """Wait for the end of the process, `timeout` seconds at most, and tell whether it has ended."""
        done, _ = await asyncio.wait([self._task], timeout=timeout)
        return bool(done)

    def last_words(self) -> str:
        """The last line of its stderr."""
        lines = self._errors.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def _run(self, argv: Sequence[str], env: Mapping[str, str] | None) -> None:
        try:
            async with child(argv, self._on_stdout, self._on_stderr, env, grace=0) as process:
                self._process = process
                process.write(self._unsent)
                self.fail(ProbeError(f"ended without an answer ({await process.exited()})"))
        except OSError as error:
            self._on_stderr(str(error).encode())
            self.fail(ProbeError("can't be asked, its probe does not start"))

    def _on_stdout(self, data: bytes) -> None:
        if self.over:
            return
        self._output += data[: MAX_ANSWER + 1]
        line, end, more = self._output.partition(b"\n")
        if len(self._output) > MAX_ANSWER or more or (line and self._answer.done()):
            # At once: nobody may be waiting who would end it.
            self.fail(ProbeError("gave more than one answer"))
            self.end()
        elif end:
            self._output.clear()
            self._answer.set_result(bytes(line))

    def _on_stderr(self, data: bytes) -> None:
        self._errors += data
        del self._errors[:-MAX_STDERR]


async def _all[T](asking: Iterable[Awaitable[T]]) -> list[T | ProbeError]:
    """All answers or faults, in order; raises any other exception once all are through."""
    answers: list[T | ProbeError] = []
    for answer in await asyncio.gather(*asking, return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, ProbeError):
            raise answer
        answers.append(answer)
    return answers


def _notes(
    names: Sequence[str], answers: Sequence[ProbeFindings | ProbeMemory | ProbeError], losses: Sequence[str]
) -> tuple[str, ...]:
    notes: list[str] = []
    for name, answer, loss in zip(names, answers, losses, strict=True):
        if isinstance(answer, ProbeError):
            notes.append(f"{WORDS[name].title} {answer}; {loss}. {WORDS[name].advice}")
        else:
            notes += answer.notes
    return tuple(notes)


def _shutting_down() -> ServerError:
    return ServerError("The service is shutting down.")
