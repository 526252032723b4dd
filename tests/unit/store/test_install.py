"""Models of several files: installed wholly or not at all, sharing what they have in common."""

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genaid_server.kit.errors import FileSystemError, InvalidRequestError, ServerError
from genaid_server.resource.core.formats.gguf import ValueType
from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from genaid_server.resource.core.formats.shards import shard_name
from genaid_server.resource.core.store.model import Component, Model, StagedFile
from genaid_server.resource.core.store.store import ModelStore
from unit.formats.gguf_files import diffusion_model, language_model, model, pair
from unit.store.store_files import (
    FLUX,
    REMOTE,
    Staging,
    expected_names,
    names_below,
    safetensors,
    sha256,
    shard_names,
    shards,
)


async def reopened(store: ModelStore) -> ModelStore:
    return await ModelStore.open(store.inbox.parent)


async def refused(store: ModelStore, staged: list[StagedFile], field: str, **arguments: object) -> str:
    """Expect that files are refused because of `field`, and that nothing has changed."""
    before = names_below(store), store.list(), [file.path.read_bytes() for file in staged]
    with pytest.raises(InvalidRequestError) as refusal:
        await store.install(staged, **arguments)  # type: ignore[arg-type]
    assert (names_below(store), store.list(), [file.path.read_bytes() for file in staged]) == before
    assert refusal.value.facts["field"] == field
    return refusal.value.message


# --- one file


async def test_a_staged_file_becomes_a_model_with_its_provenance(store: ModelStore, staging: Staging) -> None:
    content = language_model()
    staged = staging.file("Tiny.gguf", content)
    made = await store.install([staged])
    assert (made.id, made.name, made.type, made.format) == ("tiny-llama", "Tiny Llama", ModelType.LLM, ModelFormat.GGUF)
    assert made.path == store.inbox.parent / "models" / "llm" / "Tiny.gguf"
    assert (made.source, made.checksum, made.size_bytes) == (REMOTE, sha256(content), len(content))
    assert made.path.read_bytes() == content
    assert not staged.path.exists()
    assert names_below(store) == {"llm/Tiny.gguf", "llm/tiny-llama.json"}
    assert (await reopened(store)).list() == (made,)


async def test_name_type_and_id_may_be_wished(store: ModelStore, staging: Staging) -> None:
    clip = model([pair("general.architecture", ValueType.STRING, "clip")], [("a", (4,))])
    made = await store.install(
        [staging.file("c.gguf", clip)], name=" My clip ", model_type=ModelType.DIFFUSION, model_id="wished"
    )
    assert (made.id, made.name, made.type) == ("wished", "My clip", ModelType.DIFFUSION)


async def test_a_name_that_is_taken_is_changed(store: ModelStore, staging: Staging) -> None:
    contents = [language_model(salt=salt) for salt in range(3)]
    made = [await store.install([staging.file("same.gguf", content)]) for content in contents]
    assert [each.path.read_bytes() for each in made] == contents
    assert [each.id for each in made] == ["tiny-llama", "tiny-llama-2", "tiny-llama-3"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.gguf", b"<html>"), ("a.safetensors", language_model()), ("a.gguf", language_model()[:-1])],
)
async def test_a_file_that_is_no_model_stays_where_it_is(
    store: ModelStore, staging: Staging, name: str, content: bytes
) -> None:
    await refused(store, [staging.file(name, content)], "file")


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.bin", "../a.gguf", "a/b.gguf", "a.txt", "", "con.gguf"])
async def test_a_name_that_is_not_safe_is_refused(store: ModelStore, staging: Staging, name: str) -> None:
    await refused(store, [staging.file(name, language_model())], "items")


async def test_wishes_are_checked(store: ModelStore, staging: Staging) -> None:
    staged = [staging.file("a.gguf", language_model())]
    await refused(store, staged, "type", model_type=ModelType.DIFFUSION)
    await refused(store, staged, "model_id", model_id="No Slug")
    await refused(store, staged, "name", name="\n")
    await refused(store, [], "items")
    await store.install(staged, model_id="mine")
    await refused(store, [staging.file("b.gguf", language_model())], "model_id", model_id="mine")


async def test_a_file_that_is_gone_is_an_error(store: ModelStore, staging: Staging) -> None:
    staged = staging.file("a.gguf", language_model())
    staged.path.unlink()
    with pytest.raises(FileSystemError, match=r"Can't read a\.gguf"):
        await store.install([staged])
    assert names_below(store) == set()


