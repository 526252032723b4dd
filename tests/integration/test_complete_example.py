"""The documented complete example: a machine is looked at, models are downloaded, and both engines work on it.

As the library did it, over gRPC; and its images over REST. Memory is short, so that the LLM leaves for the image.
"""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from PIL import Image as Picture

from conftest import DemoModels
from fakes.hub_server import HubServer
from genaid_client import (
    DownloadItem,
    DownloadPhase,
    DownloadSpec,
    GenerationSpec,
    GenerationState,
    HuggingFaceSource,
    ImageNeed,
    Model,
    ModelType,
    Progress,
    ServerState,
    Stage,
)
from genaid_server.demo.models import write_llm
from llm_service import ask
from sharing import SCARCE, House, house, needed
from worker import children

REPO = "demo/language"
FILE = "llm.gguf"
URL_FILE = "diffusion.gguf"
LARGEST = ImageNeed("diffusion", 512, 512, vae_tiling=True)
"""What the image engine is loaded for, where nobody says how large images will be."""
EDGE = 64
POLL = 0.05  # seconds


@asynccontextmanager
async def example(tmp_path: Path, models: DemoModels) -> AsyncIterator[tuple[House, HubServer]]:
    """Services without a model, and a hub that has two."""
    limit = int(await needed(tmp_path / "needs", models.diffusion, LARGEST) * SCARCE)
    talkative = write_llm(tmp_path / FILE, context_length=32_768, layers=8)
    async with HubServer().serving() as hub:
        hub.add_repo(REPO, {FILE: talkative})
        hub.add_file(URL_FILE, models.diffusion)
        settings = {"hub_endpoint": hub.url, "reserve_bytes": 0}
        async with house(tmp_path / "data", memory={"ram_limit_bytes": limit}, downloads=settings) as services:
            yield services, hub
    assert children() == []


async def download(services: House, item: DownloadItem, name: str, kind: ModelType) -> Model:
    """Download a model, with progress."""
    created = await services.client.downloads.create(DownloadSpec((item,), name=name, type=kind))
    seen = [now async for now in services.client.downloads.watch(created.id)]
    assert seen[-1].phase is DownloadPhase.INSTALLED, seen[-1].error
    done = [now.bytes_done for now in seen]
    assert done == sorted(done)
    model = seen[-1].model
    assert model is not None
    assert done[-1] == seen[-1].bytes_total == model.size_bytes
    return model


async def only_model(services: House, hub: HubServer, kind: ModelType) -> Model:
    """The model of a type, downloaded where there is none."""
    if not await services.client.models.list(kind):
        if kind is ModelType.LLM:
            await download(services, DownloadItem(HuggingFaceSource(REPO, FILE)), "Demo Language", kind)
        else:
            await download(services, DownloadItem(hub.file_url(URL_FILE)), "Demo Pictures", kind)
    (model,) = await services.client.models.list(kind)
    return model


def check_png(png: bytes) -> None:
    """It is a picture of the size that was asked for."""
    picture = Picture.open(io.BytesIO(png))
    assert (picture.format, picture.size) == ("PNG", (EDGE, EDGE))


