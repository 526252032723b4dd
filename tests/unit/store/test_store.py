"""The model store: what enters it is checked, what is in it is whole, and nothing in it is ever overwritten."""

import asyncio
import hashlib
import json
import logging
import os
import signal
import string
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.kit.errors import (
    FileSystemError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerBusyError,
    ServerError,
)
from genaid_server.kit.request_ids import RequestIds
from genaid_server.resource.core.formats.gguf import ValueType
from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from genaid_server.resource.core.store.files import check_stamp, read_stamp
from genaid_server.resource.core.store.model import Model, ModelFile, ModelSource, SourceType
from genaid_server.resource.core.store.names import MAX_ID, slug
from genaid_server.resource.core.store.store import ModelStore
from unit.formats.gguf_files import array, diffusion_model, header, language_model, model, pair, tensor, u64
from unit.store.store_files import safetensors

OTHER_DISK = Path("/dev/shm")  # noqa: S108 - a file system of its own, on Linux


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ModelStore]:
    opened = await ModelStore.open(tmp_path / "data")
    yield opened
    await opened.close()


def put(store: ModelStore, file_name: str, content: bytes | None = None) -> Path:
    path = store.inbox / file_name
    path.write_bytes(language_model() if content is None else content)
    return path


def record_of(model: Model) -> Path:
    return model.path.with_name(f"{model.id}.json")


def change_record(model: Model, **changes: object) -> None:
    path = record_of(model)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def files_below(store: ModelStore) -> set[str]:
    models = store.inbox.parent / "models"
    return {path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()}


async def reopened(store: ModelStore) -> ModelStore:
    return await ModelStore.open(store.inbox.parent)


async def refused(store: ModelStore, file_name: str, field: str, **arguments: object) -> str:
    """Expect that an import is refused because of `field`, and that it changes nothing."""
    inbox, below, models = set(store.inbox.iterdir()), files_below(store), store.list()
    with pytest.raises(InvalidRequestError) as refusal:
        await store.import_file(file_name, **arguments)  # type: ignore[arg-type]
    assert refusal.value.facts["field"] == field
    assert str(store.inbox.parent) not in refusal.value.message
    assert (set(store.inbox.iterdir()), files_below(store), store.list()) == (inbox, below, models)
    return refusal.value.message


# --- importing


async def test_a_language_model_moves_into_the_store(store: ModelStore) -> None:
    source = put(store, "Tiny.Q8_0.gguf")
    content = source.read_bytes()
    before = datetime.now(UTC)
    imported = await store.import_file("Tiny.Q8_0.gguf")
    assert not source.exists()
    assert imported.path.read_bytes() == content
    assert before - timedelta(seconds=1) <= imported.create_time <= datetime.now(UTC)
    assert imported.metadata is not None
    assert (imported.metadata.architecture, imported.metadata.block_count) == ("llama", 2)
    assert imported == Model(
        id="tiny-llama",
        name="Tiny Llama",
        type=ModelType.LLM,
        create_time=imported.create_time,
        format=ModelFormat.GGUF,
        files=(
            ModelFile(
                path=store.inbox.parent / "models" / "llm" / "Tiny.Q8_0.gguf",
                size_bytes=len(content),
                checksum=f"sha256:{hashlib.sha256(content).hexdigest()}",
                source=ModelSource(SourceType.FILE, file="Tiny.Q8_0.gguf"),
            ),
        ),
        metadata=imported.metadata,
    )
    assert (imported.path, imported.size_bytes) == (imported.files[0].path, len(content))
    assert (imported.checksum, imported.source) == (imported.files[0].checksum, imported.files[0].source)
    assert store.get("tiny-llama") is imported
    assert store.list() == (imported,)
    assert files_below(store) == {"llm/Tiny.Q8_0.gguf", "llm/tiny-llama.json"}


async def test_a_diffusion_model_is_told_by_its_header(store: ModelStore) -> None:
    put(store, "a.gguf", diffusion_model())
    put(store, "b.SAFETENSORS", safetensors(title="My SDXL"))
    gguf = await store.import_file("a.gguf")
    tensors = await store.import_file("b.SAFETENSORS")
    assert (gguf.id, gguf.type, gguf.format) == ("tiny-flux", ModelType.DIFFUSION, ModelFormat.GGUF)
    assert (tensors.id, tensors.type, tensors.format) == ("my-sdxl", ModelType.DIFFUSION, ModelFormat.SAFETENSORS)
    assert tensors.metadata is None
    assert tensors.path.parent == gguf.path.parent == store.inbox.parent / "models" / "diffusion"
    assert store.list(ModelType.DIFFUSION) == (tensors, gguf)
    assert store.list(ModelType.LLM) == ()