async def test_a_closed_store_installs_nothing(store: ModelStore, staging: Staging) -> None:
    staged = staging.file("a.gguf", language_model())
    await store.close()
    with pytest.raises(ServerError, match="closed"):
        await store.install([staged])
    assert staged.path.exists()


# --- shards


async def test_shards_lie_side_by_side_by_their_own_names(store: ModelStore, staging: Staging) -> None:
    contents = shards(3)
    made = await store.install(staging.shards(contents))
    assert made.id == "split-llama"
    assert made.path.name == "Split-00001-of-00003.gguf"
    assert [file.path for file in made.files] == [made.path.with_name(name) for name in shard_names(3)]
    assert [(file.shard, file.component) for file in made.files] == [(n, Component.MODEL) for n in (1, 2, 3)]
    assert [file.path.read_bytes() for file in made.files] == contents
    assert made.size_bytes == sum(map(len, contents))
    assert made.metadata is not None
    assert (made.metadata.block_count, made.metadata.tensor_count, made.metadata.tensor_bytes) == (3, 2, 2 * 256)
    assert names_below(store) == {f"llm/split-llama/{name}" for name in shard_names(3)} | {"llm/split-llama.json"}
    assert (await reopened(store)).list() == (made,)


async def test_shards_keep_their_names_beside_others_of_the_same(store: ModelStore, staging: Staging) -> None:
    first = await store.install(staging.shards(shards(2)))
    second = await store.install(staging.shards(shards(2, salt=1)))
    assert [file.name for file in first.files] == [file.name for file in second.files] == shard_names(2)
    assert first.path.parent != second.path.parent
    await store.delete(first.id)
    assert names_below(store) == expected_names(store)
    assert [file.path.read_bytes() for file in second.files] == shards(2, salt=1)


async def test_shards_without_a_name_of_their_own_are_named_after_their_files(
    store: ModelStore, staging: Staging
) -> None:
    made = await store.install(staging.shards(shards(2, name=""), "Big Model"))
    assert (made.name, made.id) == ("Big Model", "big-model")


async def test_a_folder_that_is_there_is_not_used(store: ModelStore, staging: Staging) -> None:
    strangers = store.inbox.parent / "models" / "llm" / "split-llama"
    strangers.mkdir()
    (strangers / "notes.txt").write_bytes(b"")
    made = await store.install(staging.shards(shards(2)))
    assert made.path.parent.name == "split-llama-2"


async def test_shards_that_are_not_all_there_are_refused(store: ModelStore, staging: Staging) -> None:
    contents = shards(3)
    staged = staging.shards(contents)
    await refused(store, staged[:2], "items")
    await refused(store, [staged[1], staged[0], staged[2]], "items")
    await refused(store, [*staged, staged[2]], "items")
    await refused(store, [replace(staged[0], name="other.gguf"), *staged[1:]], "items")
    await refused(store, [replace(staged[0], shard=2), *staged[1:]], "items")
    await refused(store, [replace(staged[0], shard=0), *staged[1:]], "items")


async def test_shards_that_say_other_numbers_are_refused(store: ModelStore, staging: Staging) -> None:
    contents = shards(3)
    swapped = staging.shards([contents[0], contents[2], contents[1]])
    assert "split.no" in await refused(store, swapped, "file")
    of_four = staging.shards(shards(4)[:3])
    assert "split.count" in await refused(store, of_four, "file")


async def test_shards_without_any_tensors_are_no_model(store: ModelStore, staging: Staging) -> None:
    assert "no tensors" in await refused(store, staging.shards(shards(1)), "file", model_type=ModelType.LLM)


async def test_a_single_shard_is_no_model(store: ModelStore, staging: Staging) -> None:
    second = shards(3)[1]
    assert "one of 3 shards" in await refused(store, [staging.file("a.gguf", second)], "file")
    (store.inbox / "a.gguf").write_bytes(second)
    with pytest.raises(InvalidRequestError, match="one of 3 shards"):
        await store.import_file("a.gguf")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a-00001-of-00003.gguf", ("a", 1, 3)),
        ("a-00003-of-00003.GGUF", ("a", 3, 3)),
        ("a-00001-of-00001.gguf", ("a", 1, 1)),
        ("a-00000-of-00003.gguf", None),
        ("a-00004-of-00003.gguf", None),
        ("a-1-of-3.gguf", None),
        ("a-00001-of-99999.gguf", None),
        ("-00001-of-00003.gguf", None),
        ("a-00001-of-00003.safetensors", None),
        ("a-00001-of-00003.gguf.part", None),
        ("a-\u0660\u0660\u0660\u0660\u0661-of-00003.gguf", None),
    ],
)
def test_a_shard_is_told_by_its_name(name: str, expected: tuple[str, int, int] | None) -> None:
    found = shard_name(name)
    assert (found and (found.base, found.number, found.total)) == expected
    if found:
        assert str(found) == name
        assert [each.number for each in found.siblings()] == list(range(1, found.total + 1))


