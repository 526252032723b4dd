"""Reading the header of a file elsewhere: as exact as reading it here, for little more than its own bytes."""

import asyncio
import json
from pathlib import Path

import pytest

from fakes.scripted_remote import Break, End, Hold, IgnoreRange, Refuse, Replace, ScriptedRemote, Served, Stall
from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.downloads.remote import Item, RemoteError
from genaid_server.resource.core.downloads.remote_header import Header, read_remote_header, tell_type
from genaid_server.resource.core.formats import gguf, safetensors
from genaid_server.resource.core.formats.byte_source import FileSource
from genaid_server.resource.core.formats.gguf import ValueType
from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from unit.formats.gguf_files import array, diffusion_model, language_model, model, pair, u64

GGUF, SAFETENSORS = ModelFormat.GGUF, ModelFormat.SAFETENSORS
URL = "http://models.test/model.gguf"


def vocabulary(tokens: int) -> bytes:
    """A language model with a long header and data behind it."""
    return model(
        [
            pair("general.architecture", ValueType.STRING, "llama"),
            pair("tokenizer.ggml.model", ValueType.STRING, "gpt2"),
            pair("tokenizer.ggml.tokens", ValueType.ARRAY, array(ValueType.STRING, [f"<{n}>" for n in range(tokens)])),
            pair("tokenizer.ggml.scores", ValueType.ARRAY, array(ValueType.FLOAT32, [1.0] * tokens)),
            pair("tokenizer.ggml.merges", ValueType.ARRAY, array(ValueType.STRING, [f"{n} x" for n in range(tokens)])),
        ],
        [("token_embd.weight", (1024, 1024)), ("blk.0.attn_q.weight", (8, 8))],
    )


def tensors(names: list[str]) -> bytes:
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
    text = json.dumps(header).encode()
    return u64(len(text)) + text + bytes(4 * len(names))


async def read(remote: ScriptedRemote, form: ModelFormat = GGUF, stall_seconds: float = 60.0) -> Header | None:
    return await read_remote_header(remote, await remote.resolve(Item(URL)), form, stall_seconds)


@pytest.mark.parametrize("tokens", [0, 5_000, 152_000])
async def test_a_header_is_read_without_the_file(tokens: int, tmp_path: Path) -> None:
    content = vocabulary(tokens)
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    here = gguf.read_header(path)
    remote = ScriptedRemote({URL: Served(content)})
    assert await read(remote) == here
    assert remote.sent < len(content)
    assert remote.open_bodies == 0
    if tokens > 100_000:
        assert remote.sent / here.data_offset <= 1.3


async def test_a_safetensors_header_is_read_too(tmp_path: Path) -> None:
    content = tensors([f"model.diffusion_model.{n}" for n in range(3000)])
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with FileSource(path) as source:
        here = safetensors.parse_header(source)
    assert await read(ScriptedRemote({URL: Served(content)}), SAFETENSORS) == here


async def test_a_source_that_ignores_ranges_is_read_from_its_beginning_once() -> None:
    content = vocabulary(152_000)
    remote = ScriptedRemote({URL: Served(content)})
    remote.fail(URL, *[IgnoreRange()] * 10)
    header = await read(remote)
    assert isinstance(header, gguf.GgufHeader)
    assert len(header.tensors) == 2
    assert len(remote.openings) == 2
    assert remote.open_bodies == 0


@pytest.mark.parametrize("form", ModelFormat)
async def test_what_is_no_model_is_refused_after_the_first_piece(form: ModelFormat) -> None:
    remote = ScriptedRemote({URL: Served(b"<html>" + bytes(10_000_000))})
    with pytest.raises(InvalidRequestError):
        await read(remote, form)
    assert remote.sent <= 2**20
    assert remote.open_bodies == 0


@pytest.mark.parametrize(("form", "good"), [(GGUF, language_model()), (SAFETENSORS, tensors(["weight"]))])
async def test_a_file_of_unknown_size_is_only_looked_at(form: ModelFormat, good: bytes) -> None:
    assert await read(ScriptedRemote({URL: Served(good, tells_size=False)}), form) is None
    for bad in (b"", b"<html>not found</html>"):
        with pytest.raises(InvalidRequestError):
            await read(ScriptedRemote({URL: Served(bad, tells_size=False)}), form)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("fault", [Break(10), End(10), Refuse(), Stall(10)], ids=lambda fault: type(fault).__name__)
async def test_a_source_that_fails_is_an_error_to_try_again(fault: Break | End | Refuse | Stall, place: int) -> None:
    remote = ScriptedRemote({URL: Served(vocabulary(152_000))})
    remote.script[URL] = [*[End(10**9)] * place, fault]
    with pytest.raises(RemoteError) as failure:
        await read(remote, stall_seconds=0.05)
    assert not failure.value.permanent
    assert remote.open_bodies == 0


async def test_a_file_that_changes_while_it_is_read_is_an_error_to_try_again() -> None:
    remote = ScriptedRemote({URL: Served(vocabulary(152_000))})
    remote.script[URL] = [End(10**9), Replace(vocabulary(150_000))]
    with pytest.raises(RemoteError):
        await read(remote)


async def test_reading_can_be_stopped_in_the_middle() -> None:
    hold = Hold(10)
    remote = ScriptedRemote({URL: Served(vocabulary(152_000))})
    remote.script[URL] = [End(10**9), hold]
    task = asyncio.create_task(read(remote))
    await hold.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert remote.open_bodies == 0


# --- what the header says


def header_of(content: bytes, tmp_path: Path) -> gguf.GgufHeader:
    path = tmp_path / "file"
    path.write_bytes(content)
    return gguf.read_header(path)


def test_the_type_is_told_from_the_header(tmp_path: Path) -> None:
    assert tell_type([header_of(language_model(), tmp_path)], None) is ModelType.LLM
    assert tell_type([header_of(diffusion_model(), tmp_path)], None) is ModelType.DIFFUSION
    with pytest.raises(InvalidRequestError) as refusal:
        tell_type([header_of(language_model(), tmp_path)], ModelType.DIFFUSION)
    assert refusal.value.facts["field"] == "type"


def test_a_part_of_a_model_is_refused_unless_its_other_parts_are_fetched_too(tmp_path: Path) -> None:
    split = [pair("tokenizer.ggml.model", ValueType.STRING, "gpt2"), pair("split.count", ValueType.UINT16, 2)]
    first = header_of(model(split), tmp_path)
    second = header_of(model([], [("blk.0.attn_q.weight", (8, 8))]), tmp_path)
    assert tell_type([first, second], None) is ModelType.LLM
    for alone in (first, header_of(model(split, [("blk.0.attn_q.weight", (8, 8))]), tmp_path)):
        with pytest.raises(InvalidRequestError):
            tell_type([alone], None)
