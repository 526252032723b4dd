"""The log of a service: which line goes where, what it looks like, and that it holds nobody up."""

import logging
import re
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from genaid_client.tracing import set_request_id
from genaid_server.kit.log import ACCESS, MAX_MESSAGE, LineFormatter, ServiceLog

LINE = re.compile(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] \[(DEBUG|INFO |WARN |ERROR)\] \[(\S+)\] (\S+): (.*)")
OURS, LIBRARY, REQUESTS = (logging.getLogger(name) for name in ("genaid_server.test", "library.part", ACCESS))


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    set_request_id("")
    yield
    set_request_id("")


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


def messages_of(text: str) -> list[str]:
    return [match[4] for line in text.splitlines() if (match := LINE.fullmatch(line))]


def say_everything() -> None:
    for logger in (OURS, LIBRARY):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logger.log(level, "%s %s", logger.name.partition(".")[0], logging.getLevelName(level))
    REQUESTS.info("GET /")


@pytest.mark.parametrize(
    ("level", "libraries", "stderr", "file"),
    [
        ("info", "warning", ["ours INFO", "ours WARNING", "ours ERROR", "lib WARNING", "lib ERROR"], ["INFO"]),
        ("error", "error", ["ours ERROR", "lib ERROR"], ["INFO"]),
        (
            "debug",
            "warning",
            ["ours DEBUG", "ours INFO", "ours WARNING", "ours ERROR", "lib WARNING", "lib ERROR", "GET /"],
            ["DEBUG", "INFO"],
        ),
        (
            "warning",
            "debug",
            ["ours WARNING", "ours ERROR", "lib DEBUG", "lib INFO", "lib WARNING", "lib ERROR"],
            ["INFO"],
        ),
    ],
)
def test_every_line_goes_where_it_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str, libraries: str, stderr: list[str], file: list[str]
) -> None:
    numbers = logging.getLevelNamesMapping()
    main, access = tmp_path / "logs" / "genaid.log", tmp_path / "logs" / "access.log"
    with ServiceLog(numbers[level.upper()], numbers[libraries.upper()], main, access):
        say_everything()
    shown = messages_of(capsys.readouterr().err)
    assert shown == [text.replace("ours", "genaid_server").replace("lib ", "library ") for text in stderr]
    written = messages_of("\n".join(lines_of(main)))
    assert [text for text in written if text.startswith("genaid_server")] == [
        f"genaid_server {name}" for name in [*file, "WARNING", "ERROR"]
    ]
    assert messages_of("\n".join(lines_of(access))) == ["GET /"]


def test_nothing_is_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = [logging.getLogger(name).level for name in ("root", "genaid_server", "genaid_client")], root.handlers[:]
    with ServiceLog(logging.DEBUG, logging.DEBUG, tmp_path / "genaid.log", None):
        pass
    after = [logging.getLogger(name).level for name in ("root", "genaid_server", "genaid_client")], root.handlers[:]
    assert before == after
    OURS.error("not there any more")
    assert capsys.readouterr().err == ""
    assert lines_of(tmp_path / "genaid.log") == []


def test_a_line_tells_when_how_grave_for_whom_and_by_whom(tmp_path: Path) -> None:
    with ServiceLog(logging.INFO, logging.INFO, tmp_path / "genaid.log", None):
        OURS.warning("it %s", "rains")
        set_request_id("abc-1")
        OURS.error("for somebody")
        LIBRARY.info("a word", extra={"request_id": "other"})
    found = [LINE.fullmatch(line) for line in lines_of(tmp_path / "genaid.log")]
    assert [match.groups() for match in found if match] == [
        ("WARN ", "-", "test", "it rains"),
        ("ERROR", "abc-1", "test", "for somebody"),
        ("INFO ", "other", "library.part", "a word"),
    ]


def formatted(message: str, *args: object) -> str:
    return LineFormatter().format(logging.LogRecord("genaid_server.x", logging.INFO, "", 1, message, args, None))


def test_whatever_a_caller_sends_stays_one_line() -> None:
    line = formatted("GET /%s", "a\n[2031-02-03T04:05:06.789Z] [ERROR] forged\r\x1b[2J\u2028")
    assert len(line.splitlines()) == 1
    assert line.endswith(r"GET /a\n[2031-02-03T04:05:06.789Z] [ERROR] forged\r\x1b[2J\u2028")


def test_a_message_is_bounded() -> None:
    assert len(formatted("%s", "x" * 10 * MAX_MESSAGE)) < MAX_MESSAGE + 100


def test_a_traceback_stands_below(tmp_path: Path) -> None:
    with ServiceLog(logging.INFO, logging.INFO, tmp_path / "genaid.log", None):
        try:
            raise KeyError("lost")
        except KeyError:
            OURS.exception("it failed")
    first, *below = lines_of(tmp_path / "genaid.log")
    assert first.endswith("it failed")
    assert below[-1] == "KeyError: 'lost'"


def test_a_message_that_can_not_be_made_harms_nobody(tmp_path: Path) -> None:
    with ServiceLog(logging.INFO, logging.INFO, tmp_path / "genaid.log", None):
        ours = logging.getLogger().handlers[-1]  # alone: that of pytest raises
        ours.handle(OURS.makeRecord(OURS.name, logging.INFO, "", 1, "%d", ("no number",), None))
        OURS.info("goes on")
    wrong, right = lines_of(tmp_path / "genaid.log")
    assert "genaid_server.test" in wrong
    assert right.endswith("goes on")


def test_a_file_has_one_writer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "genaid.log"
    with ServiceLog(logging.INFO, logging.INFO, path, None):
        OURS.info("first")
        with ServiceLog(logging.ERROR, logging.ERROR, path, None):
            pass
    assert "another process writes it" in capsys.readouterr().err
    assert len(lines_of(path)) == 1


def test_where_no_file_can_be_stderr_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_bytes(b"")
    with ServiceLog(logging.INFO, logging.INFO, tmp_path / "logs" / "genaid.log", None):
        OURS.info("said")
    shown = capsys.readouterr().err
    assert "can't be written" in shown
    assert messages_of(shown) == ["said"]


def test_the_file_tells_what_stderr_did_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StringIO() as closed:
        pass
    monkeypatch.setattr(sys, "stderr", closed)
    with ServiceLog(logging.INFO, logging.INFO, tmp_path / "genaid.log", None) as log:
        OURS.info("unseen")
        log.say("unheard")
    assert [line.partition(": ")[2] for line in lines_of(tmp_path / "genaid.log")] == [
        "unseen",
        "2 lines could not be written on stderr",
    ]


def test_people_are_told_before_anybody_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with ServiceLog(logging.ERROR, logging.ERROR, None, None) as log:
        log.say("ready")
        assert log.said(30)
        assert capsys.readouterr().err == "ready\n"
