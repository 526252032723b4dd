"""How commands find the server: options, environment, the note of a running genaid, defaults."""

import json
import os
from pathlib import Path

import psutil
import pytest

from genaid_server.cli.connect import find_server, settings
from genaid_server.cli.runfile import Endpoints, published, read_run_file
from genaid_server.kit.address import Address
from genaid_server.kit.config import LogLevel


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("GENAID_"):
            monkeypatch.delenv(name)


def _note(data_dir: Path, pid: int) -> None:
    note = {"http": "http://127.0.0.1:1", "resource": "127.0.0.1:2", "image": "127.0.0.1:3", "pid": pid}
    (data_dir / "run.json").write_text(json.dumps(note))


@pytest.fixture
def dead_pid() -> int:
    return next(pid for pid in range(2_000_000, 3_000_000) if not psutil.pid_exists(pid))


def test_defaults_where_nothing_is_known(tmp_path: Path) -> None:
    server = find_server(tmp_path)
    assert (server.resource, server.image, server.http) == ("127.0.0.1:8082", "127.0.0.1:8083", None)
    assert server.data_dir == tmp_path


def test_the_note_of_a_running_genaid(tmp_path: Path) -> None:
    _note(tmp_path, os.getpid())
    server = find_server(tmp_path)
    assert (server.resource, server.image) == ("127.0.0.1:2", "127.0.0.1:3")
    assert (server.http, server.pid) == ("http://127.0.0.1:1", os.getpid())


def test_the_note_of_a_dead_one_counts_for_nothing(tmp_path: Path, dead_pid: int) -> None:
    _note(tmp_path, dead_pid)
    assert find_server(tmp_path).image == "127.0.0.1:8083"


def test_an_option_wins_over_the_note(tmp_path: Path) -> None:
    _note(tmp_path, os.getpid())
    server = find_server(tmp_path, image=Address("127.0.0.1", 77))
    assert (server.resource, server.image) == ("127.0.0.1:2", "127.0.0.1:77")


def test_the_environment_wins_over_the_note_and_an_option_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _note(tmp_path, os.getpid())
    monkeypatch.setenv("GENAID_IMAGE__LISTEN", "127.0.0.1:66")
    monkeypatch.setenv("GENAID_RESOURCE__LISTEN", "127.0.0.1:65")
    server = find_server(tmp_path, resource=Address("127.0.0.1", 77))
    assert (server.resource, server.image) == ("127.0.0.1:77", "127.0.0.1:66")


def test_a_free_port_of_the_configuration_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _note(tmp_path, os.getpid())
    monkeypatch.setenv("GENAID_IMAGE__LISTEN", "127.0.0.1:0")
    assert find_server(tmp_path).image == "127.0.0.1:3"


@pytest.mark.parametrize("content", ["", "[]", "null", '{"pid": "x"}', '{"pid": 1, "surplus": 2}', "\xff", "{"])
def test_a_broken_note_counts_for_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, "latin-1")
    assert read_run_file(tmp_path) is None


def test_a_note_is_there_while_the_block_runs(tmp_path: Path) -> None:
    endpoints = Endpoints(http="http://127.0.0.1:1", resource="127.0.0.1:2", image="127.0.0.1:3")
    with published(tmp_path / "run.json", endpoints):
        assert read_run_file(tmp_path) == endpoints
        assert endpoints.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_note_says_nothing_of_services_that_are_elsewhere() -> None:
    assert json.loads(Endpoints(image="127.0.0.1:3", pid=5).encode()) == {"image": "127.0.0.1:3", "pid": 5}


def test_the_note_of_a_successor_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    with published(file, Endpoints(image="127.0.0.1:3", pid=5)):
        file.write_text("of another")
    assert file.read_text() == "of another"


def test_only_options_that_were_given_become_settings(tmp_path: Path) -> None:
    address = Address("127.0.0.1", 1)
    assert settings() == {}
    assert settings(data_dir=tmp_path, http=address) == {"data_dir": tmp_path, "gateway": {"listen": address}}
    assert settings(log_level=LogLevel.DEBUG) == {"log": {"level": "debug"}}
    assert settings(image_model="m", resource=address) == {"resource": {"listen": address}, "image": {"model": "m"}}
