"""How a download looks while it runs."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from genaid_client import (
    Component,
    Download,
    DownloadPhase,
    DownloadSpec,
    FileProgress,
)
from genaid_server.cli.views.downloads import (
    SAY_EVERY,
    amount,
    download_view,
    file_label,
    percent,
    plain_view,
    render,
    summary,
    visible,
)

MB = 1024**2
NOW = datetime(2025, 1, 2, tzinfo=UTC)
DOWNLOADING = Download(
    id="d",
    spec=DownloadSpec(()),
    phase=DownloadPhase.DOWNLOADING,
    create_time=NOW,
    update_time=NOW,
    bytes_done=29 * MB,
    bytes_total=100 * MB,
    bytes_per_second=2.5 * MB,
    remaining_seconds=28.4,
    files=(FileProgress("llama.gguf", None, 29 * MB, 100 * MB),),
    error=None,
    model=None,
    retries=0,
    problem="",
)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "downloading, 29.00 MiB of 100.00 MiB (29%), 2.50 MiB/s, 28s left"),
        ({"bytes_total": None, "remaining_seconds": None}, "downloading, 29.00 MiB, 2.50 MiB/s"),
        (
            {"bytes_per_second": 0.0, "remaining_seconds": None, "retries": 3, "problem": "nothing arrives"},
            "downloading, 29.00 MiB of 100.00 MiB (29%), trying again (3 so far): nothing arrives",
        ),
        (
            {"phase": DownloadPhase.QUEUED, "bytes_done": 0, "bytes_total": None}
            | {"bytes_per_second": 0.0, "remaining_seconds": None},
            "waiting for its turn",
        ),
        ({"phase": DownloadPhase.CANCELLED, "problem": "nothing arrives"}, "cancelled, 29.00 MiB of 100.00 MiB (29%)"),
    ],
)
def test_a_line_says_how_far_it_is(changes: dict[str, object], line: str) -> None:
    assert summary(replace(DOWNLOADING, **changes)) == line  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", DownloadPhase)
def test_every_phase_has_words(phase: DownloadPhase) -> None:
    assert summary(replace(DOWNLOADING, phase=phase)).partition(",")[0]


@pytest.mark.parametrize(("done", "total", "share"), [(0, 3, 0), (1, 3, 33), (999, 1000, 99), (3, 3, 100), (0, 0, 100)])
def test_only_the_whole_is_a_hundred_percent(done: int, total: int, share: int) -> None:
    assert percent(done, total) == share


def test_how_much_of_how_much() -> None:
    assert amount(0, None) == "0 B"
    assert amount(512, 1024) == "512 B of 1.00 KiB (50%)"


def test_a_file_is_named_with_what_it_is_to_the_model() -> None:
    assert file_label(FileProgress("ae.safetensors", Component.VAE, 0, None)) == "vae: ae.safetensors"
    assert file_label(FileProgress("llama.gguf", None, 0, None)) == "llama.gguf"


def shards(*done: int) -> list[FileProgress]:
    return [FileProgress(f"shard-{number}", None, count, 10) for number, count in enumerate(done, start=1)]


@pytest.mark.parametrize(
    ("done", "room", "shown"),
    [
        ((10, 5, 0), 3, [1, 2, 3]),
        ((10, 10, 5, 7, 0, 0), 3, [3, 4, 5]),
        ((10, 10, 10, 10), 2, [1, 2]),
        ((10, 0, 5), 1, [3]),
    ],
)
def test_those_under_way_are_shown_where_there_is_no_room_for_all(
    done: Iterable[int], room: int, shown: list[int]
) -> None:
    assert [file.name for file in visible(shards(*done), room)] == [f"shard-{number}" for number in shown]


def drawn(download: Download, width: int = 100, height: int = 30) -> list[str]:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(render(download, width, height))
    return capture.get().splitlines()


def test_a_terminal_shows_a_line_a_file_and_what_is_the_matter() -> None:
    files = (
        FileProgress("flux.gguf", Component.DIFFUSION_MODEL, 29 * MB, 80 * MB),
        FileProgress("ae.safetensors", Component.VAE, 0, None),
    )
    first, second, pace, trouble = drawn(replace(DOWNLOADING, files=files, retries=2, problem="nothing arrives"))
    assert "diffusion_model: flux.gguf" in first
    assert "29.00 MiB of 80.00 MiB (36%)" in first
    assert "vae: ae.safetensors" in second
    assert pace.strip() == "downloading, 29.00 MiB of 100.00 MiB (29%), 2.50 MiB/s, 28s left"
    assert trouble.strip() == "trying again (2 so far): nothing arrives"


def test_names_are_cut_where_the_terminal_is_narrow() -> None:
    files = (FileProgress("x" * 200, None, 29 * MB, 80 * MB),)
    first, _ = drawn(replace(DOWNLOADING, files=files), width=80)
    assert "29.00 MiB of 80.00 MiB (36%)" in first
    assert "…" in first


def test_a_small_terminal_says_how_many_files_it_hides() -> None:
    lines = drawn(replace(DOWNLOADING, files=tuple(shards(*[10] * 30, 5, 0))), height=10)
    assert any("shard-31" in line for line in lines)
    assert any("26 more files" in line for line in lines)
    assert len(lines) < 10


def test_plain_lines_come_on_each_change_and_now_and_then() -> None:
    told: list[str] = []
    now = [0.0]
    show = plain_view(told.append, lambda: now[0])
    queued = replace(DOWNLOADING, phase=DownloadPhase.QUEUED)
    broken = replace(DOWNLOADING, problem="the connection broke", retries=1)
    later = SAY_EVERY * 1.5
    for at, download in [
        (0.0, queued),
        (0.1, queued),
        (0.2, DOWNLOADING),
        (0.3, broken),
        (0.4, broken),
        (later, broken),
    ]:
        now[0] = at
        show(download)
    assert told[0] == "download d"
    assert [line.strip() for line in told[1:]] == [summary(each) for each in (queued, DOWNLOADING, broken, broken)]


def test_a_quiet_view_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    with download_view(quiet=True) as show:
        show(DOWNLOADING)
    assert capsys.readouterr() == ("", "")
    with download_view(quiet=False) as show:
        show(DOWNLOADING)
    assert summary(DOWNLOADING) in capsys.readouterr().err
