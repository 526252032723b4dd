"""Prompt caches: what an engine answers when it is asked for its slots, and what is made of that."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from genaid_server.resource.core.llm.slots import (
    SETTLED_AFTER,
    EngineEndpoint,
    NoAnswerError,
    PromptCaches,
    SlotsError,
    discard,
    file_name,
)
from genaid_server.supervision.logbook import Level, Logbook
from unit.leases.lease_machine import instantly

BUSY, IDLE = [False, True], [False, False]
HERE = EngineEndpoint("127.0.0.1", 8080, "sesame")
NEVER: BaseException = SlotsError("HTTP status 501")
LATE: BaseException = NoAnswerError("no answer within 5 s")

type Answer = list[bool] | BaseException


@dataclass
class Script:
    """An engine whose slots answer as written, the last answer again and again. `tokens` are what it has in each."""

    answers: Sequence[Answer] = (IDLE,)
    tokens: dict[int, int | BaseException] = field(default_factory=dict)
    looks: int = 0
    asked: list[tuple[str, int, str]] = field(default_factory=list)

    async def slots(self, engine: EngineEndpoint) -> list[bool]:
        assert engine == HERE
        answer = self.answers[min(self.looks, len(self.answers) - 1)]
        self.looks += 1
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def save(self, engine: EngineEndpoint, slot: int, name: str) -> int:
        return self._cache("save", engine, slot, name)

    async def restore(self, engine: EngineEndpoint, slot: int, name: str) -> int:
        return self._cache("restore", engine, slot, name)

    def _cache(self, action: str, engine: EngineEndpoint, slot: int, name: str) -> int:
        assert engine == HERE
        self.asked.append((action, slot, name))
        tokens = self.tokens.get(slot, 0)
        if isinstance(tokens, BaseException):
            raise tokens
        return tokens


@pytest.fixture
def logbook() -> Iterator[Logbook]:
    logbook = Logbook()
    yield logbook
    logbook.close()


def caches(api: Script, logbook: Logbook, folder: Path = Path()) -> PromptCaches:
    return PromptCaches(api, HERE, folder, logbook)


def warnings(logbook: Logbook) -> list[str]:
    records = logbook.tail(1000)
    assert {record.level for record in records} <= {Level.WARN}
    return [record.message for record in records]


def now() -> float:
    return asyncio.get_running_loop().time()


class TestWaitingForRequests:
    @instantly
    async def test_an_idle_engine_is_watched_for_a_moment(self) -> None:
        api = Script()
        assert await caches(api, Logbook()).drain(30)
        assert SETTLED_AFTER <= now() < 2 * SETTLED_AFTER
        assert api.looks > 1

    @instantly
    async def test_it_ends_once_the_last_request_has(self) -> None:
        api = Script([BUSY] * 100 + [[True, True], IDLE])
        assert await caches(api, Logbook()).drain(30)
        assert api.looks > 101

    @instantly
    async def test_a_request_that_was_on_its_way_begins_the_moment_anew(self) -> None:
        api = Script([IDLE, IDLE, BUSY, IDLE, BUSY, IDLE])
        assert await caches(api, Logbook()).drain(30)
        once = Script([IDLE])
        assert await caches(once, Logbook()).drain(30)
        assert api.looks == 5 + once.looks

    @instantly
    async def test_patience_has_an_end(self) -> None:
        api = Script([BUSY])
        assert not await caches(api, Logbook()).drain(30)
        assert 30 <= now() < 31

    @instantly
    async def test_without_patience_it_is_asked_once(self) -> None:
        busy, idle = Script([BUSY]), Script([IDLE])
        assert not await caches(busy, Logbook()).drain(0)
        assert await caches(idle, Logbook()).drain(0)
        assert (busy.looks, idle.looks, now()) == (1, 1, 0)

    @instantly
    async def test_one_that_takes_its_time_to_answer_is_at_work(self) -> None:
        logbook = Logbook()
        assert not await caches(Script([LATE]), logbook).drain(30)
        assert now() >= 30
        assert await caches(Script([LATE, LATE, IDLE]), logbook).drain(30)
        assert warnings(logbook) == []

    @instantly
    async def test_one_that_does_not_tell_is_through_and_that_is_said_once(self) -> None:
        logbook = Logbook()
        assert await caches(Script([NEVER]), logbook).drain(30)
        assert now() < 1
        assert warnings(logbook) == ["whether requests are being computed is not known: HTTP status 501"]

    @instantly
    async def test_one_that_stumbles_is_asked_again(self) -> None:
        api = Script([NEVER, BUSY, BUSY, IDLE])
        assert await caches(api, Logbook()).drain(30)
        assert api.looks > 4


class TestSaving:
    async def test_each_slot_has_a_file_of_its_own(self, logbook: Logbook) -> None:
        api = Script([[False] * 3], {0: 7, 1: 100, 2: 1})
        assert await caches(api, logbook).save() == {0: 7, 1: 100, 2: 1}
        assert api.asked == [("save", slot, f"slot-{slot}.bin") for slot in range(3)]
        assert warnings(logbook) == []

    async def test_empty_slots_are_left_out(self, logbook: Logbook) -> None:
        assert await caches(Script([[False] * 3], {1: 5}), logbook).save() == {1: 5}

    async def test_what_fails_is_left_out_and_told(self, logbook: Logbook) -> None:
        api = Script([[False] * 3], {0: SlotsError("HTTP status 500"), 1: NoAnswerError("no answer"), 2: 9})
        assert await caches(api, logbook).save() == {2: 9}
        assert warnings(logbook) == [
            "the prompt cache of slot 0 could not be saved: HTTP status 500",
            "the prompt cache of slot 1 could not be saved: no answer",
        ]

    async def test_a_slot_at_work_is_not_waited_for(self, logbook: Logbook) -> None:
        api = Script([[True, False]], {0: 10, 1: 20})
        assert await caches(api, logbook).save() == {1: 20}
        assert api.asked == [("save", 1, "slot-1.bin")]

    @pytest.mark.parametrize("error", [NEVER, LATE])
    async def test_without_slots_there_is_nothing_to_save(self, logbook: Logbook, error: BaseException) -> None:
        assert await caches(Script([error]), logbook).save() == {}
        assert warnings(logbook) == [f"no prompt cache is saved: {error}"]


class TestRestoring:
    async def test_what_was_saved_is_read_back(self, logbook: Logbook) -> None:
        api = Script()
        await caches(api, logbook).restore({0: 12, 3: 4})
        assert api.asked == [("restore", 0, "slot-0.bin"), ("restore", 3, "slot-3.bin")]

    async def test_one_that_fails_does_not_stop_the_others(self, logbook: Logbook) -> None:
        api = Script(tokens={0: SlotsError("HTTP status 400")})
        await caches(api, logbook).restore({0: 12, 3: 4})
        assert [slot for _, slot, _ in api.asked] == [0, 3]
        assert warnings(logbook) == ["the prompt cache of slot 0 could not be restored: HTTP status 400"]


class TestDiscarding:
    def test_conversations_are_removed_and_nothing_else(self, tmp_path: Path, logbook: Logbook) -> None:
        below = tmp_path / "talker"
        below.mkdir()
        for folder in (tmp_path, below):
            for name in (file_name(0), file_name(17), "notes.txt"):
                (folder / name).touch()
        caches(Script(), logbook, below).discard()
        assert [path.name for path in below.iterdir()] == ["notes.txt"]
        assert (tmp_path / file_name(17)).exists()
        discard(tmp_path)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["notes.txt", "notes.txt", "talker"]
        discard(tmp_path / "nowhere")

    def test_what_can_not_be_removed_is_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / file_name(0)).mkdir()
        (tmp_path / file_name(1)).touch()
        discard(tmp_path)
        assert "slot-0.bin can't be removed" in caplog.text
        assert not (tmp_path / file_name(1)).exists()
