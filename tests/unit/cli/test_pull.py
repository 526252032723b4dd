"""The commands about downloads and models against a server that answers, fails and goes away as scripted."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2
from typer.testing import CliRunner, Result

from contract.scripted import Script, serve
from genaid.resource.v1 import downloads_pb2, models_pb2
from genaid_server.cli.main import app
from genaid_server.kit.errors import AlreadyTerminalError, ModelNotFoundError, NotFoundError

GIB = 1024**3
GONE = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="Socket closed")
FILE = models_pb2.ModelFile(name="tiny.gguf", size_bytes=4 * GIB, path="/models/tiny.gguf", checksum="sha256:00")
MODEL = models_pb2.Model(
    id="tiny",
    name="Tiny",
    type=models_pb2.MODEL_TYPE_LLM,
    size_bytes=4 * GIB,
    path="/models/tiny.gguf",
    checksum="sha256:00",
    format=models_pb2.MODEL_FORMAT_GGUF,
    create_time=Timestamp(seconds=1_700_000_000),
    files=[FILE],
    architecture="llama",
    layer_count=32,
    context_length=4096,
)
DOWNLOADING = downloads_pb2.Download(
    id="d-1",
    spec=downloads_pb2.DownloadSpec(items=[downloads_pb2.DownloadItem(url="http://127.0.0.1/tiny.gguf")]),
    phase=downloads_pb2.DOWNLOAD_PHASE_DOWNLOADING,
    create_time=Timestamp(seconds=1_700_000_000),
    update_time=Timestamp(seconds=1_700_000_001),
    bytes_done=GIB,
    bytes_total=4 * GIB,
    bytes_per_second=GIB / 2,
    remaining=Duration(seconds=6),
    files=[downloads_pb2.FileProgress(name="tiny.gguf", bytes_done=GIB, bytes_total=4 * GIB)],
)


def download(phase: str, **fields: Any) -> downloads_pb2.Download:
    changed = downloads_pb2.Download()
    changed.CopyFrom(DOWNLOADING)
    changed.MergeFrom(downloads_pb2.Download(phase=f"DOWNLOAD_PHASE_{phase}", **fields))  # type: ignore[arg-type]
    return changed


INSTALLED = download("INSTALLED", model=MODEL, bytes_done=4 * GIB)
FAILED = download("FAILED", error=downloads_pb2.DownloadError(code="CHECKSUM_ERROR", message="It is another file."))


def watched(*states: downloads_pb2.Download) -> list[downloads_pb2.WatchDownloadResponse]:
    return [downloads_pb2.WatchDownloadResponse(download=state) for state in states]


@pytest.fixture
def script() -> Script:
    script = Script()
    script.steps["CreateDownload"] = [downloads_pb2.CreateDownloadResponse(download=download("QUEUED"))]
    script.steps["WatchDownload"] = watched(download("QUEUED"), DOWNLOADING, INSTALLED)
    return script


@pytest.fixture
async def genaid(script: Script) -> AsyncIterator[Callable[..., Any]]:
    """Runs a command against the scripted server."""
    async with serve(script) as (address, _):

        async def run(*arguments: str) -> Result:
            argv = [*arguments, "--resource", address]
            return await asyncio.to_thread(CliRunner().invoke, app, argv)

        yield run


type Genaid = Callable[..., Any]


# Pull


async def test_pull_waits_and_prints_the_models_id(genaid: Genaid, script: Script) -> None:
    result = await genaid("pull", "hf:o/n/a/tiny.gguf@v1", "--name", "Tiny", "--type", "llm", "--id", "tiny")
    assert (result.exit_code, result.stdout) == (0, "tiny\n")
    lines = [line.strip() for line in result.stderr.splitlines()]
    assert lines == [
        "download d-1",
        "waiting for its turn, 1.00 GiB of 4.00 GiB (25%), 512.00 MiB/s, 6s left",
        "downloading, 1.00 GiB of 4.00 GiB (25%), 512.00 MiB/s, 6s left",
        "installed, 4.00 GiB of 4.00 GiB (100%)",
        "Installed Tiny: llm, 4.00 GiB.",
        "Talk to it: genaid chat --model tiny",
    ]
    (name, request), (watch, watched_id) = script.requests
    assert (name, watch, watched_id.download_id) == ("CreateDownload", "WatchDownload", "d-1")
    source = downloads_pb2.HuggingFaceSource(repo="o/n", file="a/tiny.gguf", revision="v1")
    assert request.spec == downloads_pb2.DownloadSpec(
        items=[downloads_pb2.DownloadItem(huggingface=source)],
        name="Tiny",
        type=models_pb2.MODEL_TYPE_LLM,
        model_id="tiny",
    )


async def test_pull_of_components(genaid: Genaid, script: Script) -> None:
    checksum = f"sha256:{'0' * 64}"
    url = "http://127.0.0.1/flux.gguf"
    result = await genaid(
        "pull", url, "--checksum", checksum, "--component", "t5xxl=hf:o/n/t5", "--component", "vae=" + url
    )
    assert result.exit_code == 0
    t5 = downloads_pb2.HuggingFaceSource(repo="o/n", file="t5")
    assert list(script.requests[0][1].spec.items) == [
        downloads_pb2.DownloadItem(url=url, component=models_pb2.COMPONENT_DIFFUSION_MODEL, checksum=checksum),
        downloads_pb2.DownloadItem(huggingface=t5, component=models_pb2.COMPONENT_T5XXL),
        downloads_pb2.DownloadItem(url=url, component=models_pb2.COMPONENT_VAE),
    ]


async def test_after_an_image_model_comes_an_image(genaid: Genaid, script: Script) -> None:
    model = models_pb2.Model(id="flux", type=models_pb2.MODEL_TYPE_DIFFUSION)
    script.steps["WatchDownload"] = watched(download("INSTALLED", model=model))
    result = await genaid("pull", "hf:o/n/f")
    assert "genaid generate --model flux" in result.stderr


async def test_pull_for_programs_prints_one_object(genaid: Genaid) -> None:
    result = await genaid("pull", "hf:o/n/f", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    assert (printed["id"], printed["phase"], printed["model"]["id"]) == ("d-1", "installed", "tiny")


async def test_a_detached_pull_leaves_at_once(genaid: Genaid, script: Script) -> None:
    result = await genaid("pull", "hf:o/n/f", "--detach")
    assert (result.exit_code, result.stdout) == (0, "d-1\n")
    for command in ("genaid downloads watch d-1", "genaid downloads cancel d-1"):
        assert command in result.stderr
    assert [name for name, _ in script.requests] == ["CreateDownload"]
    as_json = await genaid("pull", "hf:o/n/f", "--detach", "--json")
    assert (json.loads(as_json.stdout)["phase"], as_json.stderr) == ("queued", "")


async def test_a_terminal_sees_a_line_a_file(genaid: Genaid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    result = await genaid("pull", "hf:o/n/f")
    assert (result.exit_code, result.stdout) == (0, "tiny\n")
    for part in ("tiny.gguf", "━", "1.00 GiB of 4.00 GiB (25%)", "512.00 MiB/s", "6s left"):
        assert part in result.stderr


# What can go wrong


@pytest.mark.parametrize("arguments", [("pull", "hf:o/n/f"), ("downloads", "watch", "d-1")])
async def test_a_failure_is_said_in_a_line(genaid: Genaid, script: Script, arguments: tuple[str, ...]) -> None:
    script.steps["WatchDownload"] = watched(DOWNLOADING, FAILED)
    result = await genaid(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "Error: It is another file. [CHECKSUM_ERROR]"
    as_json = await genaid(*arguments, "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stderr)["error"] == {"code": "CHECKSUM_ERROR", "message": "It is another file."}


async def test_somebody_else_cancels(genaid: Genaid, script: Script) -> None:
    script.steps["WatchDownload"] = watched(DOWNLOADING, download("CANCELLED"))
    result = await genaid("pull", "hf:o/n/f")
    assert result.exit_code == 1
    assert "Download d-1 was cancelled. [DOWNLOAD_FAILED]" in result.stderr


@pytest.mark.parametrize("end", [[], [GONE]], ids=["stops", "dies"])
async def test_the_service_goes_away(genaid: Genaid, script: Script, end: list[status_pb2.Status]) -> None:
    script.steps["WatchDownload"] = [*watched(DOWNLOADING), *end]
    result = await genaid("pull", "hf:o/n/f")
    assert result.exit_code == 1
    assert "goes on when it runs again (genaid up)" in result.stderr
    assert "genaid downloads watch d-1" in result.stderr
    assert "[UNREACHABLE]" in result.stderr


async def test_a_model_that_was_removed_since(genaid: Genaid, script: Script) -> None:
    script.steps["WatchDownload"] = watched(download("INSTALLED"))
    result = await genaid("downloads", "watch", "d-1")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "has been removed since" in result.stderr


@pytest.mark.parametrize("command", ["show", "watch", "cancel"])
async def test_a_download_that_is_not_there(genaid: Genaid, script: Script, command: str) -> None:
    missing = NotFoundError("There is no download 'x'.")
    script.steps |= {rpc: [missing] for rpc in ("GetDownload", "WatchDownload", "CancelDownload")}
    result = await genaid("downloads", command, "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: There is no download 'x'. [NOT_FOUND]\n"


# Downloads


@pytest.mark.parametrize(
    ("arguments", "active_only"), [((), True), (("list",), True), (("--all",), False), (("list", "--all"), False)]
)
async def test_downloads_are_listed(
    genaid: Genaid, script: Script, arguments: tuple[str, ...], active_only: bool
) -> None:
    stuck = download("DOWNLOADING", problem="nothing arrives", retries=2)
    script.steps["ListDownloads"] = [downloads_pb2.ListDownloadsResponse(downloads=[stuck, INSTALLED])]
    result = await genaid("downloads", *arguments)
    assert result.exit_code == 0
    header, first, second = result.stdout.splitlines()
    assert header.split()[:4] == ["ID", "WHAT", "STATE", "PROGRESS"]
    for part in ("d-1", "tiny.gguf", "downloading", "(25%)", "6s left", "trying again (2 so far): nothing arrives"):
        assert part in first
    assert "installed" in second
    assert "left" not in second
    assert script.requests[0][1].active_only is active_only
    as_json = json.loads((await genaid("downloads", *arguments, "--json")).stdout)
    assert [each["phase"] for each in as_json] == ["downloading", "installed"]


async def test_no_downloads(genaid: Genaid) -> None:
    assert "genaid downloads --all" in (await genaid("downloads")).stderr
    assert "genaid pull" in (await genaid("downloads", "--all")).stderr


async def test_one_download_is_shown(genaid: Genaid, script: Script) -> None:
    script.steps["GetDownload"] = [downloads_pb2.GetDownloadResponse(download=FAILED)]
    result = await genaid("downloads", "show", "d-1")
    assert result.exit_code == 0
    for part in ("failed", "http://127.0.0.1/tiny.gguf", "tiny.gguf: 1.00 GiB of 4.00 GiB", "It is another file."):
        assert part in result.stdout
    as_json = json.loads((await genaid("downloads", "show", "d-1", "--json")).stdout)
    assert as_json["error"]["code"] == "CHECKSUM_ERROR"


async def test_a_download_is_cancelled(genaid: Genaid, script: Script) -> None:
    script.steps["CancelDownload"] = [downloads_pb2.CancelDownloadResponse(download=download("CANCELLED"))]
    result = await genaid("downloads", "cancel", "d-1")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Cancelled d-1" in result.stderr
    as_json = await genaid("downloads", "cancel", "d-1", "--json")
    assert json.loads(as_json.stdout)["phase"] == "cancelled"


async def test_what_is_over_cannot_be_cancelled(genaid: Genaid, script: Script) -> None:
    script.steps["CancelDownload"] = [AlreadyTerminalError("It is installed.")]
    result = await genaid("downloads", "cancel", "d-1")
    assert (result.exit_code, result.stderr) == (1, "Error: It is installed. [ALREADY_TERMINAL]\n")


# Models


def verified(result: str, **fields: Any) -> list[models_pb2.VerifyModelResponse]:
    number = models_pb2.Verification.Value(f"VERIFICATION_{result}")
    file = models_pb2.FileVerification(name="tiny.gguf", result=number, **fields)
    return [
        models_pb2.VerifyModelResponse(bytes_done=GIB, bytes_total=2 * GIB),
        models_pb2.VerifyModelResponse(bytes_done=2 * GIB, bytes_total=2 * GIB, result=number, files=[file]),
    ]


@pytest.mark.parametrize(
    ("result", "status", "words"),
    [
        ("VALID", 0, "tiny is what was installed."),
        ("INVALID", 1, "tiny is damaged. Remove it with: genaid models rm tiny"),
        ("UNVERIFIABLE", 0, "tiny can't be verified"),
    ],
)
async def test_verifying_tells_what_it_found(
    genaid: Genaid, script: Script, result: str, status: int, words: str
) -> None:
    script.steps["VerifyModel"] = verified(result, expected="sha256:00", actual="sha256:11")
    plain = await genaid("models", "verify", "tiny")
    assert plain.exit_code == status
    assert f"{result.lower()} " in plain.stdout
    assert "tiny.gguf" in plain.stdout
    assert ("sha256:11" in plain.stdout) == (result == "INVALID")
    assert words in plain.stderr
    as_json = await genaid("models", "verify", "tiny", "--json")
    assert (as_json.exit_code, as_json.stderr) == (status, "")
    printed = json.loads(as_json.stdout)
    assert (printed["id"], printed["result"]) == ("tiny", result.lower())
    assert printed["files"][0]["actual"] == "sha256:11"


async def test_verifying_that_ends_early_is_no_result(genaid: Genaid, script: Script) -> None:
    script.steps["VerifyModel"] = verified("VALID")[:1]
    result = await genaid("models", "verify", "tiny")
    assert result.exit_code == 1
    assert "[SERVER_ERROR]" in result.stderr


async def test_a_terminal_sees_how_far_verifying_is(
    genaid: Genaid, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    script.steps["VerifyModel"] = verified("VALID")
    result = await genaid("models", "verify", "tiny")
    assert "verifying tiny" in result.stderr
    assert "of 2.00 GiB" in result.stderr


async def test_refreshing_says_where_to_read(genaid: Genaid, script: Script) -> None:
    script.steps["RefreshModelMetadata"] = [models_pb2.RefreshModelMetadataResponse(model=MODEL)]
    result = await genaid("models", "refresh", "tiny", "--source", "remote-only")
    assert result.exit_code == 0
    assert "4096 tokens" in result.stdout
    assert script.requests[0][1].strategy == models_pb2.METADATA_STRATEGY_REMOTE_ONLY
    assert json.loads((await genaid("models", "refresh", "tiny", "--json")).stdout)["layer_count"] == 32


async def test_models_are_listed_with_what_is_known_of_them(genaid: Genaid, script: Script) -> None:
    bare = models_pb2.Model(id="bare", create_time=Timestamp(seconds=1_700_000_000))
    script.steps["ListModels"] = [models_pb2.ListModelsResponse(models=[MODEL, bare])]
    header, first, second = (await genaid("models", "list")).stdout.splitlines()
    assert header.split() == ["ID", "NAME", "TYPE", "ARCHITECTURE", "LAYERS", "CONTEXT", "SIZE", "ADDED"]
    assert first.split() == ["tiny", "Tiny", "llm", "llama", "32", "4096", "4.00", "GiB", "2023-11-14"]
    assert second.split() == ["bare", "unknown", "0", "B", "2023-11-14"]


async def test_no_models(genaid: Genaid) -> None:
    result = await genaid("models", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    for command in ("genaid pull hf:OWNER/REPO/FILE", "genaid models import FILE"):
        assert command in result.stderr


def rows(output: str) -> list[list[str]]:
    return [line.split(maxsplit=1) for line in output.splitlines()]


async def test_one_model_is_shown(genaid: Genaid, script: Script) -> None:
    model = models_pb2.Model()
    model.CopyFrom(MODEL)
    model.supports_reasoning = True
    model.metadata.vocab_size = 32000
    model.files[0].source.CopyFrom(
        models_pb2.ModelSource(
            type=models_pb2.SOURCE_TYPE_HUGGINGFACE, repo="o/n", file="tiny.gguf", revision="a" * 40, license="mit"
        )
    )
    script.steps["GetModel"] = [
        models_pb2.GetModelResponse(model=model, raw_metadata_json='{"general.name": "Tiny", "a.b": [1, 2]}')
    ]
    plain = await genaid("models", "show", "tiny")
    shown = rows(plain.stdout)
    for row in (
        ["type", "llm"],
        ["size", "4.00 GiB (4,294,967,296 bytes)"],
        ["architecture", "llama"],
        ["layers", "32"],
        ["context", "4096 tokens"],
        ["reasoning", "thinks before it answers"],
        ["vocabulary", "32000"],
        ["license", "mit"],
        ["file", "/models/tiny.gguf"],
        ["checksum", "sha256:00"],
        ["source", f"hf:o/n/tiny.gguf@{'a' * 40}"],
    ):
        assert row in shown
    raw = await genaid("models", "show", "tiny", "--raw")
    assert rows(raw.stdout) == [*shown, [], ["general.name", "Tiny"], ["a.b", "[1, 2]"]]
    as_json = json.loads((await genaid("models", "show", "tiny", "--raw", "--json")).stdout)
    assert (as_json["id"], as_json["raw_metadata"]) == ("tiny", {"general.name": "Tiny", "a.b": [1, 2]})
    assert "raw_metadata" not in json.loads((await genaid("models", "show", "tiny", "--json")).stdout)


async def test_every_file_of_a_model_is_shown(genaid: Genaid, script: Script) -> None:
    model = models_pb2.Model(
        id="flux",
        create_time=Timestamp(seconds=1),
        files=[
            models_pb2.ModelFile(
                path="/models/flux.gguf",
                component=models_pb2.COMPONENT_DIFFUSION_MODEL,
                source=models_pb2.ModelSource(type=models_pb2.SOURCE_TYPE_URL, url="http://127.0.0.1/flux.gguf"),
            ),
            models_pb2.ModelFile(
                path="/models/vae.safetensors",
                component=models_pb2.COMPONENT_VAE,
                size_bytes=1536,
                checksum="sha256:22",
                source=models_pb2.ModelSource(type=models_pb2.SOURCE_TYPE_FILE, file="ae.safetensors"),
            ),
        ],
    )
    script.steps["GetModel"] = [models_pb2.GetModelResponse(model=model)]
    shown = rows((await genaid("models", "show", "flux")).stdout)
    for row in (
        ["file", "diffusion_model: /models/flux.gguf"],
        ["source", "http://127.0.0.1/flux.gguf"],
        ["file", "vae: /models/vae.safetensors"],
        ["size", "1.50 KiB (1,536 bytes)"],
        ["checksum", "sha256:22"],
        ["source", "imported from ae.safetensors"],
    ):
        assert row in shown


async def test_a_model_that_is_not_there(genaid: Genaid, script: Script) -> None:
    missing = ModelNotFoundError("Model 'x' is not installed.")
    script.steps |= {rpc: [missing] for rpc in ("GetModel", "VerifyModel", "RefreshModelMetadata")}
    for command in ("show", "verify", "refresh"):
        result = await genaid("models", command, "x")
        assert (result.exit_code, result.stderr) == (1, "Error: Model 'x' is not installed. [MODEL_NOT_FOUND]\n")


async def test_names_from_elsewhere_do_not_command_the_terminal(genaid: Genaid, script: Script) -> None:
    evil = "\x1b[2J\x07\r\nTiny\u202e"
    model = models_pb2.Model(id="tiny", name=evil, create_time=Timestamp(seconds=1))
    script.steps["GetModel"] = [models_pb2.GetModelResponse(model=model, raw_metadata_json=json.dumps({"a": evil}))]
    script.steps["ListModels"] = [models_pb2.ListModelsResponse(models=[model])]
    failed = downloads_pb2.DownloadError(code="DOWNLOAD_FAILED", message=evil)
    files = [downloads_pb2.FileProgress(name=evil)]
    script.steps["WatchDownload"] = watched(download("DOWNLOADING", problem=evil), download("FAILED", error=failed))
    script.steps["ListDownloads"] = [downloads_pb2.ListDownloadsResponse(downloads=[download("QUEUED", files=files)])]
    for arguments in (
        ("models", "show", "tiny", "--raw"),
        ("models", "list"),
        ("pull", "hf:o/n/f"),
        ("downloads", "list"),
    ):
        output = (await genaid(*arguments)).output
        assert output.replace("\n", "").isprintable()
    assert "\\x1b[2J\\x07\\r\\nTiny" in (await genaid("models", "list")).output