# --- components


async def test_components_become_one_model_with_the_diffusion_model_first(store: ModelStore, staging: Staging) -> None:
    staged = staging.components(FLUX)
    made = await store.install([*staged[1:], staged[0]])
    assert (made.id, made.type, made.format) == ("tiny-flux", ModelType.DIFFUSION, ModelFormat.GGUF)
    assert made.primary.component is Component.DIFFUSION_MODEL
    assert {file.component: file.path.read_bytes() for file in made.files} == FLUX
    assert {file.path.parent.name for file in made.files} == {"tiny-flux"}
    assert made.size_bytes == sum(map(len, FLUX.values()))
    assert names_below(store) == expected_names(store)
    assert (await reopened(store)).list() == (made,)


async def test_components_of_the_same_name_get_along(store: ModelStore, staging: Staging) -> None:
    staged = [replace(file, name="Model.safetensors") for file in staging.components(FLUX) if file.name[-1] == "s"]
    staged[1] = replace(staged[1], name="model.SAFETENSORS")
    primary = staging.file("clip-l.gguf", FLUX[Component.DIFFUSION_MODEL], Component.DIFFUSION_MODEL)
    made = await store.install([primary, *staged])
    assert [file.name for file in made.files] == ["clip-l.gguf", "Model.safetensors", "vae.safetensors"]
    assert [file.path.read_bytes() for file in made.files][1:] == [FLUX[Component.CLIP_L], FLUX[Component.VAE]]


async def test_components_that_make_no_model_are_refused(store: ModelStore, staging: Staging) -> None:
    staged = staging.components(FLUX)
    assert "missing" in await refused(store, staged[1:], "component")
    await refused(store, [*staged, replace(staged[1], name="b.safetensors")], "component")
    await refused(store, [*staged, replace(staged[1], component=Component.MODEL)], "component")
    await refused(store, [replace(staged[0], shard=1), *staged[1:]], "component")
    await refused(store, staged, "type", model_type=ModelType.LLM)
    llm = staging.file("a.gguf", language_model(), Component.DIFFUSION_MODEL)
    assert "type llm" in await refused(store, [llm, *staged[1:]], "type")
    damaged = staging.file("vae.safetensors", b"{}", Component.TAE)
    await refused(store, [*staged, damaged], "file")
    pickled = staging.file("vae.pt", FLUX[Component.VAE], Component.TAE)
    assert "can run any code" in await refused(store, [*staged, pickled], "items")


async def test_a_component_is_shared_and_goes_with_its_last_user(store: ModelStore, staging: Staging) -> None:
    first = await store.install(staging.components(FLUX), model_id="first")
    other = FLUX | {Component.DIFFUSION_MODEL: diffusion_model("Other")}
    second = await store.install(staging.components(other), model_id="second")
    assert second.files[1:] == first.files[1:]
    assert second.primary.path.parent.name == "second"
    assert names_below(store) == expected_names(store)
    again = await reopened(store)
    assert again.list() == (first, second)

    await again.delete("first")
    assert not first.path.exists()
    assert {file.component: file.path.read_bytes() for file in second.files} == other
    assert names_below(store) == expected_names(again)
    await again.delete("second")
    assert names_below(store) == set()
    assert list((store.inbox.parent / "models" / "diffusion").iterdir()) == []


async def test_the_whole_of_a_model_may_be_shared(store: ModelStore, staging: Staging) -> None:
    first = await store.install(staging.components(FLUX))
    second = await store.install(staging.components(FLUX), name="Another")
    assert (second.id, second.files) == ("another", first.files)
    await store.delete(first.id)
    assert {file.component: file.path.read_bytes() for file in second.files} == FLUX
    assert [each.id for each in (await reopened(store)).list()] == ["another"]


async def test_a_language_model_may_be_a_component_as_well(store: ModelStore, staging: Staging) -> None:
    llm = await store.install([staging.file("qwen.gguf", language_model())])
    made = await store.install(staging.components(FLUX | {Component.LLM: language_model()}))
    assert made.files[-1].path == llm.path
    await store.delete(llm.id)
    assert made.files[-1].path.read_bytes() == language_model()
    assert (await reopened(store)).list() == (made,)
    await store.delete(made.id)
    assert names_below(store) == set()