async def test_the_complete_example(tmp_path: Path, demo_models: DemoModels) -> None:
    async with example(tmp_path, demo_models) as (services, hub):
        client = services.client

        # 1. Detect system capabilities.
        capabilities = await client.system.get_capabilities()
        assert capabilities.cpu.logical_cores >= 1
        assert capabilities.memory.total_bytes > 0
        assert capabilities.gpu_available == bool(capabilities.gpus)
        assert capabilities.recommendations.max_model_size

        # 2. Download models where there are none.
        llm_model = await only_model(services, hub, ModelType.LLM)
        diffusion_model = await only_model(services, hub, ModelType.DIFFUSION)
        assert (llm_model.id, diffusion_model.id) == ("demo-language", "demo-pictures")

        # 3. Start the LLM as is best here.
        best = await client.system.recommend_llm_config(llm_model.id)
        assert best.fits
        llm = await client.llm.start(llm_model.id, config=best.config)
        assert (llm.state, llm.config, llm.healthy) == (ServerState.RUNNING, best.config, True)

        # 4. Start the image engine. There is no room for both: the LLM keeps its place until an image is wanted.
        engine = await client.engine.start(diffusion_model.id)
        assert (engine.model_id, engine.accepting) == (diffusion_model.id, True)
        await services.untouched(llm)

        # 5. Use the LLM on its own port.
        question = {"role": "user", "content": "Describe a beautiful landscape in 2 sentences."}
        body = {"model": llm_model.id, "messages": [question], "max_tokens": 40, "seed": 1, "ignore_eos": True}
        status, answer = await ask(llm, "POST", "/v1/chat/completions", body)
        assert (status, answer["object"]) == (200, "chat.completion")
        description = answer["choices"][0]["message"]["content"]
        assert description

        # 6. Generate an image of what it said.
        plan = await client.orchestration.plan_image_generation(ImageNeed(diffusion_model.id, EDGE, EDGE))
        assert plan.would_need_offload
        assert [departure.model_id for departure in plan.departures] == [llm_model.id]
        spec = GenerationSpec(
            description, negative_prompt="blurry, low quality, distorted", width=EDGE, height=EDGE, steps=3
        )
        created = await client.images.create(spec)
        seen = [now async for now in client.images.watch(created.id)]
        assert seen[-1].state is GenerationState.COMPLETE, seen[-1].error
        assert seen[-1].duration_seconds is not None
        check_progress([now.progress for now in seen if now.progress is not None])
        file = tmp_path / "generated-landscape.png"
        file.write_bytes(await client.images.get_image(created.id))
        check_png(file.read_bytes())

        # The LLM is running again.
        llm = await services.back(llm)
        assert (await ask(llm, "POST", "/v1/chat/completions", body))[0] == 200

        # 7. Stop both.
        assert (await client.llm.stop()).state is ServerState.STOPPED
        assert (await client.engine.stop()).state is ServerState.STOPPED
        assert (await client.orchestration.list_leases()).leases == ()


def check_progress(progress: list[Progress]) -> None:
    """It goes through all stages and never back."""
    percentages = [now.percentage for now in progress]
    assert percentages == sorted(percentages)
    assert percentages[-1] == 100
    stages = list(dict.fromkeys(now.stage for now in progress))
    assert stages == [Stage.LOADING, Stage.DIFFUSION, Stage.DECODING]
    steps = [now.current_step for now in progress if now.stage is Stage.DIFFUSION]
    assert steps == sorted(steps)
    assert steps[-1] == 3


async def test_the_images_of_the_example_over_rest(tmp_path: Path, demo_models: DemoModels) -> None:
    async with example(tmp_path, demo_models) as (services, hub):
        llm_model = await only_model(services, hub, ModelType.LLM)
        diffusion_model = await only_model(services, hub, ModelType.DIFFUSION)
        best = await services.client.system.recommend_llm_config(llm_model.id)
        llm = await services.start_llm(llm_model.id, best.config)
        need = ImageNeed(diffusion_model.id, EDGE, EDGE)
        assert (await services.client.orchestration.plan_image_generation(need)).would_need_offload
        path = "/v1/images/generations"
        asked = {"prompt": "a landscape", "negativePrompt": "blurry", "width": EDGE, "height": EDGE, "steps": 3}

        async with services.http.post(path, json=asked) as answer:
            created = await answer.json()
            assert (answer.status, created["status"]) == (201, "pending")
        seen = await polled(services, f"{path}/{created['id']}")
        (image,) = seen[-1]["result"]["images"]
        check_png(base64.b64decode(image["image"]))
        assert (image["width"], image["height"], seen[-1]["result"]["format"]) == (EDGE, EDGE, "png")
        percentages = [document["progress"]["percentage"] for document in seen if "progress" in document]
        assert percentages == sorted(percentages)
        async with services.http.get(f"{path}/{created['id']}/images/0") as answer:
            assert answer.content_type == "image/png"
            assert await answer.read() == base64.b64decode(image["image"])
        llm = await services.back(llm)

        # A second one is cancelled, and the LLM comes back all the same.
        async with services.http.post(path, json={**asked, "steps": 200}) as answer:
            created = await answer.json()
        await services.away()
        for _ in range(2):
            async with services.http.delete(f"{path}/{created['id']}") as answer:
                assert (answer.status, await answer.json()) == (200, {"id": created["id"], "status": "cancelled"})
        await services.back(llm)


async def polled(services: House, path: str) -> list[Any]:
    """What a generation was at each poll, up to when it is complete."""
    seen: list[Any] = []
    while not seen or seen[-1]["status"] in {"pending", "in_progress"}:
        await asyncio.sleep(POLL)
        async with services.http.get(path) as answer:
            assert answer.status == 200
            seen.append(await answer.json())
    assert seen[-1]["status"] == "complete", seen[-1]
    return seen
