"""Records what a data directory of the present version holds, for the versions to come.

usage: PYTHONPATH=tests python -m record_data_dir

A `genaid up` works in a new directory with engines that only pretend, and is killed: with a language model that runs, a
diffusion model that has drawn, a download that is installed and one that is half done. What it leaves behind goes to
tests/golden/data_dirs/VERSION/data, without what belongs to that process alone. Beside it lie `half.gguf`, what the
half-done download is of, and `expected.json`, what a manager that opens the directory must find. Addresses of that hub
are written as HUB. test_recorded_data_dirs opens every recorded directory, so a recorded one is never changed.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from fakes import image_engine
from fakes.faulty_http import ServedFile
from fakes.hub_server import HubServer
from genaid_client import AsyncClient, DownloadItem, DownloadPhase, DownloadSpec, GenerationSpec, GenerationState
from llm_service import fake_program
from support import running_genaid
from unit.formats.gguf_files import diffusion_model, language_model

RECORDED: Final = Path(__file__).parent / "golden" / "data_dirs"
HUB: Final = "http://hub.invalid"
EDGE: Final = 64
HALF: Final = 8192
"""Where the download stops that is half done."""
OF_THE_PROCESS: Final = ("run.json", "*.lock", "*.tmp", "engines", "inbox")


class HalfDone(ServedFile):
    """A file whose header is sent to whoever asks for it, and of the whole not more than the beginning."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Stall where everything is asked for."""
        self.fail(stall_at=None if "Range" in request.headers else HALF)
        return await super().answer(request)


async def record(data_dir: Path, folder: Path) -> tuple[dict[str, Any], bytes, str]:
    """Fill a data directory; returns what is to be found in it, the half-done download's content and the hub."""
    config = folder / "genaid.toml"
    config.write_text(
        f"[llm]\nport = 0\nprogram = {json.dumps(fake_program(folder).name)}\n"
        f"[image]\nengine_command = {json.dumps([sys.executable, image_engine.__file__, 'honest'])}\n"
        "[downloads]\nreserve_bytes = 0\n"
    )
    half = language_model("Half Done", salt=1) + bytes(range(256)) * (2 * HALF // 256)
    async with HubServer().serving() as hub:
        hub.add_file("whole.gguf", language_model("Whole", salt=2))
        hub.files["half.gguf"] = HalfDone(half, etag='"half"')
        running = running_genaid(data_dir, "--config", str(config))
        genaid = await asyncio.to_thread(running.__enter__)
        try:
            async with (
                AsyncClient(resource=genaid.ready["resource"]) as manager,
                AsyncClient(image=genaid.ready["image"]) as worker,
            ):
                expected = await work(manager, worker, data_dir, hub)
            genaid.process.kill()
            await asyncio.to_thread(genaid.process.wait)
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)
        return expected, half, hub.url


async def work(manager: AsyncClient, worker: AsyncClient, data_dir: Path, hub: HubServer) -> dict[str, Any]:
    """Have something of everything happen."""
    for name, content in (("tiny-llama", language_model()), ("tiny-flux", diffusion_model())):
        (data_dir / "inbox").mkdir(exist_ok=True)
        (data_dir / "inbox" / f"{name}.gguf").write_bytes(content)
        await manager.models.import_(f"{name}.gguf", name=name)
    drawn = await worker.images.create(GenerationSpec("a fox", width=EDGE, height=EDGE, steps=1))
    async for generation in worker.images.watch(drawn.id):
        drawn = generation
    assert drawn.state is GenerationState.COMPLETE, drawn.error
    await worker.engine.stop()
    whole = await manager.downloads.create(DownloadSpec((DownloadItem(hub.file_url("whole.gguf")),), "Whole"))
    async for download in manager.downloads.watch(whole.id):
        whole = download
    assert whole.phase is DownloadPhase.INSTALLED, whole.error
    half = await manager.downloads.create(DownloadSpec((DownloadItem(hub.file_url("half.gguf")),), "Half Done"))
    async for download in manager.downloads.watch(half.id):
        assert not download.phase.terminal, download.error
        if download.bytes_done == HALF:
            break
    llm = await manager.llm.start("tiny-llama")
    models = await manager.models.list()
    return {
        "models": [[model.id, model.name, str(model.type), model.checksum] for model in models],
        "installed_download": whole.id,
        "half_done_download": half.id,
        "llm": {"model_id": llm.model_id, "context_size": llm.config.context_size if llm.config else None},
        "drawn": {"model_id": drawn.model_id, "width": EDGE, "height": EDGE},
    }


def main() -> None:
    """Record, and look that nothing of this machine is in it."""
    target = RECORDED / version("genaid")
    if target.exists():
        sys.exit(f"{target} is there; what a version has written is never written anew")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_dir = folder / "data"
        expected, half, hub = asyncio.run(record(data_dir, folder))
        for path in [path for pattern in OF_THE_PROCESS for path in data_dir.rglob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        ended = json.loads((data_dir / "downloads" / f"{expected['installed_download']}.json").read_text("utf-8"))
        expected["ended_at"] = ended["updated_at"]  # a week later it would be forgotten: the test writes its own time
        for path in data_dir.rglob("*"):
            if path.suffix in {".json", ".log"}:
                path.write_bytes(path.read_bytes().replace(hub.encode(), HUB.encode()))
                told = [place for place in (name, str(Path.home()), sys.prefix) if place in path.read_text("utf-8")]
                assert told == [], path
        (partial,) = data_dir.rglob("*.partial")
        assert partial.read_bytes() == half[:HALF]
        shutil.copytree(data_dir, target / "data")
    (target / "half.gguf").write_bytes(half)
    (target / "expected.json").write_text(json.dumps(expected, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