async def test_a_folder_is_not_taken_over_while_shared_files_lie_in_it(store: ModelStore, staging: Staging) -> None:
    await store.install(staging.components(FLUX), model_id="mine")
    other = FLUX | {Component.DIFFUSION_MODEL: diffusion_model("Other")}
    second = await store.install(staging.components(other), model_id="second")
    await store.delete("mine")
    third = await store.install(
        staging.components({Component.DIFFUSION_MODEL: diffusion_model("T"), Component.TAE: safetensors(("t",))}),
        model_id="mine",
    )
    assert third.path.parent.name == "mine-2"
    assert {file.path.parent.name for file in second.files} == {"mine", "second"}
    assert names_below(store) == expected_names(store)


async def test_what_was_to_be_shared_may_be_deleted_meanwhile(store: ModelStore, staging: Staging) -> None:
    first = await store.install(staging.components(FLUX))
    staged = staging.components(FLUX | {Component.DIFFUSION_MODEL: diffusion_model("Other")})
    await store.delete(first.id)
    with pytest.raises(FileSystemError):
        await store.install(staged)
    assert staged[0].path.exists()
    # A file that no model has any more is not to be had either, even where something is still there.
    staged[1].path.parent.mkdir()
    for file in staged[1:]:
        file.path.write_bytes(FLUX[file.component])
    with pytest.raises(FileSystemError, match="deleted meanwhile"):
        await store.install(staged)
    assert staged[0].path.exists()


async def test_shards_that_the_store_has_elsewhere_get_a_name_beside_the_others(
    store: ModelStore, staging: Staging
) -> None:
    contents = shards(2)
    first = await store.install(staging.shards(contents))
    known = [StagedFile(file.path, file.name, file.checksum, REMOTE, shard=file.shard) for file in first.files]
    whole = await store.install(known, name="whole")
    assert whole.files == first.files
    mixed = await store.install([known[0], *staging.shards(contents)[1:]], name="mixed")
    assert {file.path.parent.name for file in mixed.files} == {"mixed"}
    assert [file.path.read_bytes() for file in mixed.files] == contents
    assert names_below(store) == expected_names(store)
    await store.delete(first.id)
    await store.delete("whole")
    assert [file.path.read_bytes() for file in mixed.files] == contents
    assert names_below(store) == expected_names(store)


async def test_a_file_is_found_by_its_checksum(store: ModelStore, staging: Staging) -> None:
    assert store.file_with(sha256(language_model())) is None
    made = await store.install([staging.file("a.gguf", language_model())])
    assert store.file_with(made.checksum) == made.primary
    assert store.file_with("") is None
    made.path.write_bytes(b"short")
    assert store.file_with(made.checksum) is None
    made.path.unlink()
    assert store.file_with(made.checksum) is None
    await store.delete(made.id)
    assert store.file_with(made.checksum) is None


# --- records


async def test_a_model_that_has_lost_a_file_can_be_looked_at_and_deleted(store: ModelStore, staging: Staging) -> None:
    made = await store.install(staging.shards(shards(3)))
    made.files[1].path.unlink()
    again = await reopened(store)
    assert again.list() == (made,)
    await again.delete(made.id)
    assert names_below(store) == set()


async def test_a_model_without_its_primary_file_is_passed_over(
    store: ModelStore, staging: Staging, caplog: pytest.LogCaptureFixture
) -> None:
    made = await store.install(staging.shards(shards(3)))
    made.path.unlink()
    with caplog.at_level(logging.INFO):
        again = await reopened(store)
    assert again.list() == ()
    assert "its weights are missing" in caplog.text
    assert made.files[1].path.exists()
    with pytest.raises(InvalidRequestError, match="taken"):
        await again.install(staging.shards(shards(3, salt=1)), model_id=made.id)


