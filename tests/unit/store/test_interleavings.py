"""Commands to the store at every turn of the event loop while another one is at work: none acts on what is past."""

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaid_server.kit.errors import FileSystemError, InvalidRequestError, ModelNotFoundError, ServerBusyError
from genaid_server.resource.core.formats.gguf import GgufHeader, ValueType, parse_header
from genaid_server.resource.core.store.model import Component, Model
from genaid_server.resource.core.store.refreshing import Strategy
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.core.store.verification import Verdict, VerifyProgress
from turns import in_lockstep, outcome, turns, within_turns
from unit.formats.gguf_files import MemorySource, language_model, model, pair
from unit.store.store_files import FLUX, Staging, expected_names, names_below, safetensors, sha256

ID = "mine"
SOURCE_TURNS = 40
"""Turns that a source takes: more than to replace a model."""


def llama(layers: int) -> bytes:
    """A language model that is told from others by its number of layers."""
    pairs = [
        pair("general.architecture", ValueType.STRING, "llama"),
        pair("llama.block_count", ValueType.UINT32, layers),
        pair("tokenizer.ggml.model", ValueType.STRING, "gpt2"),
    ]
    return model(pairs, [("blk.0.attn_q.weight", (8, 8))])


def layers(made: Model) -> int | None:
    assert made.metadata is not None
    return made.metadata.block_count


def put(store: ModelStore, name: str, content: bytes) -> None:
    (store.inbox / name).write_bytes(content)


async def slow_source(asked: Model) -> GgufHeader:
    """The header that the source of a model has; it takes its time."""
    content = asked.path.read_bytes()
    await turns(SOURCE_TURNS)
    return parse_header(MemorySource(content))


async def replace(store: ModelStore, content: bytes) -> Model:
    """Have another model under the same id."""
    await store.delete(ID)
    return await store.install([Staging(store).file("other.gguf", content)], model_id=ID)


async def verified(store: ModelStore, model_id: str) -> VerifyProgress:
    return [progress async for progress in store.verify(model_id)][-1]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[ModelStore]:
    store = await ModelStore.open(folder)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def with_model(folder: Path, content: bytes) -> AsyncIterator[ModelStore]:
    """A store with one model, whose source is known."""
    async with opened(folder) as store:
        await store.install([Staging(store).file("first.gguf", content)], model_id=ID)
        yield store


type Command = Callable[[ModelStore], Coroutine[Any, Any, Model | VerifyProgress]]


async def refresh(store: ModelStore) -> Model:
    return await store.refresh(ID, Strategy.REMOTE_ONLY, slow_source)


async def verify(store: ModelStore) -> VerifyProgress:
    return await verified(store, ID)


@pytest.mark.parametrize("command", [refresh, verify])
@pytest.mark.parametrize("replaced", [False, True])
async def test_what_was_read_of_a_model_is_not_said_of_another(
    command: Command, replaced: bool, tmp_path: Path
) -> None:
    in_lockstep()
    turn, over = 0, False
    seen = Counter[str]()
    while not over:
        folder = tmp_path / str(turn)
        async with with_model(folder, llama(1)) as store:
            working = asyncio.create_task(outcome(command(store), ModelNotFoundError))
            await turns(turn)
            over = working.done()
            if replaced:
                await within_turns(replace(store, llama(2)))
            else:
                await store.delete(ID)
            answer = await asyncio.wait_for(working, 30)
            seen[type(answer).__name__] += 1
            if isinstance(answer, VerifyProgress):
                assert answer.verdict is Verdict.VALID
            for present in store.list():
                assert layers(present) == 2
            assert names_below(store) == expected_names(store)
        async with opened(folder) as again:
            assert [layers(each) for each in again.list()] == [2] * replaced
        shutil.rmtree(folder)
        turn += 3
    assert seen.keys() == {"ModelNotFoundError", "Model" if command is refresh else "VerifyProgress"}


async def test_the_header_of_a_model_that_is_deleted_while_it_is_read_is_not_missed(tmp_path: Path) -> None:
    async with with_model(tmp_path, llama(1)) as store:
        in_lockstep(20)  # a thread that is late
        reading = asyncio.create_task(outcome(store.raw_metadata(ID), ModelNotFoundError))
        await turns(1)
        await store.delete(ID)
        assert isinstance(await asyncio.wait_for(reading, 30), ModelNotFoundError)


