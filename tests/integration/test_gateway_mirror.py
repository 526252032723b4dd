"""What the gateway keeps at hand: what a poll costs, how long it may be old, and what restarts do to it."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

import genaid_client
from fakes.gateway import Clock, Rig, gateway, rig, until
from fakes.image_worker import ImageWorker, png
from genaid_client import AsyncClient
from genaid_server.gateway.images.mirror import IDLE_AFTER, Mirror
from genaid_server.kit.errors import NotFoundError
from integration.test_gateway import events, next_event

GENERATIONS = "/v1/images/generations"


@pytest.fixture
async def api() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


async def complete(api: Rig, *images: bytes) -> str:
    generation_id = await api.post()
    api.worker.finish(generation_id, *(images or (png(),)))
    await api.settled(generation_id)
    return generation_id


async def test_polls_of_a_running_generation_cost_no_call(api: Rig) -> None:
    generation_id = await api.post()
    for step in (1, 2, 3):
        api.worker.progress(generation_id, step)
        api.clock.advance(100)
        for _ in range(20):
            assert (await api.poll(generation_id))[0] == 200
    assert (api.worker.calls["GetGeneration"], api.worker.calls["WatchGeneration"]) == (0, 1)


async def test_polls_of_a_finished_generation_cost_a_call_a_second(api: Rig) -> None:
    generation_id = await complete(api)
    answers = set()
    for second in range(3):
        for _ in range(20):
            async with api.http.get(f"{GENERATIONS}/{generation_id}") as answer:
                answers.add(await answer.read())
        assert api.worker.calls["GetGeneration"] == second
        api.clock.advance(1.0)
    assert api.worker.calls["GetImage"] == 1
    assert len(answers) == 1


async def test_simultaneous_polls_share_their_calls(api: Rig) -> None:
    generation_id = await complete(api, png(1), png(2))
    await asyncio.gather(*(api.poll(generation_id) for _ in range(20)))
    assert api.worker.calls["GetImage"] == 2
    api.clock.advance(1.0)
    await asyncio.gather(*(api.poll(generation_id) for _ in range(20)))
    assert api.worker.calls["GetGeneration"] == 1


async def test_health_costs_no_call(api: Rig) -> None:
    await until(lambda: api.worker.watching["WatchEngine"] == 1)

    async def is_free_of_calls() -> bool:
        before = api.worker.calls["GetEngine"]
        async with api.http.get("/health") as answer:
            assert answer.status == 200
        return api.worker.calls["GetEngine"] == before

    await until(is_free_of_calls)
    before = api.worker.calls.copy()
    for _ in range(20):
        async with api.http.get("/health") as answer:
            assert answer.status == 200
    assert api.worker.calls == before


async def test_an_expired_generation_is_gone_within_a_second(api: Rig) -> None:
    generation_id = await complete(api)
    assert (await api.poll(generation_id))[0] == 200
    api.worker.forget(generation_id)
    api.clock.advance(0.999)
    assert (await api.poll(generation_id))[0] == 200
    api.clock.advance(0.001)
    assert await api.poll(generation_id) == (
        404,
        {"error": {"message": "Generation not found", "code": "NOT_FOUND"}},
    )
    for path in ("/images/0", "/events"):
        async with api.http.get(f"{GENERATIONS}/{generation_id}{path}") as answer:
            assert answer.status == 404


async def test_a_generation_that_expires_while_its_images_are_fetched(api: Rig) -> None:
    generation_id = await complete(api)
    api.worker.misbehaviour.refuse["GetImage"] = NotFoundError("It expired.")
    assert (await api.poll(generation_id))[0] == 404
    api.worker.forget(generation_id)
    assert (await api.poll(generation_id))[0] == 404


async def test_large_images(api: Rig) -> None:
    images = [png(3_000_000, b"a"), png(1_234_567, b"b")]
    generation_id = await complete(api, *images)
    status, document = await api.poll(generation_id)
    assert status == 200
    assert [base64.b64decode(image["image"]) for image in document["result"]["images"]] == images


async def test_a_generation_that_another_client_made(api: Rig) -> None:
    generation_id = api.worker.add()
    assert (await api.poll(generation_id))[1]["status"] == "pending"
    api.worker.progress(generation_id, 1)
    await api.poll_until(generation_id, "in_progress")
    assert (api.worker.calls["GetGeneration"], api.worker.calls["WatchGeneration"]) == (1, 1)


async def test_a_gateway_that_was_restarted_answers_for_everything(api: Rig) -> None:
    finished = await complete(api)
    running = await api.post()
    api.worker.progress(running, 2)
    async with gateway(api.worker_address) as address, aiohttp.ClientSession(f"http://{address}") as http:
        restarted = Rig(api.worker, api.worker_address, address, http, api.clock)
        assert await restarted.poll(finished) == await api.poll(finished)
        assert (await restarted.poll(running))[1]["progress"]["currentStep"] == 2
        async with http.get(f"{GENERATIONS}/{finished}/images/0") as answer:
            assert await answer.read() == png()
        async with http.get(f"{GENERATIONS}/{running}/events") as answer:
            assert (await next_event(answer.content))[1]["status"] == "in_progress"
            async with http.delete(f"{GENERATIONS}/{running}") as deleted:
                assert deleted.status == 200


async def test_a_late_progress_does_not_revive_a_cancelled_generation(api: Rig) -> None:
    api.worker.misbehaviour.hang.add("WatchGeneration")
    generation_id = await api.post()
    async with api.http.delete(f"{GENERATIONS}/{generation_id}") as answer:
        assert answer.status == 200
    api.worker.progress(generation_id, 3)
    api.worker.misbehaviour.let_go()
    await until(lambda: api.worker.watching["WatchGeneration"] == 1)
    api.worker.finish(generation_id, png())
    await until(lambda: api.worker.watching["WatchGeneration"] == 0)
    assert (await api.poll(generation_id))[1]["status"] == "cancelled"


async def is_unreachable(answer: aiohttp.ClientResponse) -> bool:
    """Whether an answer says that the worker is away."""
    if answer.status != 503:
        return False
    error = (await answer.json())["error"]
    assert error["code"] == "SERVER_ERROR"
    assert "image worker" in error["message"]
    return True


async def test_while_the_worker_is_away(api: Rig) -> None:
    finished, running = await complete(api), await api.post()
    await api.poll(finished)
    await api.stop_worker()
    api.clock.advance(1.0)
    for method, path in [
        ("GET", "/health"),
        ("POST", GENERATIONS),
        ("GET", f"{GENERATIONS}/{finished}"),
        ("GET", f"{GENERATIONS}/{finished}/images/0"),
        ("GET", f"{GENERATIONS}/{running}"),
        ("GET", f"{GENERATIONS}/{running}/events"),
        ("DELETE", f"{GENERATIONS}/{running}"),
        ("GET", f"{GENERATIONS}/gen_9"),
    ]:
        async with api.http.request(method, path, json={"prompt": "a tree"}) as answer:
            assert await is_unreachable(answer), path
    async with api.http.get("/openapi.json") as answer:
        assert answer.status == 200


async def test_a_worker_that_comes_back_without_its_memory(api: Rig) -> None:
    generation_id = await api.post()
    await api.stop_worker()
    api.worker.forget_all()
    await api.start_worker()
    await until(lambda: api.health_is(200))
    assert (await api.poll(generation_id))[0] == 404
    assert await api.post()
    await until(lambda: api.worker.watching["WatchEngine"] == 1)


async def test_a_worker_that_was_cut_off_for_a_while(api: Rig) -> None:
    generation_id = await api.post()
    api.worker.progress(generation_id, 1)
    await api.poll_until(generation_id, "in_progress")
    await api.stop_worker()
    assert (await api.poll(generation_id))[0] == 503
    await api.start_worker()
    await until(lambda: api.health_is(200))
    api.worker.finish(generation_id, png())
    assert (await api.poll(generation_id))[1]["status"] == "complete"


async def test_a_gateway_that_is_there_before_its_worker() -> None:
    worker = ImageWorker()
    async with worker.serve() as worker_address:
        pass
    async with gateway(worker_address) as address, aiohttp.ClientSession(f"http://{address}") as http:
        api = Rig(worker, worker_address, address, http, Clock())
        assert await api.health_is(503)
        async with worker.serve(worker_address):
            await until(lambda: api.health_is(200))
            assert await api.post()


async def test_events_while_the_worker_goes_away(api: Rig) -> None:
    generation_id = await api.post()
    async with api.http.get(f"{GENERATIONS}/{generation_id}/events") as answer:
        await next_event(answer.content)
        await api.stop_worker()
        [(name, document)] = events(await answer.text())
    assert (name, document["error"]["code"]) == ("error", "SERVER_ERROR")


async def test_events_of_a_watch_that_the_worker_ended_go_on_after_reconnecting(api: Rig) -> None:
    generation_id = await api.post()
    url = f"{GENERATIONS}/{generation_id}/events"
    async with api.http.get(url) as answer:
        await next_event(answer.content)
        await until(lambda: api.worker.watching["WatchGeneration"] == 1)
        api.worker.end_watches_of(generation_id)
        assert [name for name, _ in events(await answer.text())] == ["error"]
    async with api.http.get(url) as answer:
        await next_event(answer.content)
        api.worker.finish(generation_id, png())
        assert [document["status"] for _, document in events(await answer.text())] == ["complete"]


async def test_a_generation_that_is_deleted_while_it_is_watched(api: Rig) -> None:
    generation_id = await api.post()
    async with api.http.get(f"{GENERATIONS}/{generation_id}/events") as answer:
        await next_event(answer.content)
        await until(lambda: api.worker.watching["WatchGeneration"] == 1)
        api.worker.forget(generation_id)
        assert [name for name, _ in events(await answer.text())] == ["error"]
    assert (await api.poll(generation_id))[0] == 404
    async with api.http.get("/health") as answer:
        assert await answer.json() == {"status": "ok", "busy": False}


@asynccontextmanager
async def mirror(worker: ImageWorker, clock: Clock, cache_bytes: int) -> AsyncIterator[Mirror]:
    async with (
        worker.serve() as address,
        AsyncClient(image=str(address)) as client,
        Mirror(client, clock=clock, cache_bytes=cache_bytes) as made,
    ):
        yield made


def finished(worker: ImageWorker, count: int, size: int) -> list[str]:
    ids = [worker.add() for _ in range(count)]
    for generation_id in ids:
        worker.finish(generation_id, png(size))
    return ids


async def images_fetched(worker: ImageWorker, made: Mirror, *ids: str) -> int:
    before = worker.calls["GetImage"]
    for generation_id in ids:
        await made.answer(generation_id)
    return worker.calls["GetImage"] - before


async def test_the_cache_lets_go_of_what_was_asked_for_longest_ago() -> None:
    worker = ImageWorker()
    async with mirror(worker, Clock(), cache_bytes=40_000) as made:
        first, second, third = finished(worker, 3, 10_000)  # about 15 kB each as JSON
        assert await images_fetched(worker, made, first, second) == 2
        assert await images_fetched(worker, made, first, second, first) == 0
        assert await images_fetched(worker, made, third) == 1
        assert await images_fetched(worker, made, first, third) == 0
        assert await images_fetched(worker, made, second) == 1


async def test_an_answer_larger_than_the_cache_is_not_kept() -> None:
    worker = ImageWorker()
    async with mirror(worker, Clock(), cache_bytes=20_000) as made:
        small, large = *finished(worker, 1, 1_000), *finished(worker, 1, 100_000)
        assert await images_fetched(worker, made, small, large, large) == 3
        assert await images_fetched(worker, made, small) == 0


async def test_what_nobody_asks_for_is_let_go() -> None:
    worker, clock = ImageWorker(), Clock()
    async with mirror(worker, clock, cache_bytes=1_000_000) as made:
        [generation_id] = finished(worker, 1, 1_000)
        assert await images_fetched(worker, made, generation_id) == 1
        clock.advance(IDLE_AFTER - 1)
        made.let_idle_go()
        assert await images_fetched(worker, made, generation_id) == 0
        clock.advance(IDLE_AFTER)
        made.let_idle_go()
        assert await images_fetched(worker, made, generation_id) == 1


async def test_a_running_generation_is_never_let_go() -> None:
    worker, clock = ImageWorker(), Clock()
    async with mirror(worker, clock, cache_bytes=0) as made:
        generation_id = worker.add()
        await made.answer(generation_id)
        clock.advance(10 * IDLE_AFTER)
        made.let_idle_go()
        finished_ids = finished(worker, 3, 1_000)
        await images_fetched(worker, made, *finished_ids)
        await made.answer(generation_id)
        assert worker.calls["WatchGeneration"] == 1


async def test_watching_an_unknown_generation() -> None:
    async with mirror(ImageWorker(), Clock(), cache_bytes=0) as made:
        with pytest.raises(genaid_client.NotFoundError):
            await anext(made.watch("gen_9"))
