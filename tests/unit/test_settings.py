"""Defaults < TOML file < environment < flags, for every key; what is wrong is named."""

import itertools
import os
import re
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import fields
from platformdirs import user_data_path

from genaid_server.kit.address import Address
from genaid_server.kit.errors import InvalidRequestError
from genaid_server.kit.settings import Section
from genaid_server.settings import Config, load

EXAMPLE = Path(__file__).parents[2] / "genaid.example.toml"

type WriteToml = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("GENAID_", "IMAGE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path: Path) -> WriteToml:
    def write(text: str) -> Path:
        file = tmp_path / "genaid.toml"
        file.write_text(text, "utf-8")
        return file

    return write


def keys(model: type[Section], prefix: str = "") -> set[str]:
    """The dotted names of all values."""
    found = set()
    for key in fields(model):
        if isinstance(key.type, type) and issubclass(key.type, Section):
            found |= keys(key.type, f"{prefix}{key.name}.")
        else:
            found.add(prefix + key.name)
    return found


def keys_of(table: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in table.items():
        found |= keys_of(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return found


def test_without_anything_the_defaults_hold() -> None:
    config = load()
    assert config == Config()
    assert config.data_dir == user_data_path("genaid", appauthor=False)
    assert str(config.gateway.listen) == "127.0.0.1:8081"
    assert (config.image.result_ttl_ms, config.image.cleanup_interval_ms) == (300_000, 60_000)


SOURCES = ["file", "environment", "flag"]


@pytest.mark.parametrize(("lower", "higher"), [(0, 1), (0, 2), (1, 2)])
def test_of_two_sources_the_higher_wins(
    toml: WriteToml, monkeypatch: pytest.MonkeyPatch, lower: int, higher: int
) -> None:
    present = {lower, higher}
    file = toml("[image]\nqueue_depth = 1\nthreads = 7") if 0 in present else None
    if 1 in present:
        monkeypatch.setenv("GENAID_IMAGE__QUEUE_DEPTH", "2")
    flags = {"image": {"queue_depth": 3}} if 2 in present else None
    config = load(file, flags)
    assert config.image.queue_depth == higher + 1
    assert config.image.threads == (7 if 0 in present else 0)  # the rest of the section stays


@pytest.mark.parametrize("source", range(len(SOURCES)))
def test_each_source_wins_over_the_defaults(toml: WriteToml, monkeypatch: pytest.MonkeyPatch, source: int) -> None:
    if source == 1:
        monkeypatch.setenv("GENAID_GATEWAY__LISTEN", "[::1]:9")
    config = load(
        toml('[gateway]\nlisten = "[::1]:9"') if source == 0 else None,
        {"gateway": {"listen": Address("::1", 9)}} if source == 2 else None,
    )
    assert config.gateway.listen == Address("::1", 9)
    assert config.resource.listen == Address("127.0.0.1", 8082)


@pytest.mark.parametrize(
    ("name", "key"), [("IMAGE_RESULT_TTL_MS", "result_ttl_ms"), ("IMAGE_CLEANUP_INTERVAL_MS", "cleanup_interval_ms")]
)
def test_the_documented_names_win_over_the_file_and_lose_to_the_prefixed_ones(
    toml: WriteToml, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    file = toml(f"[image]\n{key} = 1")
    monkeypatch.setenv(name, "2")
    assert getattr(load(file).image, key) == 2
    monkeypatch.setenv(f"GENAID_IMAGE__{key.upper()}", "3")
    assert getattr(load(file).image, key) == 3
    assert getattr(load(file, {"image": {key: 4}}).image, key) == 4


def test_the_environment_can_set_every_kind_of_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GENAID_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("GENAID_GATEWAY__LISTEN", "127.0.0.1:9000")
    monkeypatch.setenv("GENAID_GATEWAY__ALLOWED_ORIGINS", '["https://a.example", "https://b.example"]')
    monkeypatch.setenv("GENAID_IMAGE__MODEL", "a-model")
    monkeypatch.setenv("GENAID_IMAGE__KEEP_ALIVE_SECONDS", "-1.5")
    config = load()
    assert config.data_dir == tmp_path
    assert config.gateway.listen == Address("127.0.0.1", 9000)
    assert config.gateway.allowed_origins == ("https://a.example", "https://b.example")
    assert (config.image.model, config.image.keep_alive_seconds) == ("a-model", -1.5)


def test_an_empty_variable_counts_as_absent(toml: WriteToml, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GENAID_DATA_DIR", "GENAID_IMAGE__QUEUE_DEPTH", "IMAGE_RESULT_TTL_MS"):
        monkeypatch.setenv(name, "")
    config = load(toml("[image]\nqueue_depth = 1\nresult_ttl_ms = 2"))
    assert config.data_dir == Config().data_dir
    assert (config.image.queue_depth, config.image.result_ttl_ms) == (1, 2)


def test_the_data_directory_is_absolute_and_may_begin_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(flags={"data_dir": Path("here")}).data_dir == tmp_path / "here"
    assert load(flags={"data_dir": "~/there"}).data_dir == Path.home() / "there"
    assert load(flags={"data_dir": ""}).data_dir == Config().data_dir


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense = 1", "nonsense"),
        ("[image]\nqueue_dept = 1", "image.queue_dept"),
        ("[images]\nthreads = 1", "images"),
        ("[image]\nthreads = 'many'", "image.threads is 'many'"),
        ("[image]\nthreads = 1.5", "image.threads is 1.5"),
        ("[image]\nthreads = -1", "image.threads is -1"),
        ("[image]\nthreads = 513", "image.threads is 513"),
        ("[image]\nqueue_depth = 1001", "image.queue_depth is 1001"),
        ("[image]\nkeep_alive_seconds = nan", "image.keep_alive_seconds is nan"),
        ("[image]\nkeep_alive_seconds = inf", "image.keep_alive_seconds is inf"),
        ("[image]\ncancel_grace_seconds = -0.1", "image.cancel_grace_seconds is -0.1"),
        ("[image]\nresult_ttl_ms = -1", "image.result_ttl_ms is -1"),
        ("[image]\ncleanup_interval_ms = 0", "image.cleanup_interval_ms is 0"),
        ("[image]\nmax_results = 0", "image.max_results is 0"),
        ("[image]\nmax_result_bytes = 1", "image.max_result_bytes is 1"),
        ("[image]\nmodel = 7", "image.model is 7"),
        ("[image]\nengine_command = 'sd'", "image.engine_command is 'sd'"),
        ("[image]\nengine_command = [1]", r"image.engine_command is \[1\]: .*`\$\[0\]`"),
        ("[gateway]\nmax_body_bytes = 1", "gateway.max_body_bytes is 1"),
        ("[gateway]\nmax_connections = 0", "gateway.max_connections is 0"),
        ("[gateway]\nlisten = '0.0.0.0:80'", "gateway.listen is '0.0.0.0:80': .* other machines"),
        ("[gateway]\nlisten = 8081", "gateway.listen is 8081"),
        ("[gateway.listen]\nhost = '0.0.0.0'\nport = 80", "gateway.listen is"),
        ("data_dir = 3", "data_dir is 3"),
        ("data_dir = '~nobody-of-that-name/x'", "data_dir is '~nobody-of"),
        ("image = 3", "image is 3"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(toml: WriteToml, text: str, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named) as refused:
        load(toml(text))
    assert refused.value.facts == {"field": "config"}


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("GENAID_NONSENSE", "1", "no key nonsense"),
        ("GENAID_IMAGE_MODEL", "x", "no key image_model"),
        ("GENAID_IMAGE__NONSENSE", "1", "no key image.nonsense"),
        ("GENAID_IMAGE__THREADS__MORE", "1", "image.threads is"),
        ("GENAID_IMAGE__THREADS", "many", "image.threads is 'many'"),
        ("GENAID_IMAGE__KEEP_ALIVE_SECONDS", "nan", "image.keep_alive_seconds is 'nan'"),
        ("GENAID_IMAGE__ENGINE_COMMAND", "sd --fast", "image.engine_command is 'sd --fast': .*JSON"),
        ("GENAID_IMAGE", "3", "image is '3'"),
        ("GENAID_GATEWAY__LISTEN", "0.0.0.0:80", "gateway.listen is '0.0.0.0:80'"),
        ("GENAID_GATEWAY__LISTEN__HOST", "192.168.0.1", "gateway.listen is"),
        ("IMAGE_RESULT_TTL_MS", "soon", "image.result_ttl_ms is 'soon'"),
        ("IMAGE_CLEANUP_INTERVAL_MS", "0", "image.cleanup_interval_ms is '0'"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, named: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequestError, match=named):
        load()


def test_everything_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(InvalidRequestError, match=r"image.threads is -1: .*; there is no key nonsense"):
        load(flags={"image": {"threads": -1}, "nonsense": 1})


def test_other_variables_are_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_GENAID_IMAGE", "x")
    monkeypatch.setenv("IMAGE_MODEL", "x")
    assert load() == Config()


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    for file in (missing, tmp_path):
        with pytest.raises(InvalidRequestError, match=f"Can't read the configuration {re.escape(str(file))}"):
            load(file)


@pytest.mark.parametrize("content", [b"[image", b"threads = = 1", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "genaid.toml"
    file.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=f"{re.escape(str(file))} is not TOML"):
        load(file)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "genaid.toml"
    file.write_text("[image]\nthreads = 3", "utf-8-sig")
    assert load(file).image.threads == 3


@pytest.mark.parametrize("path", ["data_dir", "image", "image.threads", "gateway.listen", "gateway.listen.port"])
def test_a_configuration_never_changes(path: str) -> None:
    target: Any = load()
    *parents, name = path.split(".")
    for parent in parents:
        target = getattr(target, parent)
    with pytest.raises(AttributeError, match=r"immutable|cannot assign"):
        setattr(target, name, getattr(target, name))


def test_configurations_that_are_loaded_at_once_do_not_mix(tmp_path: Path) -> None:
    files = []
    for number in range(4):
        files.append(tmp_path / f"{number}.toml")
        files[-1].write_text(f"[image]\nthreads = {number + 1}")
    wrong: list[int] = []

    def read(number: int) -> None:
        wrong.extend(number for _ in range(50) if load(files[number]).image.threads != number + 1)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_example_file_has_every_key_with_its_default_and_an_explanation() -> None:
    text = EXAMPLE.read_text("utf-8")
    assert keys_of(tomllib.loads(text)) == keys(Config)
    assert load(EXAMPLE) == Config()
    lines = text.splitlines()
    bare = [line for before, line in itertools.pairwise(lines) if " = " in line and before[:1] != "#"]
    assert bare == []