async def test_name_and_id_may_be_chosen(store: ModelStore) -> None:
    put(store, "a.gguf")
    imported = await store.import_file("a.gguf", name="  My Model ", model_id="mine-1")
    assert (imported.id, imported.name) == ("mine-1", "My Model")


async def test_a_model_without_a_name_is_named_after_its_file(store: ModelStore) -> None:
    put(store, "Some Model.gguf", language_model(""))
    imported = await store.import_file("Some Model.gguf", name="  ")
    assert (imported.id, imported.name) == ("some-model", "Some Model")


async def test_a_name_out_of_a_header_is_made_readable(store: ModelStore) -> None:
    put(store, "a.gguf", language_model("a\x00b\x1b[2J\x9b" + "x" * 500))
    imported = await store.import_file("a.gguf")
    assert imported.name.startswith("a b [2J x")
    assert len(imported.name) <= 200


async def test_a_type_settles_what_the_header_leaves_open(store: ModelStore) -> None:
    put(store, "clip.gguf", model([pair("general.architecture", ValueType.STRING, "clip")], [("a", (4,))]))
    assert "give the type" in await refused(store, "clip.gguf", "type")
    imported = await store.import_file("clip.gguf", model_type=ModelType.DIFFUSION)
    assert imported.type is ModelType.DIFFUSION


async def test_a_type_that_the_header_contradicts_is_refused(store: ModelStore) -> None:
    put(store, "a.gguf")
    put(store, "b.gguf", diffusion_model())
    assert "type llm, not diffusion" in await refused(store, "a.gguf", "type", model_type=ModelType.DIFFUSION)
    assert "type diffusion, not llm" in await refused(store, "b.gguf", "type", model_type=ModelType.LLM)


async def test_safetensors_are_for_diffusion_only(store: ModelStore) -> None:
    put(store, "a.safetensors", safetensors(("model.embed_tokens.weight",)))
    await refused(store, "a.safetensors", "type", model_type=ModelType.LLM)
    assert "looks like a language model" in await refused(store, "a.safetensors", "file")
    imported = await store.import_file("a.safetensors", model_type=ModelType.DIFFUSION)
    assert imported.type is ModelType.DIFFUSION


async def test_a_file_without_weights_is_no_model(store: ModelStore) -> None:
    vocabulary = pair("tokenizer.ggml.tokens", ValueType.ARRAY, array(ValueType.STRING, ["a"]))
    put(store, "vocab.gguf", header([vocabulary]))
    assert "no tensors" in await refused(store, "vocab.gguf", "file", model_type=ModelType.LLM)
    put(store, "empty.safetensors", u64(2) + b"{}")
    assert "no tensors" in await refused(store, "empty.safetensors", "file")


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("a.gguf", b""),
        ("a.gguf", b"\0" * 1000),
        ("a.gguf", language_model()[:-1]),
        ("a.gguf", header([], [tensor("t", [2**40])])),
        ("a.gguf", safetensors()),
        ("a.safetensors", b""),
        ("a.safetensors", language_model()),
        ("a.safetensors", safetensors()[:-1]),
    ],
)
async def test_a_file_that_no_engine_can_read_is_refused_and_stays(
    store: ModelStore, file_name: str, content: bytes
) -> None:
    path = put(store, file_name, content)
    await refused(store, file_name, "file")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "file_name",
    [
        "",
        ".",
        "..",
        "../outside.gguf",
        "..\\outside.gguf",
        "folder/a.gguf",
        "/etc/passwd",
        "C:a.gguf",
        "C:\\a.gguf",
        "a.gguf:stream",
        "\\\\host\\share\\a.gguf",
        "a\0.gguf",
        "a\n.gguf",
        "a\ud800.gguf",
        "CON.gguf",
        "com1.x.gguf",
        "x" * 200 + ".gguf",
        "a",
        "gguf",
        ".gguf",
        "a.txt",
        "a.gguf.exe",
        "missing.gguf",
        "folder.gguf",
    ],
)
async def test_only_the_bare_name_of_a_file_in_the_inbox_will_do(store: ModelStore, file_name: str) -> None:
    (store.inbox.parent / "outside.gguf").write_bytes(language_model())
    (store.inbox / "folder").mkdir()
    (store.inbox / "folder.gguf").mkdir()
    (store.inbox / "folder" / "a.gguf").write_bytes(language_model())
    await refused(store, file_name, "file_name")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".PT"])
