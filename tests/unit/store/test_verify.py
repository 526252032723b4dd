"""Verifying, deleting what is in use, reading a header whole and anew."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from genaid_server.kit.errors import (
    DownloadError,
    FileSystemError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerBusyError,
    ServerError,
)
from genaid_server.resource.core.formats.gguf import GgufHeader, ValueType, parse_header
from genaid_server.resource.core.store import verification
from genaid_server.resource.core.store.files import StoppedError
from genaid_server.resource.core.store.model import Component, Model, ModelFile
from genaid_server.resource.core.store.refreshing import Strategy
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.core.store.verification import FileVerification, Verdict, VerifyProgress, verify_files
from genaid_server.supervision.model_lock import held, lock_of
from unit.formats.gguf_files import MemorySource, array, header, language_model, model, pair
from unit.store.store_files import FLUX, REMOTE, Staging, names_below, sha256, shards

LARGE = 2**42  # bytes: hours of hashing, and no disk where files may have holes


async def verified(store: ModelStore, model_id: str) -> VerifyProgress:
    """The result, after it was seen that what came before is no result and never goes back."""
    seen = [progress async for progress in store.verify(model_id)]
    assert all(each.verdict is None and not each.files for each in seen[:-1])
    assert [each.bytes_done for each in seen] == sorted(each.bytes_done for each in seen)
    assert len({each.bytes_total for each in seen}) == 1
    assert seen[0].bytes_done == 0
    assert seen[-1].bytes_done == seen[-1].bytes_total
    return seen[-1]


async def large_model(store: ModelStore) -> Model:
    """A model that takes hours to hash."""
    if sys.platform == "win32":
        pytest.skip("files have no holes there by default")
    made = await store.install([Staging(store).file("a.gguf", language_model())])
    try:
        os.truncate(made.path, LARGE)
    except OSError:
        pytest.skip("this file system has no such large files")
    return made


# --- verifying


async def test_a_model_that_is_as_it_was_is_valid(store: ModelStore, staging: Staging) -> None:
    made = await store.install(staging.components(FLUX))
    found = await verified(store, made.id)
    assert found.verdict is Verdict.VALID
    assert found.bytes_total == made.size_bytes
    assert found.files == tuple(
        FileVerification(file.name, Verdict.VALID, file.checksum, file.checksum) for file in made.files
    )


async def test_a_changed_file_makes_a_model_invalid(store: ModelStore, staging: Staging) -> None:
    contents = shards(3)
    made = await store.install(staging.shards(contents))
    changed = contents[1][:-1] + b"\1"
    made.files[1].path.write_bytes(changed)
    found = await verified(store, made.id)
    assert found.verdict is Verdict.INVALID
    assert [each.verdict for each in found.files] == [Verdict.VALID, Verdict.INVALID, Verdict.VALID]
    assert found.files[1] == FileVerification(made.files[1].name, Verdict.INVALID, sha256(contents[1]), sha256(changed))


async def test_a_missing_file_makes_a_model_invalid(store: ModelStore, staging: Staging) -> None:
    made = await store.install(staging.shards(shards(2)))
    made.files[1].path.unlink()
    found = await verified(store, made.id)
    assert found.verdict is Verdict.INVALID
    assert found.files[1] == FileVerification(made.files[1].name, Verdict.INVALID, made.files[1].checksum, "")


async def test_without_a_checksum_nothing_can_be_said(store: ModelStore, staging: Staging) -> None:
    content = language_model()
    made = await store.install([replace(staging.file("a.gguf", content), checksum="")])
    found = await verified(store, made.id)
    assert found.verdict is Verdict.UNVERIFIABLE
    assert found.files == (FileVerification("a.gguf", Verdict.UNVERIFIABLE, "", sha256(content)),)
    made.path.unlink()
    assert (await verified(store, made.id)).verdict is Verdict.INVALID


async def test_a_file_that_cannot_be_read_is_an_error(store: ModelStore, staging: Staging) -> None:
    made = await store.install([staging.file("a.gguf", language_model())])
    made.path.unlink()
    made.path.mkdir()
    with pytest.raises(FileSystemError, match=r"Can't read a\.gguf"):
        await verified(store, made.id)


async def test_only_what_is_installed_can_be_verified(store: ModelStore) -> None:
    with pytest.raises(ModelNotFoundError):
        await verified(store, "nothing")


async def test_progress_is_shown_on_the_way(
    store: ModelStore, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await large_model(store)
    monkeypatch.setattr(verification, "INTERVAL", 0.001)
    async with contextlib.aclosing(store.verify(made.id)) as found:
        first = await anext(found)
        assert (first.bytes_done, first.bytes_total) == (0, LARGE)
        while (later := await anext(found)).bytes_done == 0:
            pass
        assert 0 < later.bytes_done < LARGE
        assert later.verdict is None


async def test_whoever_leaves_ends_the_work(store: ModelStore) -> None:
    made = await large_model(store)
    async with contextlib.aclosing(store.verify(made.id)) as found:
        await anext(found)
    # The same is left to itself when a caller is cancelled.
    reader = asyncio.create_task(verified(store, made.id))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await store.delete(made.id)


async def test_closing_ends_the_work(store: ModelStore) -> None:
    made = await large_model(store)
    async with contextlib.aclosing(store.verify(made.id)) as found:
        await anext(found)
        await store.close()
        with pytest.raises(ServerError, match="closed"):
            await anext(found)


async def test_nothing_is_hashed_after_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"content")
    file = ModelFile(path, 7, "", REMOTE)
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        [progress async for progress in verify_files([file], stop)]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [("", "valid"), ("vv", "valid"), ("vi", "invalid"), ("uv", "unverifiable"), ("uiv", "invalid")],
)
def test_one_verdict_for_all_files(verdicts: str, expected: str) -> None:
    letters = {verdict.value[0]: verdict for verdict in Verdict}
    assert verification.overall([letters[each] for each in verdicts]) == expected


# --- deleting what is in use


HOLDER = """
import asyncio, sys
from pathlib import Path
from genaid_server.supervision.model_lock import held

