"""What an earlier process has left behind in the store never keeps the service down."""

import json
import os
from pathlib import Path

import pytest

from genaid_server.kit.errors import FileSystemError
from genaid_server.resource.core.store.layout import TOMBSTONE
from genaid_server.resource.core.store.store import ModelStore
from unit.formats.gguf_files import language_model
from unit.store.store_files import Staging


async def one_model(folder: Path) -> Path:
    """A store with one model; returns the folder of language models."""
    store = await ModelStore.open(folder)
    await store.install([Staging(store).file("a.gguf", language_model())], model_id="good")
    await store.close()
    return folder / "models" / "llm"


async def test_nothing_that_can_not_be_removed_keeps_the_store_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = await one_model(tmp_path)
    leftovers = {
        llm / ".x.placing": json.dumps({"files": []}),
        llm / ".good.placing": json.dumps({"files": []}),
        llm / f".y{TOMBSTONE}": (llm / "good.json").read_text().replace("a.gguf", "b.gguf"),
        llm / "b.gguf": "",
        llm / ".half.tmp": "",
        llm / ".z.lock": "",
    }
    for path, text in leftovers.items():
        path.write_text(text)
    (llm / "empty").mkdir()
    with monkeypatch.context() as busy:
        busy.setattr(os, "unlink", refused)
        busy.setattr(os, "rmdir", refused)
        busy.setattr(Path, "unlink", refused)
        busy.setattr(Path, "rmdir", refused)
        store = await ModelStore.open(tmp_path)
        assert [model.id for model in store.list()] == ["good"]
        await store.close()
    assert all(path.exists() for path in leftovers)
    store = await ModelStore.open(tmp_path)
    assert [model.id for model in store.list()] == ["good"]
    await store.close()
    assert {path.name for path in llm.iterdir()} == {"a.gguf", "good.json"}


def refused(*args: object, **options: object) -> None:
    raise PermissionError(13, "The process cannot access the file")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("late.json", '"create_time": "9999-12-31T23:59:59-12:00"'),
        ("early.json", '"create_time": "0001-01-01T00:00:00+12:00"'),
        (".x.placing", '{"files": [{"from": "inbox/a", "to": "models/llm/b", "size_bytes": Infinity, "shared": 0}]}'),
        (".x.placing", "[[[["),
        (".x.placing", "\ud800"),
        (f".y{TOMBSTONE}", '{"files": [{"path": "llm/../../x"}]}'),
    ],
)
async def test_nothing_that_is_written_there_keeps_the_store_closed(name: str, text: str, tmp_path: Path) -> None:
    llm = await one_model(tmp_path)
    if name.endswith(".json"):
        record = json.loads((llm / "good.json").read_text())
        del record["create_time"]
        text = json.dumps(record | {"id": name.removesuffix(".json")})[:-1] + f", {text}}}"
    (llm / name).write_bytes(text.encode(errors="surrogatepass"))
    store = await ModelStore.open(tmp_path)
    assert [model.id for model in store.list()] == ["good"]
    await store.close()
    assert (llm / name).exists()


async def test_a_folder_of_models_that_can_not_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"")
    with pytest.raises(FileSystemError):
        await ModelStore.open(tmp_path)
