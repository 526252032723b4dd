"""What engines took of memory is remembered across restarts, and no file or disk can make that a problem."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from genaid_server.resource.core.fitting.model_shape import CacheType
from genaid_server.resource.core.fitting.plan import LlmOptions
from genaid_server.resource.core.leases.usage import MAX_KNOWN, MOST, Usage, image_key, llm_key
from genaid_server.resource.core.leases.ways import ImageNeed

NEED = ImageNeed("sd")
CONFIG = LlmOptions(threads=4, gpu_layers=0, context_size=2048)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "memory-usage.json"


def test_what_was_learned_is_known_and_survives_a_restart(file: Path) -> None:
    usage = Usage(file)
    assert usage.known("a") is None
    usage.learn("a", 1000)
    usage.learn("b", MOST)
    for known in (usage, Usage(file)):
        assert (known.known("a"), known.known("b"), known.known("c")) == (1000, MOST, None)


def test_the_highest_peak_counts(file: Path) -> None:
    usage = Usage(file)
    for peak in (1000, 3000, 2000):
        usage.learn("a", peak)
    assert usage.known("a") == Usage(file).known("a") == 3000
    file.unlink()
    usage.learn("a", 3000)
    assert not file.exists()  # it would say the same


@pytest.mark.parametrize("peak", [0, -1, MOST + 1, 2**70])
def test_what_can_not_be_is_passed_over(file: Path, peak: int) -> None:
    usage = Usage(file)
    usage.learn("a", peak)
    assert usage.known("a") is None
    assert not file.exists()


def test_the_least_recently_learned_is_forgotten(file: Path) -> None:
    usage = Usage(file)
    for number in range(MAX_KNOWN):
        usage.learn(str(number), 10)
    usage.learn("0", 5)  # no higher, and yet the newest
    usage.learn("one more", 10)
    for known in (usage, Usage(file)):
        assert (known.known("0"), known.known("1"), known.known("2")) == (10, None, 10)
    assert len(json.loads(file.read_bytes())) == MAX_KNOWN


def test_a_file_with_more_than_is_kept_loses_the_oldest(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps({str(number): 10 for number in range(MAX_KNOWN + 1)}))
    usage = Usage(file)
    assert (usage.known("0"), usage.known("1")) == (None, 10)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b"[1]",
        b"7",
        b"null",
        b'{"a": "7"}',
        b'{"a": true}',
        b'{"a": 1.5}',
        b'{"a": null}',
        b'{"a": 0}',
        b'{"a": -7}',
        b'{"a": 1e400}',
        b'{"a": 7, "b": []}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        json.dumps({"a": MOST + 1}).encode(),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_damaged_file_is_begun_anew(file: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    usage = Usage(file)
    assert usage.known("a") is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    usage.learn("a", 1000)
    assert Usage(file).known("a") == 1000


def test_a_folder_in_its_place_costs_nothing_but_the_memory_of_it(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    (file / "in the way").mkdir(parents=True)
    usage = Usage(file)
    usage.learn("a", 1000)
    assert usage.known("a") == 1000
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_disk_that_refuses_costs_nothing_but_the_memory_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    usage = Usage(tmp_path / "file" / "memory-usage.json")
    caplog.clear()
    usage.learn("a", 1000)
    assert usage.known("a") == 1000
    assert "could not be written" in caplog.text


@pytest.mark.parametrize(
    "changed",
    [
        {"width": 768},
        {"height": 768},
        {"variant": "cuda12"},
        {"flash_attention": True},
        {"vae_tiling": True},
        {"offload_to_cpu": True},
        {"clip_on_cpu": True},
        {"vae_on_cpu": True},
        {"max_vram_bytes": 2**32},
    ],
    ids=str,
)
def test_whatever_changes_an_image_engines_memory_changes_its_key(changed: dict[str, int]) -> None:
    assert image_key("sd", 7, replace(NEED, **changed)) != image_key("sd", 7, NEED)  # type: ignore[arg-type]


def test_an_image_key_is_of_the_model_that_was_chosen_and_its_files() -> None:
    assert image_key("sd", 7, NEED) == image_key("sd", 7, replace(NEED, model_id=""))
    assert len({image_key("sd", 7, NEED), image_key("sd", 8, NEED), image_key("xl", 7, NEED)}) == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"threads": 5},
        {"gpu_layers": 1},
        {"context_size": 4096},
        {"parallel": 2},
        {"flash_attention": False},
        {"cache_type_k": CacheType.Q8_0},
        {"cache_type_v": CacheType.Q8_0},
        {"experts_on_cpu": True},
    ],
    ids=str,
)
def test_whatever_changes_an_llm_engines_memory_changes_its_key(changed: dict[str, int]) -> None:
    config = replace(CONFIG, **changed)  # type: ignore[arg-type]
    assert llm_key("llama", 7, config, True) != llm_key("llama", 7, CONFIG, True)


def test_an_llm_key_is_of_the_model_and_how_it_is_loaded() -> None:
    keys = {llm_key(*about) for about in (("a", 7, CONFIG, True), ("b", 7, CONFIG, True), ("a", 8, CONFIG, True))}
    assert len(keys | {llm_key("a", 7, CONFIG, False), image_key("a", 7, NEED)}) == 5