async def test_a_repeated_import_returns_the_model_as_it_is_now(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        put(store, "a.gguf", llama(1))
        made = await store.import_file("a.gguf", request_id="key")
        made.path.write_bytes(llama(3))
        fresh = await store.refresh(made.id, Strategy.LOCAL_ONLY, slow_source)
        assert layers(fresh) == 3
        assert await store.import_file("a.gguf", request_id="key") == fresh


async def test_a_model_that_is_in_use_at_any_turn_is_there(tmp_path: Path) -> None:
    in_lockstep()
    turn, over = 0, False
    seen = Counter[bool]()
    while not over:
        folder = tmp_path / str(turn)
        used: set[str] = set()
        async with with_model(folder, llama(1)) as store:
            store.in_use = lambda model_id, used=used: "It runs." if model_id in used else None
            deleting = asyncio.create_task(outcome(store.delete(ID), ServerBusyError))
            await turns(turn)
            over = deleting.done()
            if started := ID in {each.id for each in store.list()}:  # as an engine does: found and used at once
                used.add(store.get(ID).id)
            answer = await asyncio.wait_for(deleting, 30)
            assert isinstance(answer, ServerBusyError) == started
            assert used == {each.id for each in store.list()}
            seen[started] += 1
        shutil.rmtree(folder)
        turn += 1
    assert seen.keys() == {False, True}


async def test_a_shared_file_that_goes_at_any_turn_is_missed_by_its_name(tmp_path: Path) -> None:
    in_lockstep()
    turn, over = 0, False
    while not over:
        folder = tmp_path / str(turn)
        async with opened(folder) as store:
            staging = Staging(store)
            first = await store.install(staging.components(FLUX))
            other = {**FLUX, Component.DIFFUSION_MODEL: safetensors(("model.diffusion_model.weight",))}
            staged = staging.components(other)
            installing = asyncio.create_task(outcome(store.install(staged), FileSystemError))
            await turns(turn)
            over = installing.done()
            await store.delete(first.id)
            answer = await asyncio.wait_for(installing, 30)
            if isinstance(answer, Model):
                assert store.list() == (answer,)
                assert all(file.path.is_file() for file in answer.files)
            else:
                assert "deleted meanwhile" in str(answer)
            assert names_below(store) == expected_names(store)
        shutil.rmtree(folder)
        turn += 1
    assert turn > 3


# --- anything at any turn

COMMANDS = st.one_of(
    st.tuples(st.just("import"), st.integers(0, 2), st.sampled_from(["", "one", "two"])),
    st.tuples(st.just("delete"), st.integers(0, 5), st.just("")),
    st.tuples(st.just("refresh"), st.integers(0, 5), st.just("")),
    st.tuples(st.just("verify"), st.integers(0, 5), st.just("")),
    st.tuples(st.just("use"), st.integers(0, 5), st.just("")),
    st.tuples(st.just("release"), st.integers(0, 5), st.just("")),
)
CONTENTS = [language_model("Same", salt=salt) for salt in range(3)]


class Engines:
    """Who uses which model: each finds it in the store and takes it in one step."""

    def __init__(self, store: ModelStore) -> None:
        self.store, self.used = store, set[str]()
        store.in_use = lambda model_id: "It runs." if model_id in self.used else None

    def check(self) -> None:
        assert self.used <= {each.id for each in self.store.list()}


async def command(store: ModelStore, engines: Engines, verb: str, number: int, request_id: str) -> None:
    models = store.list()
    chosen = models[number % len(models)] if models else None
    if verb == "import":
        name = f"{number}.gguf"
        put(store, name, CONTENTS[number])
        made = await store.import_file(name, request_id=request_id)
        assert made.checksum in {sha256(content) for content in CONTENTS}
    elif chosen is None:
        return
    elif verb == "delete":
        await store.delete(chosen.id)
    elif verb == "refresh":
        await store.refresh(chosen.id, Strategy.LOCAL_ONLY, slow_source)
    elif verb == "verify":
        assert (await verified(store, chosen.id)).verdict is Verdict.VALID
    elif verb == "use":
        engines.used.add(chosen.id)
    else:
        engines.used.discard(chosen.id)


async def play(folder: Path, script: list[tuple[int, tuple[str, int, str]]]) -> None:
    in_lockstep()
    async with opened(folder) as store:
        engines, tasks = Engines(store), []
        for wait, (verb, number, request_id) in script:
            for _ in range(wait):
                await asyncio.sleep(0)
                engines.check()
            allowed = (InvalidRequestError, ModelNotFoundError, ServerBusyError)
            tasks.append(asyncio.create_task(outcome(command(store, engines, verb, number, request_id), *allowed)))
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            engines.check()
        for task in tasks:
            task.result()
        engines.check()
        assert names_below(store) - {f"llm/.{each.id}.lock" for each in store.list()} == expected_names(store)
        for each in store.list():
            assert sha256(each.path.read_bytes()) == each.checksum
        models = store.list()
    async with opened(folder) as again:
        assert again.list() == models


@settings(deadline=None, max_examples=30)
@given(script=st.lists(st.tuples(st.integers(0, 30), COMMANDS), max_size=12))
async def test_anything_at_any_turn_leaves_whole_models(script: list[tuple[int, tuple[str, int, str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await play(Path(folder), script)


@pytest.mark.long
@settings(deadline=None, max_examples=200)
@given(script=st.lists(st.tuples(st.integers(0, 30), COMMANDS), max_size=20))
async def test_anything_at_any_turn_leaves_whole_models_for_long(
    script: list[tuple[int, tuple[str, int, str]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await play(Path(folder), script)