async def main() -> None:
    async with held(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


async def test_a_model_that_another_process_has_loaded_is_not_deleted(store: ModelStore, staging: Staging) -> None:
    made = await store.install(staging.shards(shards(2)))
    lock = lock_of(made.path, made.id)
    assert lock.parent == made.path.parent
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(lock), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert (await holder.stdout.readline()).strip() == b"held"
        with pytest.raises(ServerBusyError, match="loaded") as busy:
            await store.delete(made.id)
        assert busy.value.facts == {"modelId": made.id}
        assert store.get(made.id) is made
        assert all(file.path.exists() for file in made.files)
    finally:
        holder.kill()
        await holder.communicate()
    await store.delete(made.id)
    assert names_below(store) == set()
    assert not lock.parent.exists()


async def test_a_model_that_this_process_has_loaded_is_not_deleted(store: ModelStore, staging: Staging) -> None:
    made = await store.install([staging.file("a.gguf", language_model())])
    other = await store.install([staging.file("b.gguf", language_model("Other"))])
    lock = lock_of(made.path, made.id)
    async with held(lock):
        with pytest.raises(ServerBusyError, match="loaded"):
            await store.delete(made.id)
        with pytest.raises(ServerBusyError):
            async with held(lock):
                pytest.fail("two engines held one model")
        await store.delete(other.id)
    async with held(lock):  # it can be had again
        pass
    await store.delete(made.id)
    assert names_below(store) == set()


async def test_models_that_share_a_file_are_held_one_by_one(store: ModelStore, staging: Staging) -> None:
    first = await store.install(staging.components(FLUX), model_id="first")
    second = await store.install(staging.components(FLUX), model_id="second")
    async with held(lock_of(second.path, second.id)):
        await store.delete(first.id)
        assert all(file.path.exists() for file in second.files)
        with pytest.raises(ServerBusyError):
            await store.delete(second.id)
    await store.delete(second.id)
    assert names_below(store) == set()


async def test_locks_that_engines_left_behind_go_with_their_models(store: ModelStore, staging: Staging) -> None:
    made = await store.install([staging.file("a.gguf", language_model())])
    for model_id in (made.id, "gone"):
        async with held(lock_of(made.path, model_id)):
            pass
    assert "llm/.gone.lock" in names_below(store)
    again = await ModelStore.open(store.inbox.parent)
    assert names_below(again) == {"llm/a.gguf", f"llm/{made.id}.json", f"llm/.{made.id}.lock"}
    await again.delete(made.id)
    assert names_below(again) == set()


async def test_a_model_whose_folder_is_gone_can_be_deleted(store: ModelStore, staging: Staging) -> None:
    made = await store.install(staging.shards(shards(2)))
    for file in made.files:
        file.path.unlink()
    made.path.parent.rmdir()
    await store.delete(made.id)
    assert names_below(store) == set()


async def test_a_lock_in_a_folder_that_is_gone_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with held(lock_of(tmp_path / "gone" / "a.gguf", "a")):
            pytest.fail("it was held")


# --- the whole header


async def raw_of(store: ModelStore, content: bytes) -> dict[str, object]:
    made = await store.install([Staging(store).file("a.gguf", content)])
    return dict(json.loads(await store.raw_metadata(made.id)))


async def test_everything_that_a_header_says_is_told(store: ModelStore) -> None:
    pairs = [
        pair("general.architecture", ValueType.STRING, "llama"),
        pair("tokenizer.ggml.model", ValueType.STRING, "gpt2 \U0001f600 \u2028"),
        pair("u64", ValueType.UINT64, 2**64 - 1),
        pair("i64", ValueType.INT64, -(2**63)),
        pair("flag", ValueType.BOOL, 1),
        pair("half", ValueType.FLOAT32, 0.5),
        pair("tiny", ValueType.FLOAT64, 5e-324),
        pair("nan", ValueType.FLOAT32, float("nan")),
        pair("inf", ValueType.FLOAT64, float("inf")),
        pair("-inf", ValueType.FLOAT64, float("-inf")),
        pair("tags", ValueType.ARRAY, array(ValueType.STRING, ["a", "b"])),
        pair("floats", ValueType.ARRAY, array(ValueType.FLOAT64, [1.5, float("nan")])),
        pair("nested", ValueType.ARRAY, array(ValueType.ARRAY, [array(ValueType.UINT64, [2**63])])),
        pair("short", ValueType.ARRAY, array(ValueType.UINT8, [7] * 1024)),
        pair("long", ValueType.ARRAY, array(ValueType.UINT8, [7] * 1025)),
        pair("words", ValueType.ARRAY, array(ValueType.STRING, ["w"] * 1025)),
        pair("book", ValueType.STRING, "x" * 300_000),
    ]
    raw = await raw_of(store, model(pairs, [("token_embd.weight", (8, 4))]))
    assert raw == {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2 \U0001f600 \u2028",
        "u64": 2**64 - 1,
        "i64": -(2**63),
        "flag": True,
        "half": 0.5,
        "tiny": 5e-324,
        "nan": "NaN",
        "inf": "Infinity",
        "-inf": "-Infinity",
        "tags": ["a", "b"],
        "floats": [1.5, "NaN"],
        "nested": [[2**63]],
        "short": [7] * 1024,
        "long": {"type": "uint8[]", "length": 1025},
        "words": {"type": "string[]", "length": 1025},
        "book": {"type": "string", "length": 300_000},
    }
    assert list(raw) == [json.loads(f'"{key}"') for key in raw]


async def test_the_longest_values_give_way_where_it_is_too_much(store: ModelStore) -> None:
    texts = [pair(f"text.{number}", ValueType.STRING, "é" * 100_000) for number in range(20)]
    pairs = [pair("general.architecture", ValueType.STRING, "flux"), pair("small", ValueType.STRING, "s"), *texts]
    raw = await raw_of(store, model(pairs, [("a", (4,))]))
    assert raw["small"] == "s"
    whole = [value for value in raw.values() if isinstance(value, str) and len(value) == 100_000]
    assert 10 < len(whole) < 16
    assert raw["text.0"] == {"type": "string", "length": 200_000}


async def test_too_many_keys_are_refused(store: ModelStore) -> None:
    pairs = [pair(f"{number:05}" + "k" * 60_000, ValueType.UINT8, 0) for number in range(60)]
    pairs.append(pair("general.architecture", ValueType.STRING, "flux"))
    made = await store.install([Staging(store).file("a.gguf", model(pairs, [("a", (4,))]))])
    with pytest.raises(InvalidRequestError, match="fits"):
        await store.raw_metadata(made.id)


async def test_a_format_without_such_a_header_has_no_raw_metadata(store: ModelStore, staging: Staging) -> None:
    staged = staging.components(FLUX)
    made = await store.install([replace(staged[1], component=Component.DIFFUSION_MODEL)])
    assert await store.raw_metadata(made.id) == ""
    with pytest.raises(ModelNotFoundError):
        await store.raw_metadata("nothing")
    made = await store.install([staged[0]], name="gone")
    made.path.unlink()
    with pytest.raises(FileSystemError):
        await store.raw_metadata("gone")


# --- the header anew


def remote(content: bytes) -> Callable[[Model], Awaitable[GgufHeader]]:
    async def read(_: Model) -> GgufHeader:
        return parse_header(MemorySource(content))

    return read


async def broken(model: Model) -> GgufHeader:
    raise DownloadError("The source is down.", modelId=model.id)


def llama(layers: int, template: str = "") -> bytes:
    return model(
        [
            pair("general.architecture", ValueType.STRING, "llama"),
            pair("llama.block_count", ValueType.UINT32, layers),
            pair("tokenizer.ggml.model", ValueType.STRING, "gpt2"),
            pair("tokenizer.chat_template", ValueType.STRING, template),
        ],
        [("token_embd.weight", (8, 4))],
    )


HERE, THERE, DAMAGED = 11, 22, 0


@pytest.mark.parametrize(
    ("strategy", "local", "source", "expected"),
    [
        (Strategy.LOCAL_REMOTE, llama(HERE), remote(llama(THERE)), HERE),
        (Strategy.LOCAL_REMOTE, b"damaged", remote(llama(THERE)), THERE),
        (Strategy.LOCAL_REMOTE, b"damaged", broken, DownloadError),
        (Strategy.LOCAL_ONLY, llama(HERE), broken, HERE),
        (Strategy.LOCAL_ONLY, b"damaged", remote(llama(THERE)), InvalidRequestError),
        (Strategy.REMOTE_ONLY, b"damaged", remote(llama(THERE)), THERE),
        (Strategy.REMOTE_ONLY, llama(HERE), broken, DownloadError),
        (Strategy.REMOTE_LOCAL, llama(HERE), remote(llama(THERE)), THERE),
        (Strategy.REMOTE_LOCAL, llama(HERE), broken, HERE),
        (Strategy.REMOTE_LOCAL, b"damaged", broken, DownloadError),
    ],
)
async def test_a_header_is_read_where_the_strategy_says(
    store: ModelStore,
    staging: Staging,
    strategy: Strategy,
    local: bytes,
    source: Callable[[Model], Awaitable[GgufHeader]],
    expected: int | type[Exception],
) -> None:
    made = await store.install([staging.file("a.gguf", language_model())])
    made.path.write_bytes(local)
    if isinstance(expected, int):
        fresh = await store.refresh(made.id, strategy, source)
        assert (fresh.layer_count, fresh.name, fresh.files) == (expected, made.name, made.files)
        assert store.get(made.id) is fresh
        (again,) = (await ModelStore.open(store.inbox.parent)).list()
        assert again.metadata == fresh.metadata
    else:
        with pytest.raises(expected):
            await store.refresh(made.id, strategy, source)
        assert store.get(made.id) is made


async def test_where_both_places_fail_both_reasons_are_told(store: ModelStore, staging: Staging) -> None:
    made = await store.install([staging.file("a.gguf", language_model())])
    made.path.write_bytes(b"<html>")
    for strategy in (Strategy.LOCAL_REMOTE, Strategy.REMOTE_LOCAL):
        with pytest.raises(DownloadError, match=r"source is down.*web page") as refusal:
            await store.refresh(made.id, strategy, broken)
        assert refusal.value.facts == {"modelId": made.id}


async def test_an_imported_file_has_no_other_source(store: ModelStore) -> None:
    (store.inbox / "a.gguf").write_bytes(language_model())
    made = await store.import_file("a.gguf")
    with pytest.raises(DownloadError, match="imported from a file"):
        await store.refresh(made.id, Strategy.REMOTE_ONLY, remote(llama(THERE)))
    assert (await store.refresh(made.id, Strategy.REMOTE_LOCAL, broken)).layer_count == 2


async def test_only_gguf_has_such_metadata(store: ModelStore, staging: Staging) -> None:
    staged = replace(staging.components(FLUX)[1], component=Component.DIFFUSION_MODEL)
    made = await store.install([staged])
    with pytest.raises(InvalidRequestError, match="safetensors"):
        await store.refresh(made.id, Strategy.LOCAL_REMOTE, remote(llama(1)))
    with pytest.raises(ModelNotFoundError):
        await store.refresh("nothing", Strategy.LOCAL_REMOTE, broken)


async def test_reasoning_is_told_anew(store: ModelStore, staging: Staging) -> None:
    made = await store.install([staging.file("a.gguf", language_model())])
    assert not made.supports_reasoning
    thinking = remote(llama(1, "<think>"))
    assert (await store.refresh(made.id, Strategy.REMOTE_ONLY, thinking)).supports_reasoning
    assert (await ModelStore.open(store.inbox.parent)).get(made.id).supports_reasoning
    assert not (await store.refresh(made.id, Strategy.LOCAL_ONLY, broken)).supports_reasoning


async def test_all_shards_count_wherever_the_first_is_read(store: ModelStore, staging: Staging) -> None:
    contents = shards(3)
    made = await store.install(staging.shards(contents))
    local = await store.refresh(made.id, Strategy.LOCAL_ONLY, broken)
    there = await store.refresh(made.id, Strategy.REMOTE_ONLY, remote(contents[0]))
    assert made.metadata == local.metadata == there.metadata
    assert made.metadata is not None
    assert made.metadata.tensor_count == 2


async def test_a_header_without_tensors_is_not_kept(store: ModelStore, staging: Staging) -> None:
    made = await store.install([staging.file("a.gguf", language_model())])
    with pytest.raises(InvalidRequestError, match="no tensors"):
        await store.refresh(made.id, Strategy.REMOTE_ONLY, remote(header()))


async def test_a_model_that_is_deleted_meanwhile_is_not_written_again(store: ModelStore, staging: Staging) -> None:
    made = await store.install([staging.file("a.gguf", language_model())])

    async def deleting(_: Model) -> GgufHeader:
        await store.delete(made.id)
        return parse_header(MemorySource(llama(1)))

    with pytest.raises(ModelNotFoundError):
        await store.refresh(made.id, Strategy.REMOTE_ONLY, deleting)
    assert names_below(store) == set()
