"""Downloads by command, from a hub on loopback, with a genaid of its own process."""

import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from gguf import GGUFWriter

from genaid_client import Client, DownloadPhase
from support import GENAID, RunningGenaid, clean_environment, genaid, kill_tree, running_genaid

HUB_PROGRAM = Path(__file__).parents[1] / "fakes" / "hub_server.py"
REPO = "owner/tiny"
MIB = 1024**2
SIZE = 8 * MIB  # of the weights: beyond what is read to see the header
STALL_AT = 5 * MIB


@dataclass(frozen=True)
class Hub:
    """The fake hub: its address, and the folder that it serves."""

    url: str
    root: Path

    def path(self, name: str) -> Path:
        return self.root / REPO / name

    def checksum(self, name: str) -> str:
        return f"sha256:{hashlib.sha256(self.path(name).read_bytes()).hexdigest()}"

    def plain_url(self, name: str) -> str:
        return f"{self.url}/files/{REPO}/{name}"

    def control(self, what: str, **values: Any) -> None:
        """Set what goes wrong from now on."""
        request = urllib.request.Request(  # noqa: S310 - of ours, on loopback
            f"{self.url}/control/{what}", json.dumps(values).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            assert answer.status == 200

    @contextmanager
    def stalled(self, name: str) -> Iterator[None]:
        """A file of the repository of which only a part comes until the block ends."""
        self.control(f"files/{REPO}/{name}?hub", stall_at=STALL_AT)
        try:
            yield
        finally:
            self.control(f"files/{REPO}/{name}?hub")
            self.control(f"files/{REPO}/{name}?hub", release=True)


FILES = (
    *("hub.gguf", "folder/deep.gguf", "plain.gguf", "told.gguf"),
    *("detached.gguf", "interrupted.gguf", "cancelled.gguf", "mismatch.gguf"),
)


def write_model(file: Path, filling: int) -> None:
    """A model that nothing could run, but whose header is right; `filling` makes it one of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(file, "llama")
    writer.add_name(f"Model {filling}")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_tokenizer_model("llama")
    writer.add_tensor("token_embd.weight", numpy.full(SIZE // 4, filling, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    for number, name in enumerate(FILES):
        write_model(root / REPO / name, number)
    (root / REPO / "letter.gguf").write_text("Dear reader, this is no model. " * 100)
    write_model(root / "owner" / "locked" / "llm.gguf", len(FILES))
    argv = [sys.executable, str(HUB_PROGRAM), "--root", str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=clean_environment()) as process:
        try:
            assert process.stdout is not None
            started = Hub(process.stdout.readline().decode().strip(), root)
            started.control("repos/owner/locked", gated=True)
            yield started
        finally:
            kill_tree(process)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[RunningGenaid]:
    environment = {
        "GENAID_DOWNLOADS__HUB_ENDPOINT": hub.url,
        "GENAID_DOWNLOADS__RESERVE_BYTES": "0",
        "HF_HOME": str(tmp_path_factory.mktemp("no-token")),
        "HF_TOKEN": "",
    }
    with running_genaid(tmp_path_factory.mktemp("data"), env=environment) as started:
        yield started


@pytest.fixture
def here(running: RunningGenaid) -> tuple[str, str]:
    """The option that finds the server."""
    return "--data-dir", str(running.data_dir)


@pytest.fixture
def client(running: RunningGenaid) -> Iterator[Client]:
    with Client(resource=running.ready["resource"]) as client:
        yield client


def wait_for_bytes(client: Client, download_id: str) -> None:
    """Return when bytes of a download have come, and it is not over."""
    seen = next(state for state in client.downloads.watch(download_id) if state.bytes_done or state.phase.terminal)
    assert not seen.phase.terminal


def test_a_model_of_the_hub(here: tuple[str, str], hub: Hub) -> None:
    pulled = genaid("pull", f"hf:{REPO}/hub.gguf", "--id", "from-the-hub", "--name", "Größe 7", *here)
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == "from-the-hub\n"
    for words in ("downloading", "installed", "Installed Größe 7: llm", "genaid chat --model from-the-hub"):
        assert words in pulled.stderr

    model = json.loads(genaid("models", "show", "from-the-hub", "--json", *here).stdout)
    assert model["checksum"] == hub.checksum("hub.gguf")
    assert Path(model["path"]).read_bytes() == hub.path("hub.gguf").read_bytes()
    source = model["source"]
    assert (source["type"], source["repo"], source["file"]) == ("huggingface", REPO, "hub.gguf")
    assert re.fullmatch(r"[0-9a-f]{40}", source["revision"])
    shown = genaid("models", "show", "from-the-hub", *here).stdout
    assert f"hf:{REPO}/hub.gguf@{source['revision']}" in shown
    assert genaid("models", "verify", "from-the-hub", *here).returncode == 0
    refreshed = genaid("models", "refresh", "from-the-hub", "--source", "remote-only", "--json", *here)
    assert refreshed.returncode == 0, refreshed.stderr
    assert json.loads(refreshed.stdout)["metadata"] == model["metadata"]

    again = genaid("pull", f"hf:{REPO}/hub.gguf@main", "--json", *here)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["model"]["id"] == "from-the-hub"


def test_a_model_of_the_hub_in_a_folder_for_programs(here: tuple[str, str]) -> None:
    pulled = genaid("pull", f"hf:{REPO}/folder/deep.gguf@main", "--json", *here)
    assert (pulled.returncode, pulled.stderr) == (0, "")
    download = json.loads(pulled.stdout)
    assert download["phase"] == "installed"
    assert download["bytes_done"] == download["bytes_total"] == download["model"]["size_bytes"]
    assert download["model"]["source"]["file"] == "folder/deep.gguf"


def test_a_model_at_an_address(here: tuple[str, str], hub: Hub) -> None:
    url = hub.plain_url("plain.gguf")
    pulled = genaid("pull", url, "--checksum", hub.checksum("plain.gguf").upper(), "--id", "plain", *here)
    assert pulled.returncode == 0, pulled.stderr
    model = json.loads(genaid("models", "show", "plain", "--json", *here).stdout)
    assert (model["source"]["type"], model["source"]["url"]) == ("url", url)


def test_a_terminal_sees_it_come(here: tuple[str, str]) -> None:
    pulled = genaid("pull", f"hf:{REPO}/told.gguf", *here, env={"FORCE_COLOR": "1", "COLUMNS": "120"})
    assert pulled.returncode == 0, pulled.stderr
    for part in ("told.gguf", "━", "MiB", "%"):
        assert part in pulled.stderr


def test_a_detached_download_is_watched_to_its_end(here: tuple[str, str], hub: Hub, client: Client) -> None:
    with hub.stalled("detached.gguf"):
        pulled = genaid("pull", f"hf:{REPO}/detached.gguf", "--id", "detached", "--detach", *here)
        assert pulled.returncode == 0, pulled.stderr
        download_id = pulled.stdout.strip()
        wait_for_bytes(client, download_id)
        listed = genaid("downloads", *here).stdout
        assert download_id in listed
        assert "detached.gguf" in listed
        assert "downloading" in genaid("downloads", "show", download_id, *here).stdout
    watched = genaid("downloads", "watch", download_id, *here)
    assert (watched.returncode, watched.stdout) == (0, "detached\n")
    assert genaid("models", "verify", "detached", *here).returncode == 0
    assert download_id not in genaid("downloads", *here).stdout
    assert download_id in genaid("downloads", "--all", *here).stdout
    over = genaid("downloads", "cancel", download_id, *here)
    assert over.returncode == 1
    assert "[ALREADY_TERMINAL]" in over.stderr


def _await_output(process: "subprocess.Popen[bytes]", text: str) -> str:
    stream = process.stderr
    assert isinstance(stream, io.BufferedReader)
    seen = ""
    while text not in seen:
        piece = stream.read1()
        assert piece, f"it ended: {seen}"
        seen += piece.decode("utf-8", "replace")
    return seen


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process")
def test_ctrl_c_leaves_it_running(here: tuple[str, str], hub: Hub, client: Client) -> None:
    argv = [*GENAID, "pull", f"hf:{REPO}/interrupted.gguf", "--id", "interrupted", *here]
    with hub.stalled("interrupted.gguf"):
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()) as process:
            try:
                seen = _await_output(process, "downloading")
                process.send_signal(signal.SIGINT)
                stdout, stderr = process.communicate(timeout=30)
            finally:
                kill_tree(process)
        assert (process.returncode, stdout) == (130, b"")
        assert b"Traceback" not in stderr
        download_id = seen.split()[1]
        for command in ("watch", "cancel"):
            assert f"genaid downloads {command} {download_id}".encode() in stderr
        assert not client.downloads.get(download_id).phase.terminal
    watched = genaid("downloads", "watch", download_id, *here)
    assert (watched.returncode, watched.stdout) == (0, "interrupted\n")


def test_a_cancelled_download_leaves_nothing(
    running: RunningGenaid, here: tuple[str, str], hub: Hub, client: Client
) -> None:
    with hub.stalled("cancelled.gguf"):
        pulled = genaid("pull", f"hf:{REPO}/cancelled.gguf", "--id", "cancelled", "--detach", *here)
        download_id = pulled.stdout.strip()
        wait_for_bytes(client, download_id)
        for _ in range(2):
            cancelled = genaid("downloads", "cancel", download_id, *here)
            assert cancelled.returncode == 0, cancelled.stderr
    assert client.downloads.get(download_id).phase is DownloadPhase.CANCELLED
    assert "cancelled" in genaid("downloads", "--all", *here).stdout
    watched = genaid("downloads", "watch", download_id, *here)
    assert watched.returncode == 1
    assert "was cancelled" in watched.stderr
    assert genaid("models", "show", "cancelled", *here).returncode == 1
    folder = running.data_dir / "downloads"
    assert [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size >= MIB] == []


@pytest.mark.parametrize(
    ("source", "options", "code", "words"),
    [
        (f"hf:{REPO}/mismatch.gguf", ["--checksum", f"sha256:{'0' * 64}"], "CHECKSUM_ERROR", "0" * 64),
        (f"hf:{REPO}/letter.gguf", [], "INVALID_REQUEST", "GGUF"),
        (f"hf:{REPO}/absent.gguf", [], "DOWNLOAD_FAILED", "absent.gguf"),
        ("hf:owner/absent/llm.gguf", [], "DOWNLOAD_FAILED", "owner/absent"),
        (f"hf:{REPO}/hub.gguf@no-such-branch", [], "DOWNLOAD_FAILED", "no-such-branch"),
        ("hf:owner/locked/llm.gguf", [], "DOWNLOAD_FAILED", "HF_TOKEN"),
        ("{url}/files/absent.gguf", [], "DOWNLOAD_FAILED", "does not exist"),
        (f"hf:{REPO}/pickled.ckpt", [], "INVALID_REQUEST", "ckpt"),
    ],
    ids=["mismatch", "no model", "no file", "no repository", "no revision", "gated", "no address", "pickle"],
)
def test_what_can_not_be_had_is_said_in_a_line(
    here: tuple[str, str], hub: Hub, source: str, options: list[str], code: str, words: str
) -> None:
    before = genaid("models", "list", "--json", *here).stdout
    arguments = ("pull", source.format(url=hub.url), *options, *here)
    refused = genaid(*arguments)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Traceback" not in refused.stderr
    complaint = refused.stderr.splitlines()[-1]
    assert complaint.startswith("Error: ")
    assert complaint.endswith(f"[{code}]")
    assert words in complaint
    for_programs = genaid(*arguments, "--json")
    assert for_programs.returncode == 1
    assert json.loads(for_programs.stderr)["error"]["code"] == code
    assert genaid("models", "list", "--json", *here).stdout == before