async def test_pickled_files_are_refused_with_the_reason(store: ModelStore, suffix: str) -> None:
    put(store, f"a{suffix}")
    assert "can run any code" in await refused(store, f"a{suffix}", "file_name")


async def test_a_link_in_the_inbox_is_not_followed(store: ModelStore, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.gguf"
    target.write_bytes(language_model())
    try:
        (store.inbox / "a.gguf").symlink_to(target)
    except OSError:
        pytest.skip("this account can't make symbolic links")
    assert "link" in await refused(store, "a.gguf", "file_name")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
async def test_a_pipe_in_the_inbox_is_not_waited_for(store: ModelStore) -> None:
    os.mkfifo(store.inbox / "a.gguf")
    await refused(store, "a.gguf", "file_name")


@pytest.mark.parametrize("model_id", ["A", "a b", "-a", "a-", "a--b", "a/b", "..", "é", "a\n", "con", "x" * 81])
async def test_an_id_that_is_no_slug_is_refused(store: ModelStore, model_id: str) -> None:
    put(store, "a.gguf")
    await refused(store, "a.gguf", "model_id", model_id=model_id)


@pytest.mark.parametrize("name", ["a\nb", "a\0", "\x9b", "x" * 201, "\ud800"])
async def test_a_name_that_people_cannot_see_is_refused(store: ModelStore, name: str) -> None:
    put(store, "a.gguf")
    await refused(store, "a.gguf", "name", name=name)


async def test_a_disk_that_refuses_is_an_error_without_paths(store: ModelStore) -> None:
    put(store, "a.gguf")
    folder = store.inbox.parent / "models" / "llm"
    folder.rmdir()
    folder.write_bytes(b"")  # now nothing can be made below it
    with pytest.raises(FileSystemError, match=r"Can't install a\.gguf") as refusal:
        await store.import_file("a.gguf")
    assert refusal.value.facts == {"operation": "install", "file": "a.gguf"}
    assert str(store.inbox.parent) not in refusal.value.message
    assert (store.inbox / "a.gguf").exists()
    assert store.list() == ()


async def test_where_the_record_cannot_be_written_the_file_goes_back(store: ModelStore) -> None:
    path = put(store, "a.gguf")
    content = path.read_bytes()
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # enough for the journal, but not for a record
    try:
        with pytest.raises(FileSystemError, match=r"Can't install a\.gguf"):
            await store.import_file("a.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == content
    assert files_below(store) == set()
    assert store.list() == ()
    assert (await store.import_file("a.gguf")).id == "tiny-llama"


def test_a_file_that_changes_while_it_is_imported_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"one")
    stamp = read_stamp(path)
    check_stamp(path, stamp)
    path.write_bytes(b"three")
    with pytest.raises(InvalidRequestError, match="changed"):
        check_stamp(path, stamp)
    path.unlink()
    with pytest.raises(InvalidRequestError, match="not in the inbox"):
        check_stamp(path, stamp)


@pytest.mark.skipif(not OTHER_DISK.is_dir(), reason="no second file system here")
async def test_the_folder_of_models_may_lie_on_another_disk(tmp_path: Path) -> None:
    if OTHER_DISK.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=OTHER_DISK) as elsewhere:
        (tmp_path / "models").symlink_to(elsewhere, target_is_directory=True)
        store = await ModelStore.open(tmp_path)
        source = put(store, "a.gguf")
        content = source.read_bytes()
        imported = await store.import_file("a.gguf")
        assert imported.path.read_bytes() == content
        assert not source.exists()
        assert {path.name for path in (Path(elsewhere) / "llm").iterdir()} == {"a.gguf", "tiny-llama.json"}
        assert (await reopened(store)).list() == (imported,)


# --- ids


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("My.Model_v1.5 (Q4_K_M)", "mymodelv15-q4km"),
        ("  Llama   3\t8B ", "llama-3-8b"),
        ("a - - b", "a-b"),
        ("-a-", "a"),
        ("42", "42"),
        ("x" * 100, "x" * 80),
        ("x" * 79 + " y", "x" * 79),
        ("日本語", "model-" + hashlib.sha256("日本語".encode()).hexdigest()[:8]),
        ("", "model-e3b0c442"),
        ("---", "model-" + hashlib.sha256(b"---").hexdigest()[:8]),
        ("NUL", "model-nul"),
        ("COM1", "model-com1"),
    ],
)
def test_an_id_is_made_of_a_name(name: str, expected: str) -> None:
    assert slug(name) == expected


