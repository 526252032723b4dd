"""Engines that share memory, over REST: images of the documented API and chats of the OpenAI dialect meanwhile."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from conftest import DemoModels
from genaid_client import GenerationState
from sharing import LLM, SMALL, TINY, House, house, scarce
from worker import children

CHAT = "/openai/v1/chat/completions"
GENERATIONS = "/v1/images/generations"
HELLO = {"model": LLM, "messages": [{"role": "user", "content": "hello"}], "seed": 1, "ignore_eos": True}
CAT = {name: value for name, value in asdict(TINY).items() if name in {"prompt", "width", "height", "steps", "seed"}}
POLL = 0.05  # seconds; a poll is what the documented API has for waiting


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert children() == []


@asynccontextmanager
async def short_of_memory(tmp_path: Path, models: DemoModels, **settings: Any) -> AsyncIterator[House]:
    """The services, where the LLM has to leave for each image."""
    memory = await scarce(tmp_path, models)
    async with house(tmp_path / "data", models.llm, models.diffusion, memory=memory, **settings) as services:
        yield services


async def post_image(http: aiohttp.ClientSession, **fields: object) -> str:
    """Ask for a generation; returns its id."""
    async with http.post(GENERATIONS, json={**CAT, **fields}) as answer:
        document = await answer.json()
        assert (answer.status, document["status"]) == (201, "pending"), document
        return str(document["id"])


async def settled(http: aiohttp.ClientSession, generation_id: str) -> Any:
    """Poll until a generation is at its end."""
    while True:
        async with http.get(f"{GENERATIONS}/{generation_id}") as answer:
            assert answer.status == 200
            document = await answer.json()
        if document["status"] not in {"pending", "in_progress"}:
            return document
        await asyncio.sleep(POLL)


async def say(http: aiohttp.ClientSession, **fields: object) -> tuple[int, Any]:
    """Chat; returns the status and the JSON."""
    async with http.post(CHAT, json={**HELLO, "max_tokens": 4, **fields}) as answer:
        return answer.status, await answer.json()


async def rest_of(answer: aiohttp.ClientResponse) -> list[Any]:
    """The documents of a streamed answer, up to its proper end."""
    data = [line.removeprefix("data: ") for line in (await answer.text()).splitlines() if line]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


async def stream(http: aiohttp.ClientSession, tokens: int = 4) -> list[Any]:
    """Chat, streamed; returns the documents."""
    async with http.post(CHAT, json={**HELLO, "max_tokens": tokens, "stream": True}) as answer:
        assert answer.status == 200
        return await rest_of(answer)


# --- images


async def test_images_offload_and_reload_the_llm_once(tmp_path: Path, demo_models: DemoModels) -> None:
    async with short_of_memory(tmp_path, demo_models) as services:
        llm = await services.start_llm()
        done = await settled(services.http, await post_image(services.http, count=3))
        assert done["status"] == "complete", done
        images = [base64.b64decode(image["image"]) for image in done["result"]["images"]]
        assert len(images) == 3
        assert all(png.startswith(b"\x89PNG") for png in images)
        await services.back(llm)


async def test_an_image_that_can_never_fit_is_an_error_with_its_code(tmp_path: Path, demo_models: DemoModels) -> None:
    async with short_of_memory(tmp_path, demo_models) as services:
        llm = await services.start_llm()
        failed = await settled(services.http, await post_image(services.http, width=4096, height=1024))
        assert (failed["status"], failed["error"]["code"]) == ("error", "INSUFFICIENT_RESOURCES")
        assert "Insufficient RAM" in failed["error"]["message"]
        details = failed["error"]["details"]
        assert int(details["required"]) > int(details["available"])
        await services.untouched(llm)
        assert (await say(services.http))[0] == 200


# --- chats meanwhile


async def test_chats_wait_for_an_image_and_are_answered(tmp_path: Path, demo_models: DemoModels) -> None:
    async with short_of_memory(tmp_path, demo_models) as services:
        llm = await services.start_llm()
        _, expected = await say(services.http)
        generation_id = await post_image(services.http)
        await services.away()
        chats = [asyncio.create_task(say(services.http)) for _ in range(3)]
        streams = [asyncio.create_task(stream(services.http)) for _ in range(2)]
        assert (await settled(services.http, generation_id))["status"] == "complete"
        for status, document in await asyncio.gather(*chats):
            assert status == 200
            assert document["choices"] == expected["choices"]
        for documents in await asyncio.gather(*streams):
            text = "".join(each["choices"][0]["delta"].get("content") or "" for each in documents if each["choices"])
            assert text == expected["choices"][0]["message"]["content"]
        await services.back(llm)


async def test_a_chat_does_not_run_before_the_llm_is_back(tmp_path: Path, demo_models: DemoModels) -> None:
    async with short_of_memory(tmp_path, demo_models) as services:
        llm = await services.start_llm()
        async with services.tenant():
            chat = asyncio.create_task(say(services.http))
            # Two answers of the gateway later it has read the chat as well.
            for _ in range(2):
                async with services.http.get("/openai/v1/models") as answer:
                    assert answer.status == 200
                    assert [model["id"] for model in (await answer.json())["data"]] == [LLM]
            assert not chat.done()
            assert (await services.client.llm.get()).pid is None
        assert (await chat)[0] == 200
        await services.back(llm)


async def test_a_chat_that_is_under_way_is_not_cut_by_an_image(tmp_path: Path, demo_models: DemoModels) -> None:
    tokens, config = 1500, replace(SMALL, context_size=2048)
    async with short_of_memory(tmp_path, demo_models) as services:
        llm = await services.start_llm(config=config)
        body = {**HELLO, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
        async with services.http.post(CHAT, json=body) as answer:
            await answer.content.readuntil(b"\n\n")
            generation_id = await post_image(services.http)
            makes_room = await services.llm.until(lambda llm: llm.offloaded)
            assert makes_room.pid == llm.pid
            documents = await rest_of(answer)
        assert documents[-1]["usage"]["completion_tokens"] == tokens
        assert (await services.finished(generation_id)).state is GenerationState.COMPLETE
        await services.back(llm)


async def test_a_chat_that_waits_too_long_is_told_when_to_try_again(tmp_path: Path, demo_models: DemoModels) -> None:
    impatient = {"hold_timeout_seconds": 0.2}
    async with short_of_memory(tmp_path, demo_models, gateway_settings=impatient) as services:
        llm = await services.start_llm()
        async with services.tenant():
            async with services.http.post(CHAT, json=HELLO) as answer:
                document = await answer.json()
                assert (answer.status, document["error"]["code"]) == (503, "SERVER_BUSY")
                assert int(answer.headers["Retry-After"]) >= 1
            assert "makes room for an image and comes back by itself" in document["error"]["message"]
        await services.back(llm)
        assert (await say(services.http))[0] == 200
