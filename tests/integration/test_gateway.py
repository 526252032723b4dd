"""The documented API over real HTTP, with an image worker that does what it is told."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from fakes.gateway import Rig, rig, running, until
from fakes.image_worker import png
from genaid.image.v1 import generation_pb2
from genaid_server.kit.errors import (
    BackendError,
    InsufficientResourcesError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerError,
)


@pytest.fixture
async def api() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


async def test_the_life_of_a_generation(api: Rig) -> None:
    async with api.http.post("/v1/images/generations", json={"prompt": "a tree"}) as answer:
        created = await answer.json()
        assert answer.status == 201
        assert answer.headers["Location"] == f"/v1/images/generations/{created['id']}"
    assert created == {"id": "gen_1", "status": "pending", "createdAt": 1767323046678}
    assert (await api.poll("gen_1"))[1]["status"] == "pending"
    api.worker.progress("gen_1", 2)
    running = await api.poll_until("gen_1", "in_progress")
    assert running["progress"] == {"currentStep": 2, "totalSteps": 4, "stage": "diffusion", "percentage": 40.0}
    api.worker.finish("gen_1", png())
    complete = await api.poll_until("gen_1", "complete")
    assert complete["createdAt"] == running["createdAt"] == created["createdAt"]
    assert complete["updatedAt"] > running["updatedAt"]
    assert [image["seed"] for image in complete["result"]["images"]] == [42]


async def test_what_was_asked_for_reaches_the_worker(api: Rig) -> None:
    await api.post(negativePrompt="blur", width=64, height=128, steps=3, cfgScale=0, seed=0, sampler="lcm", count=2)
    assert api.worker.specs == [
        generation_pb2.GenerationSpec(
            prompt="a tree",
            negative_prompt="blur",
            width=64,
            height=128,
            steps=3,
            cfg_scale=0.0,
            seed=0,
            sampler=generation_pb2.SAMPLER_LCM,
            count=2,
        )
    ]


async def test_what_was_not_asked_for_is_the_worker_s_to_choose(api: Rig) -> None:
    await api.post(width=None, seed=-1)
    assert api.worker.specs == [generation_pb2.GenerationSpec(prompt="a tree")]


async def test_of_three_simultaneous_requests_one_is_accepted(api: Rig) -> None:
    async def post() -> tuple[int, dict[str, str], dict[str, Any]]:
        async with api.http.post("/v1/images/generations", json={"prompt": "a tree"}) as answer:
            return answer.status, dict(answer.headers), await answer.json()

    answers = await asyncio.gather(*(post() for _ in range(3)))
    assert sorted(status for status, _, _ in answers) == [201, 503, 503]
    for status, headers, document in answers:
        if status == 503:
            assert int(headers["Retry-After"]) >= 1
            assert document == {
                "error": {
                    "message": "Server is busy generating another image",
                    "code": "SERVER_BUSY",
                    "suggestion": "Wait for it, or cancel it.",
                }
            }


async def test_a_batch_reports_its_images(api: Rig) -> None:
    generation_id = await api.post(count=2)
    api.worker.progress(generation_id, 1, image=2, images=2)
    running = await api.poll_until(generation_id, "in_progress")
    assert (running["progress"]["currentImage"], running["progress"]["totalImages"]) == (2, 2)
    api.worker.finish(generation_id, png(100, b"a"), png(200, b"b"))
    complete = await api.poll_until(generation_id, "complete")
    assert [image["seed"] for image in complete["result"]["images"]] == [42, 43]


async def test_a_failed_generation_tells_why(api: Rig) -> None:
    generation_id = await api.post()
    api.worker.fail(generation_id, "BACKEND_ERROR", "The engine died: server is busy")
    failed = await api.poll_until(generation_id, "error")
    assert failed["error"] == {"message": "The engine died: server is busy", "code": "BACKEND_ERROR"}


@pytest.mark.parametrize(
    "generation_id", ["gen_9", "x" * 200, "..", "%2e%2e%2fsecret", "a%00b", "%c3%a4", "%ff", "%20"]
)
@pytest.mark.parametrize(
    ("method", "rest"), [("GET", ""), ("DELETE", ""), ("GET", "/images/0"), ("GET", "/events"), ("HEAD", "")]
)
async def test_an_unknown_generation(api: Rig, method: str, rest: str, generation_id: str) -> None:
    head, body = await exchange(api, method, f"/v1/images/generations/{generation_id}{rest}")
    assert head == 404
    if method != "HEAD":
        assert json.loads(body)["error"]["code"] == "NOT_FOUND"


async def exchange(api: Rig, method: str, path: str) -> tuple[int, bytes]:
    """One request whose path is sent as it is."""
    request = f"{method} {path} HTTP/1.1\r\nHost: {api.address}\r\nConnection: close\r\n\r\n"
    async with api.connection() as (reader, writer):
        writer.write(request.encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def test_cancelling_and_cancelling_again(api: Rig) -> None:
    generation_id = await api.post()
    for _ in range(2):
        async with api.http.delete(f"/v1/images/generations/{generation_id}") as answer:
            assert answer.status == 200
            assert await answer.json() == {"id": generation_id, "status": "cancelled"}
        assert (await api.poll(generation_id))[1]["status"] == "cancelled"


async def test_cancelling_what_is_complete(api: Rig) -> None:
    generation_id = await api.post()
    api.worker.finish(generation_id, png())
    async with api.http.delete(f"/v1/images/generations/{generation_id}") as answer:
        assert answer.status == 409
        assert (await answer.json())["error"]["code"] == "ALREADY_TERMINAL"


async def test_an_image_as_it_is(api: Rig) -> None:
    generation_id, data = await api.post(), png(3_000_000)
    api.worker.finish(generation_id, png(10), data)
    await api.settled(generation_id)
    async with api.http.get(f"/v1/images/generations/{generation_id}/images/1") as answer:
        assert answer.status == 200
        assert await answer.read() == data
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["Content-Disposition"] == f'inline; filename="{generation_id}-1.png"'
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert answer.headers["ETag"] == f'"{hashlib.sha256(data).hexdigest()}"'


async def test_an_image_that_the_caller_has(api: Rig) -> None:
    generation_id, data = await api.post(), png()
    api.worker.finish(generation_id, data)
    await api.settled(generation_id)
    url, tag = f"/v1/images/generations/{generation_id}/images/0", hashlib.sha256(data).hexdigest()
    for known in (f'"{tag}"', f'"other", W/"{tag}"', "*"):
        async with api.http.get(url, headers={"If-None-Match": known}) as answer:
            assert answer.status == 304
            assert await answer.read() == b""
            assert answer.headers["ETag"] == f'"{tag}"'
    async with api.http.get(url, headers={"If-None-Match": '"other"'}) as answer:
        assert answer.status == 200
    assert api.worker.calls["GetImage"] == 1


async def test_the_head_of_an_image_costs_no_image(api: Rig) -> None:
    generation_id, data = await api.post(), png(5000)
    api.worker.finish(generation_id, data)
    await api.settled(generation_id)
    async with api.http.head(f"/v1/images/generations/{generation_id}/images/0") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Length"] == "5000"
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["ETag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert api.worker.calls["GetImage"] == 0


@pytest.mark.parametrize("index", ["1", "-1", "00", "x", "1e0", "99999999999999999999", "٣"])
async def test_an_image_that_is_not_there(api: Rig, index: str) -> None:
    generation_id = await api.post()
    api.worker.finish(generation_id, png())
    await api.settled(generation_id)
    async with api.http.get(f"/v1/images/generations/{generation_id}/images/{index}") as answer:
        assert answer.status == 404
        assert (await answer.json())["error"] == {"message": "Image not found", "code": "NOT_FOUND"}


async def test_an_image_that_is_not_there_yet(api: Rig) -> None:
    generation_id = await api.post()
    async with api.http.get(f"/v1/images/generations/{generation_id}/images/0") as answer:
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "SERVER_BUSY"
        assert int(answer.headers["Retry-After"]) >= 1


async def test_a_failed_generation_has_no_images(api: Rig) -> None:
    generation_id = await api.post()
    api.worker.fail(generation_id, "IO_ERROR", "The disk is full")
    await api.settled(generation_id)
    async with api.http.get(f"/v1/images/generations/{generation_id}/images/0") as answer:
        assert answer.status == 404


async def test_health(api: Rig) -> None:
    async def health() -> dict[str, Any]:
        async with api.http.get("/health") as answer:
            assert answer.status == 200
            document: dict[str, Any] = await answer.json()
            return document

    async def is_busy() -> bool:
        return bool((await health())["busy"])

    async def is_free() -> bool:
        return not await is_busy()

    assert await health() == {"status": "ok", "busy": False}
    api.worker.set_busy(True)
    await until(is_busy)
    api.worker.set_busy(False)
    await until(is_free)


async def test_health_is_busy_as_soon_as_a_request_is_accepted(api: Rig) -> None:
    generation_id = await api.post()
    async with api.http.get("/health") as answer:
        assert await answer.json() == {"status": "ok", "busy": True}
    await api.http.delete(f"/v1/images/generations/{generation_id}")
    async with api.http.get("/health") as answer:
        assert await answer.json() == {"status": "ok", "busy": False}


async def test_the_openapi_document_has_every_route(api: Rig) -> None:
    async with api.http.get("/openapi.json") as answer:
        assert answer.status == 200
        paths = (await answer.json())["paths"]
    api.worker.finish(await api.post(), png())
    for path, operations in paths.items():
        url = path.replace("{id}", "gen_1").replace("{n}", "0")
        async with api.http.options(url) as answer:
            allowed = set(answer.headers["Allow"].split(", "))
        documented = {method.upper() for method in operations if method != "parameters"}
        assert allowed - {"HEAD", "OPTIONS"} == documented


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequestError("prompt is wrong", field="prompt"), 400, "INVALID_REQUEST"),
        (ServerError("The engine was stopped."), 503, "SERVER_ERROR"),
        (ModelNotFoundError("No diffusion model is installed."), 503, "MODEL_NOT_FOUND"),
        (
            InsufficientResourcesError("Too little memory.", suggestion="Close something."),
            503,
            "INSUFFICIENT_RESOURCES",
        ),
        (BackendError("It died."), 500, "BACKEND_ERROR"),
    ],
)
async def test_what_the_worker_refuses(api: Rig, error: Any, status: int, code: str) -> None:
    api.worker.misbehaviour.refuse["CreateGeneration"] = error
    async with api.http.post("/v1/images/generations", json={"prompt": "a tree"}) as answer:
        assert answer.status == status
        answered = (await answer.json())["error"]
    assert (answered["code"], answered["message"]) == (code, error.message)


async def test_an_unexpected_failure_of_the_worker_shows_no_internals(
    api: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    api.worker.misbehaviour.crash.add("CreateGeneration")
    async with api.http.post("/v1/images/generations", json={"prompt": "a tree"}) as answer:
        assert answer.status == 500
        assert (await answer.json())["error"]["code"] == "INTERNAL_ERROR"
        assert "secret" not in await answer.text()
    assert "POST /v1/images/generations failed" in caplog.text


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and documents of the events of a stream."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    found = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields["event"], json.loads(fields["data"])))
    return found


async def next_event(stream: aiohttp.StreamReader) -> tuple[str, dict[str, Any]]:
    return events((await stream.readuntil(b"\n\n")).decode())[0]


async def test_events_from_the_first_state_to_the_last(api: Rig) -> None:
    generation_id = await api.post()
    async with api.http.get(f"/v1/images/generations/{generation_id}/events") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        assert (await next_event(answer.content))[1]["status"] == "pending"
        for step in (1, 2, 3):
            api.worker.progress(generation_id, step)
            name, document = await next_event(answer.content)
            assert (name, document["progress"]["currentStep"]) == ("state", step)
        api.worker.finish(generation_id, png())
        rest = (await answer.content.read()).decode()
    assert "id: complete\n" in rest
    [(name, document)] = events(rest)
    assert (name, document["status"]) == ("state", "complete")
    assert document["result"] == {
        "images": [{"url": f"/v1/images/generations/{generation_id}/images/0", "seed": 42, "width": 64, "height": 64}],
        "format": "png",
        "timeTaken": 1500,
    }
    async with api.http.get(document["result"]["images"][0]["url"]) as image:
        assert await image.read() == png()


async def test_events_of_a_finished_generation(api: Rig) -> None:
    generation_id = await api.post()
    api.worker.fail(generation_id, "BACKEND_ERROR", "It died.")
    await api.poll_until(generation_id, "error")
    url = f"/v1/images/generations/{generation_id}/events"
    async with api.http.get(url) as answer:
        assert [document["status"] for _, document in events(await answer.text())] == ["error"]
    async with api.http.get(url, headers={"Last-Event-ID": "error"}) as answer:
        assert answer.status == 204
    async with api.http.head(url) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"


async def test_events_of_a_generation_that_is_cancelled_meanwhile(api: Rig) -> None:
    generation_id = await api.post()
    async with api.http.get(f"/v1/images/generations/{generation_id}/events") as answer:
        await next_event(answer.content)
        await api.http.delete(f"/v1/images/generations/{generation_id}")
        assert [document["status"] for _, document in events(await answer.text())] == ["cancelled"]


async def test_a_silent_stream_shows_that_it_is_alive() -> None:
    async with rig(heartbeat=0.01) as api:
        generation_id = await api.post()
        async with api.http.get(f"/v1/images/generations/{generation_id}/events") as answer:
            await next_event(answer.content)
            for _ in range(3):
                assert await answer.content.readuntil(b"\n\n") == b": alive\n\n"


async def test_a_reader_that_leaves_ends_its_stream_at_once(api: Rig) -> None:
    generation_id = await api.post()
    answers = [await api.http.get(f"/v1/images/generations/{generation_id}/events") for _ in range(10)]
    for answer in answers:
        await next_event(answer.content)
    assert running("_beat") == 10
    for answer in answers:
        answer.close()
    await until(lambda: running("_beat") == 0)
    assert (await api.poll(generation_id))[1]["status"] == "pending"
    assert api.worker.watching["WatchGeneration"] == 1


async def test_readers_of_one_generation_share_one_watch(api: Rig) -> None:
    generation_id = await api.post()
    answers = [await api.http.get(f"/v1/images/generations/{generation_id}/events") for _ in range(5)]
    api.worker.finish(generation_id, png())
    for answer in answers:
        assert events(await answer.text())[-1][1]["status"] == "complete"
    assert api.worker.calls["WatchGeneration"] == 1


async def test_a_caller_that_leaves_in_the_middle_of_a_cancellation_cancels_all_the_same(api: Rig) -> None:
    generation_id = await api.post()
    api.worker.misbehaviour.hang.add("CancelGeneration")
    request = asyncio.create_task(exchange(api, "DELETE", f"/v1/images/generations/{generation_id}"))
    await until(lambda: api.worker.calls["CancelGeneration"] == 1)
    request.cancel()
    await asyncio.wait((request,))
    await until(lambda: running("_handle_request") == 0)
    api.worker.misbehaviour.let_go()
    await api.poll_until(generation_id, "cancelled")