@given(name=st.text() | st.text(string.ascii_letters + " -.", max_size=200))
def test_every_name_gives_a_usable_id(name: str) -> None:
    made = slug(name)
    assert 0 < len(made) <= MAX_ID
    assert set(made) <= set(string.ascii_lowercase + string.digits + "-")
    assert not made.startswith("-")
    assert not made.endswith("-")
    assert "--" not in made
    assert slug(made) == made


async def test_names_that_give_the_same_id_get_numbers(store: ModelStore) -> None:
    made = []
    for index, name in enumerate(["My Model", "my-model", "MY MODEL!", "My Model 2"]):
        put(store, f"{index}.gguf", language_model(salt=index))
        made.append(await store.import_file(f"{index}.gguf", name=name))
    assert [each.id for each in made] == ["my-model", "my-model-2", "my-model-3", "my-model-2-2"]
    assert len({each.path for each in made}) == 4
    assert len({each.path.read_bytes() for each in made}) == 4


async def test_numbers_never_make_an_id_too_long(store: ModelStore) -> None:
    name = "x" * 77 + "-yyyy"
    for index in range(2):
        put(store, f"{index}.gguf")
        made = await store.import_file(f"{index}.gguf", name=name)
    assert made.id == "x" * 77 + "-2"


async def test_an_id_is_unique_among_all_types(store: ModelStore) -> None:
    put(store, "a.gguf", language_model("Same"))
    put(store, "b.gguf", diffusion_model("Same"))
    assert (await store.import_file("a.gguf")).id == "same"
    assert (await store.import_file("b.gguf")).id == "same-2"


async def test_a_chosen_id_that_is_taken_is_refused(store: ModelStore) -> None:
    put(store, "a.gguf")
    await store.import_file("a.gguf", model_id="mine")
    put(store, "b.gguf")
    assert "taken" in await refused(store, "b.gguf", "model_id", model_id="mine")


async def test_a_file_name_that_is_taken_is_not_overwritten(store: ModelStore) -> None:
    contents = []
    for index in range(3):
        contents.append(put(store, "same.GGUF", language_model(salt=index)).read_bytes())
        await store.import_file("same.GGUF")
    assert [(each.id, each.path.name, each.path.read_bytes()) for each in store.list()] == [
        ("tiny-llama", "same.GGUF", contents[0]),
        ("tiny-llama-2", "tiny-llama-2.gguf", contents[1]),
        ("tiny-llama-3", "tiny-llama-3.gguf", contents[2]),
    ]


async def test_weights_without_a_record_are_not_overwritten_either(store: ModelStore) -> None:
    folder = store.inbox.parent / "models" / "llm"
    for name in ("a.gguf", "tiny-llama.gguf"):
        (folder / name).write_bytes(b"somebody's")
    put(store, "a.gguf")
    assert (await store.import_file("a.gguf")).path.name == "tiny-llama-2.gguf"
    assert (folder / "tiny-llama.gguf").read_bytes() == b"somebody's"


# --- repeats and simultaneous calls


async def test_a_repeat_returns_the_same_model(store: ModelStore) -> None:
    put(store, "a.gguf")
    first = await store.import_file("a.gguf", request_id="r")
    assert await store.import_file("a.gguf", request_id="r") is first
    assert store.list() == (first,)


async def test_a_repeat_while_the_first_runs_shares_its_outcome(store: ModelStore) -> None:
    put(store, "a.gguf")
    models = await asyncio.gather(*(store.import_file("a.gguf", request_id="r") for _ in range(5)))
    assert all(each is models[0] for each in models)
    assert store.list() == (models[0],)


async def test_a_failed_call_may_be_repeated(store: ModelStore) -> None:
    await refused(store, "a.gguf", "file_name", request_id="r")
    put(store, "a.gguf")
    assert (await store.import_file("a.gguf", request_id="r")).id == "tiny-llama"


async def test_a_repeat_after_the_model_was_deleted_imports_again(store: ModelStore) -> None:
    put(store, "a.gguf")
    first = await store.import_file("a.gguf", request_id="r")
    await store.delete(first.id)
    put(store, "a.gguf")
    second = await store.import_file("a.gguf", request_id="r")
    assert second is not first
    assert store.list() == (second,)


