"""The file that says which LLM is to run: there and back, and whatever else lies in its place."""

import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.fitting.model_shape import CacheType
from genaid_server.resource.core.fitting.plan import LlmOptions, LlmWishes
from genaid_server.resource.core.llm import saved as module
from genaid_server.resource.core.llm.config import LlmRequest, Serving
from genaid_server.resource.core.llm.saved import FILE, SavedFile, SavedLlm

KEY = "sesame-opens-no-door-0815"
SAVED = SavedLlm(
    request=LlmRequest(
        "talker",
        LlmWishes(context_size=4096, cache_type_k=CacheType.Q8_0, experts_on_cpu=True),
        Serving(port=0, host="127.0.0.2", api_key=KEY, memory_map=False, memory_lock=True),
    ),
    llm=LlmOptions(
        threads=3,
        gpu_layers=7,
        context_size=4096,
        parallel=2,
        flash_attention=True,
        cache_type_k=CacheType.Q8_0,
        cache_type_v=CacheType.F16,
        experts_on_cpu=True,
    ),
    reasons={"threads": "Three cores are idle."},
    amount=Amount(123_456_789_012, 98_765_432_109),
    port=40_123,
    offloaded_at=1_700_000_000.25,
    reason="A picture, «größer».",
    slots={0: 512, 3: 7},
    model_stamp="sha256:00:98",
)


def file_in(folder: Path) -> Path:
    return folder / FILE


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_every_field_comes_back(tmp_path: Path) -> None:
    plain = SavedLlm(LlmRequest("talker"), SAVED.llm, {}, Amount(), 0)
    assert all(
        getattr(SAVED, each.name) != getattr(plain, each.name) for each in fields(SavedLlm) if each.name != "llm"
    )
    for saved in (SAVED, plain):
        SavedFile(tmp_path).keep(saved)
        found = SavedFile(tmp_path).read()
        assert found == saved
        assert found is not None
        assert found.request.serving.api_key == saved.request.serving.api_key  # which a repr would not show


def test_what_is_written_later_takes_its_place(tmp_path: Path) -> None:
    file = SavedFile(tmp_path / "data")  # a folder that is not there yet
    file.keep(SAVED)
    file.keep(replace(SAVED, offloaded_at=None, slots={}))
    assert file.read() == replace(SAVED, offloaded_at=None, slots={})
    assert names(tmp_path / "data") == [FILE]


def test_what_is_removed_is_gone(tmp_path: Path) -> None:
    file = SavedFile(tmp_path)
    file.keep(SAVED)
    file.keep(None)
    assert (file.read(), names(tmp_path)) == (None, [])
    file.keep(None)  # again


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_only_its_owner_may_read_the_key(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        SavedFile(tmp_path).keep(SAVED)
    finally:
        os.umask(before)
    assert KEY in file_in(tmp_path).read_text()
    assert file_in(tmp_path).stat().st_mode & 0o777 == 0o600


def written() -> dict[str, object]:
    return json.loads(module._SHAPE.write(SAVED))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"null",
        b"[]",
        b"{}",
        b'{"model": "talker"}',
        json.dumps(written()).encode()[:-1],
        json.dumps(written() | {"port": "no number"}).encode(),
        json.dumps(written() | {"llm": None}).encode(),
        json.dumps(written() | {"slots": {"first": 1}}).encode(),
        "größer".encode("latin-1"),
        b"[" * 100_000,
    ],
)
def test_what_makes_no_sense_is_no_llm(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    file_in(tmp_path).write_bytes(content)
    assert SavedFile(tmp_path).read() is None
    assert "can't be told from llm.json" in caplog.text
    SavedFile(tmp_path).keep(SAVED)
    assert SavedFile(tmp_path).read() == SAVED


def test_that_there_is_none_is_not_worth_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert SavedFile(tmp_path).read() is None
    assert caplog.text == ""


def test_the_key_is_not_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = json.dumps(written() | {"port": KEY}).encode()
    file_in(tmp_path).write_bytes(content)
    assert SavedFile(tmp_path).read() is None
    assert KEY not in caplog.text
    assert KEY not in repr(SAVED)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 99_999_999},
        {"llm": replace(SAVED.llm, threads=10**30)},
        {"slots": {0: -1}},
        {"request": replace(SAVED.request, serving=replace(SAVED.request.serving, host="0.0.0.0"))},  # noqa: S104
    ],
)
def test_what_no_caller_may_ask_for_is_not_believed(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / FILE).write_bytes(module._SHAPE.write(replace(SAVED, **wrong)))
    assert SavedFile(tmp_path).read() is None


def test_a_disk_that_refuses_costs_a_word_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = file_in(tmp_path)
    folder.mkdir()  # in the place of the file
    file = SavedFile(tmp_path)
    file.keep(SAVED)
    assert file.read() is None
    file.keep(None)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "llm.json, which says what LLM runs, can't be written",
        "the LLM that ran before can't be told from llm.json",
        "llm.json, which says what LLM runs, can't be removed",
    ]
    assert names(tmp_path) == [FILE]