@pytest.mark.parametrize(
    "files",
    [
        [],
        {},
        "llm/a.gguf",
        ["llm/a.gguf"],
        [{"path": "a.gguf"}],
        [{"path": "../llm/a.gguf"}],
        [{"path": "/llm/a.gguf"}],
        [{"path": "llm/../../outside.gguf"}],
        [{"path": "llm/mine/deep/a.gguf"}],
        [{"path": "elsewhere/a.gguf"}],
        [{"path": "llm/a.txt"}],
        [{"path": "llm\\a.gguf"}],
        [{"path": "llm/a.gguf"}, {"path": "llm/a.gguf"}],
        [{"path": "llm/a.gguf", "component": "wheel"}],
        [{"path": "llm/a.gguf", "source": {"type": "stork"}}],
        [{"path": 5}],
        [{}],
        [{"path": "llm/a.gguf"}] * 2000,
    ],
)
async def test_a_record_with_impossible_files_is_passed_over(
    store: ModelStore, staging: Staging, files: object
) -> None:
    made = await store.install([staging.file("a.gguf", language_model())], model_id="mine")
    (store.inbox.parent / "outside.gguf").write_bytes(language_model())
    record = made.path.with_name("mine.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"files": files}))
    assert (await reopened(store)).list() == ()
    assert made.path.exists()


async def test_a_record_of_the_first_version_is_a_model_of_one_file(store: ModelStore) -> None:
    folder = store.inbox.parent / "models" / "llm"
    (folder / "Qwen3-8B.gguf").write_bytes(language_model())
    old = {
        "id": "old",
        "name": "Old",
        "type": "llm",
        "format": "gguf",
        "file": "Qwen3-8B.gguf",
        "size_bytes": 5,
        "create_time": "2025-01-01T00:00:00+00:00",
        "source": {"type": "file", "url": "", "repo": "", "file": "x.gguf"},
        "checksum": sha256(language_model()),
        "metadata": {"block_count": 2},
    }
    (folder / "old.json").write_text(json.dumps(old))
    again = await reopened(store)
    (found,) = again.list()
    assert (found.name, found.path, found.size_bytes) == ("Old", folder / "Qwen3-8B.gguf", len(language_model()))
    assert (found.checksum, found.source.file, found.supports_reasoning) == (sha256(language_model()), "x.gguf", True)
    assert (found.primary.component, found.primary.shard) == (Component.MODEL, 0)
    assert found.metadata is not None
    assert found.metadata.block_count == 2
    await again.delete("old")
    assert names_below(again) == set()


# --- any sequence


POOL: dict[Component, list[bytes]] = {
    Component.DIFFUSION_MODEL: [diffusion_model("A"), diffusion_model("B")],
    Component.CLIP_L: [safetensors(("c",), salt=salt) for salt in range(2)],
    Component.VAE: [safetensors(("v",), salt=salt) for salt in range(2)],
    Component.LLM: [language_model(salt=salt) for salt in range(2)],
}
PICKS = st.integers(0, 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("file"), PICKS),
        st.tuples(st.just("shards"), PICKS),
        st.tuples(
            st.just("components"),
            st.fixed_dictionaries(
                {Component.DIFFUSION_MODEL: PICKS},
                optional=dict.fromkeys((Component.CLIP_L, Component.VAE, Component.LLM), PICKS),
            ),
        ),
        st.tuples(st.just("delete"), st.integers(0, 20)),
        st.tuples(st.just("reopen"), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_the_disk_has_what_the_models_are_made_of_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object]]
) -> None:
    asyncio.run(_check_steps(tmp_path_factory.mktemp("data"), steps))


async def _check_steps(data_dir: Path, steps: list[tuple[str, object]]) -> None:
    store = await ModelStore.open(data_dir)
    staging = Staging(store)
    expected: dict[str, tuple[Model, list[bytes]]] = {}
    for verb, argument in steps:
        if verb == "delete":
            if expected:
                model_id = sorted(expected)[int(str(argument)) % len(expected)]
                await store.delete(model_id)
                del expected[model_id]
        elif verb == "reopen":
            await store.close()
            store = staging.store = await ModelStore.open(data_dir)
        else:
            contents, staged = _staged(staging, verb, argument)
            made = await store.install(staged)
            expected[made.id] = (made, contents)
        assert {each.id: each for each in store.list()} == {model_id: made for model_id, (made, _) in expected.items()}
        for made, contents in expected.values():
            assert [file.path.read_bytes() for file in made.files] == contents
        assert names_below(store) == expected_names(store)
    await store.close()


def _staged(staging: Staging, verb: str, argument: object) -> tuple[list[bytes], list[StagedFile]]:
    if isinstance(argument, dict):
        parts = {component: POOL[component][argument[component]] for component in POOL if component in argument}
        return list(parts.values()), staging.components(parts)
    salt = int(str(argument))
    if verb == "file":
        return [language_model(salt=salt)], [staging.file("same.gguf", language_model(salt=salt))]
    return shards(2, salt=salt), staging.shards(shards(2, salt=salt))