async def test_only_so_many_requests_are_remembered(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_answered", RequestIds[str](2))
    made = {}
    for index, request_id in enumerate(["first", "second"]):
        put(store, "a.gguf", language_model(salt=index))
        made[request_id] = await store.import_file("a.gguf", request_id=request_id)
    assert await store.import_file("a.gguf", request_id="first") is made["first"]
    put(store, "a.gguf", language_model(salt=2))
    await store.import_file("a.gguf", request_id="third")
    assert await store.import_file("a.gguf", request_id="first") is made["first"]
    await refused(store, "a.gguf", "file_name", request_id="second")  # forgotten, and the file has moved


async def test_a_request_id_has_a_limit(store: ModelStore) -> None:
    put(store, "a.gguf")
    await refused(store, "a.gguf", "request_id", request_id="x" * 129)


async def test_simultaneous_imports_of_the_same_name_all_get_in(store: ModelStore) -> None:
    for index in range(8):
        put(store, f"{index}.gguf", language_model("Same", salt=index))
    models = await asyncio.gather(*(store.import_file(f"{index}.gguf") for index in range(8)))
    assert sorted(each.id for each in models) == ["same", *(f"same-{number}" for number in range(2, 9))]
    assert len({each.path.read_bytes() for each in models}) == 8
    assert (await reopened(store)).list() == store.list()


async def test_of_simultaneous_imports_with_one_chosen_id_one_wins(store: ModelStore) -> None:
    for index in range(4):
        put(store, f"{index}.gguf", language_model(salt=index))
    outcomes = await asyncio.gather(
        *(store.import_file(f"{index}.gguf", model_id="mine") for index in range(4)), return_exceptions=True
    )
    assert sum(isinstance(each, Model) for each in outcomes) == 1
    assert sum(isinstance(each, InvalidRequestError) for each in outcomes) == 3
    assert len(list(store.inbox.iterdir())) == 3


async def test_of_simultaneous_imports_of_one_file_one_wins(store: ModelStore) -> None:
    put(store, "a.gguf")
    outcomes = await asyncio.gather(*(store.import_file("a.gguf") for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(each, Model) for each in outcomes) == 1
    assert sum(isinstance(each, InvalidRequestError) for each in outcomes) == 3
    assert len(store.list()) == 1


async def test_an_import_survives_its_caller(store: ModelStore) -> None:
    put(store, "a.gguf")
    caller = asyncio.create_task(store.import_file("a.gguf", request_id="r"))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (await store.import_file("a.gguf", request_id="r")).id == "tiny-llama"
    assert len(store.list()) == 1


async def test_deletes_and_imports_may_cross(store: ModelStore) -> None:
    async def come_and_go(index: int) -> None:
        put(store, f"{index}.gguf", language_model("Same", salt=index))
        made = await store.import_file(f"{index}.gguf")
        assert store.get(made.id) is made
        await store.delete(made.id)

    await asyncio.gather(*(come_and_go(index) for index in range(20)))
    assert store.list() == ()
    assert files_below(store) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes there by default")
async def test_closing_ends_an_import_that_would_take_long(tmp_path: Path) -> None:
    store = await ModelStore.open(tmp_path)
    start = header(
        [pair("tokenizer.ggml.model", ValueType.STRING, "gpt2")], [tensor("token_embd.weight", [2**20, 2**20])]
    )
    path = put(store, "large.gguf", start)
    try:
        os.truncate(path, 2**42 + 4096)  # a hole: no disk, but an hour of hashing
    except OSError:
        pytest.skip("this file system has no such large files")
    caller = asyncio.create_task(store.import_file("large.gguf"))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(ServerError, match="closed"):
        await caller
    assert store.list() == ()
    assert path.exists()
    with pytest.raises(ServerError, match="closed"):
        await store.import_file("large.gguf")


# --- reading and deleting


async def test_models_are_ordered_by_id(store: ModelStore) -> None:
    for name in ("b", "a-1", "a", "c"):
        put(store, "x.gguf")
        await store.import_file("x.gguf", name=name)
    assert [each.id for each in store.list()] == ["a", "a-1", "b", "c"]
    assert store.list() is store.list()


@pytest.mark.parametrize("model_id", ["", "nothing", "../llm/a", "x" * 10_000])
async def test_an_unknown_model_is_not_found(store: ModelStore, model_id: str) -> None:
    with pytest.raises(ModelNotFoundError) as missing:
        store.get(model_id)
    assert len(missing.value.message) < 200
    with pytest.raises(ModelNotFoundError):
        await store.delete(model_id)


async def test_a_deleted_model_is_gone_and_its_id_free(store: ModelStore) -> None:
    put(store, "a.gguf")
    made = await store.import_file("a.gguf")
    await store.delete(made.id)
    assert store.list() == ()
    assert files_below(store) == set()
    with pytest.raises(ModelNotFoundError):
        store.get(made.id)
    put(store, "a.gguf")
    assert (await store.import_file("a.gguf")).id == made.id


async def test_a_model_in_use_is_not_deleted(store: ModelStore) -> None:
    put(store, "a.gguf")
    made = await store.import_file("a.gguf")
    holders = {made.id: "The model is loaded by the image engine."}
    store.in_use = holders.get
    with pytest.raises(ServerBusyError, match="image engine"):
        await store.delete(made.id)
    assert store.get(made.id).path.exists()
    holders.clear()
    await store.delete(made.id)
    assert store.list() == ()


async def test_a_model_whose_weights_are_gone_can_be_deleted(store: ModelStore) -> None:
    put(store, "a.gguf")
    made = await store.import_file("a.gguf")
    made.path.unlink()
    await store.delete(made.id)
    assert files_below(store) == set()


async def test_a_model_whose_weights_cannot_be_removed_stays(store: ModelStore) -> None:
    put(store, "a.gguf")
    made = await store.import_file("a.gguf")
    record = record_of(made).read_bytes()
    made.path.unlink()
    made.path.mkdir()  # which no unlink removes
    with pytest.raises(FileSystemError, match=r"Can't delete a\.gguf") as refusal:
        await store.delete(made.id)
    assert str(store.inbox.parent) not in refusal.value.message
    assert store.get(made.id) is made
    assert record_of(made).read_bytes() == record


# --- restarts


async def test_models_are_there_after_a_restart(store: ModelStore) -> None:
    put(store, "a.gguf")
    put(store, "b.safetensors", safetensors())
    await store.import_file("a.gguf")
    await store.import_file("b.safetensors", name="日本 🎉")
    again = await reopened(store)
    assert again.list() == store.list()
    assert len(again.list()) == 2


async def test_the_data_directory_may_move(store: ModelStore, tmp_path: Path) -> None:
    put(store, "a.gguf")
    made = await store.import_file("a.gguf")
    moved = (tmp_path / "data").rename(tmp_path / "elsewhere")
    (found,) = (await ModelStore.open(moved)).list()
    assert found == replace(made, files=(replace(made.primary, path=moved / "models" / "llm" / "a.gguf"),))


async def test_records_of_other_versions_are_understood(store: ModelStore) -> None:
    put(store, "a.gguf")
    made = await store.import_file("a.gguf")
    change_record(made, colour="green", metadata={"block_count": 7, "heads": "many", "vocab_size": "x", "version": 3})
    (newer,) = (await reopened(store)).list()
    assert newer.metadata is not None
    assert (newer.metadata.block_count, newer.metadata.vocab_size, newer.metadata.version) == (7, None, 3)

    record_of(made).write_text(json.dumps({"id": made.id, "file": "a.gguf"}))
    (older,) = (await reopened(store)).list()
    assert (older.name, older.type, older.checksum, older.metadata) == (made.id, ModelType.LLM, "", None)
    assert older.create_time.tzinfo is UTC


@pytest.mark.parametrize("number", [-1, 2**63, 10**400, True])
async def test_a_number_that_is_out_of_range_counts_as_absent(store: ModelStore, number: int) -> None:
    put(store, "a.gguf")
    change_record(await store.import_file("a.gguf"), metadata={"block_count": number, "architecture": "\ud800"})
    (found,) = (await reopened(store)).list()
    assert found.metadata is not None
    assert (found.metadata.block_count, found.metadata.architecture) == (None, "")


DAMAGE = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"[" * 60_000,
    b" " * 100_000,
    b"{}",
    b'{"id":5,"file":"a.gguf"}',
    b'{"id":"other","file":"a.gguf"}',
    b'{"id":"mine"}',
    b'{"id":"mine","file":["a.gguf"]}',
    b'{"id":"mine","file":"missing.gguf"}',
    b'{"id":"mine","file":"../../outside.gguf"}',
    b'{"id":"mine","file":"mine.json"}',
    b'{"id":"mine","file":"a.gguf","name":5}',
    b'{"id":"mine","file":"a.gguf","name":"\\ud800"}',
    b'{"id":"mine","file":"a.gguf","create_time":"yesterday"}',
    b'{"id":"mine","file":"a.gguf","source":{"type":"stork"}}',
    b'{"id":"mine","file":"a.gguf","checksum":5}',
]


@pytest.mark.parametrize("content", DAMAGE)
async def test_a_damaged_record_is_passed_over_and_kept(
    store: ModelStore, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, "a.gguf")
    made = await store.import_file("a.gguf", model_id="mine")
    put(store, "b.gguf")
    whole = await store.import_file("b.gguf", model_id="whole")
    (store.inbox.parent / "outside.gguf").write_bytes(language_model())
    record_of(made).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = await reopened(store)
    assert again.list() == (whole,)
    assert ["llm/mine.json" in message for message in caplog.messages] == [True]
    assert made.path.exists()
    # Nothing is to overwrite what a person may still repair.
    put(again, "c.gguf")
    assert "taken" in await refused(again, "c.gguf", "model_id", model_id="mine")
    assert (await again.import_file("c.gguf", name="mine")).id == "mine-2"
    assert record_of(made).read_bytes() == content


async def test_two_records_never_share_an_id(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    put(store, "a.gguf")
    made = await store.import_file("a.gguf", model_id="one")
    other = made.path.parent.parent / "diffusion"
    (other / "a.gguf").write_bytes(diffusion_model())
    (other / "one.json").write_bytes(record_of(made).read_bytes())
    again = await reopened(store)
    assert [(each.id, each.type) for each in again.list()] == [("one", ModelType.LLM)]
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1


async def test_what_an_interrupted_write_left_is_removed(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    folder = store.inbox.parent / "models" / "llm"
    (folder / ".one.json.abcd.tmp").write_bytes(b"{")
    (folder / "weights.gguf").write_bytes(language_model())
    (folder / "notes.txt").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        again = await reopened(store)
    assert again.list() == ()
    assert files_below(store) == {"llm/weights.gguf", "llm/notes.txt"}
    assert any("weights.gguf" in message for message in caplog.messages)


async def test_a_thousand_models_are_loaded(store: ModelStore) -> None:
    put(store, "a.gguf")
    made = await store.import_file("a.gguf", model_id="m")
    text, weights = record_of(made).read_text(), made.path.read_bytes()
    for index in range(999):
        (made.path.parent / f"m-{index}.json").write_text(
            text.replace('"m"', f'"m-{index}"').replace('/a.gguf"', f'/{index}.gguf"')
        )
        (made.path.parent / f"{index}.gguf").write_bytes(weights)
    again = await reopened(store)
    assert len(again.list()) == 1000
    assert again.list() is again.list()


IMPORTER = """
import asyncio, sys
from pathlib import Path
from genaid_server.resource.core.store.store import ModelStore

async def main() -> None:
    store = await ModelStore.open(Path(sys.argv[1]))
    content = Path(sys.argv[2]).read_bytes()
    number = 0
    while True:
        number += 1
        (store.inbox / "a.gguf").write_bytes(content)
        made = await store.import_file("a.gguf")
        print(made.id, flush=True)
        if number % 3 == 0:
            await store.delete(made.id)

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [0, 1, 2, 5])
def test_a_killed_process_leaves_only_whole_models(tmp_path: Path, lines: int) -> None:
    content = tmp_path / "content.gguf"
    content.write_bytes(language_model())
    data = tmp_path / "data"
    with subprocess.Popen(
        [sys.executable, "-c", IMPORTER, str(data), str(content)], stdout=subprocess.PIPE, text=True
    ) as importer:
        assert importer.stdout is not None
        try:
            seen = [importer.stdout.readline().strip() for _ in range(lines)]
        finally:
            importer.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
            importer.wait()
    store = asyncio.run(ModelStore.open(data))
    whole = hashlib.sha256(content.read_bytes()).hexdigest()
    for each in store.list():
        assert each.checksum == f"sha256:{whole}"
        assert each.path.read_bytes() == content.read_bytes()
    assert set(seen[:2]) <= {each.id for each in store.list()}
    assert not any(name.endswith(".tmp") for name in files_below(store))
