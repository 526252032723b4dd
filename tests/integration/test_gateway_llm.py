"""Language models through the gateway: with the real engine, and with one that answers what a test scripts."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psutil
import pytest
from aiohttp import web

from conftest import DemoModels
from fakes.gateway import running, until
from fakes.llm_engine import ANYWHERE, LlmManager, engine
from genaid_client import Llm, LlmConfig, LlmServing
from genaid_server.demo.models import write_llm
from genaid_server.gateway import main
from genaid_server.gateway.config import GatewayConfig
from genaid_server.gateway.llm import mirror as llm_mirror
from genaid_server.kit.address import Address
from genaid_server.kit.errors import ServerError
from genaid_server.kit.log import ServiceLog
from genaid_server.settings import Config
from llm_service import PATIENCE, LlmService, ask, llm_service
from worker import children

NOWHERE = "127.0.0.1:9"
SMALL = LlmConfig(threads=1, context_size=256, parallel_requests=2)
KEY = "sesame-opens-no-door-0815"
CHAT = "/openai/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
SAME = {"max_tokens": 8, "temperature": 0, "seed": 1, "cache_prompt": False, "ignore_eos": True}
JSON = {"Content-Type": "application/json"}


@asynccontextmanager
async def serving(resource: object, **settings: Any) -> AsyncIterator[Address]:
    """A gateway in front of a resource manager; `settings` are those of the section `[gateway]`."""
    config = Config(gateway=GatewayConfig(listen=ANYWHERE, **settings))
    async with main.serve(config, NOWHERE, resource=str(resource)) as address:
        yield address


@asynccontextmanager
async def gateway(resource: object, **settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of such a gateway."""
    async with (
        serving(resource, **settings) as address,
        aiohttp.ClientSession(f"http://{address}", timeout=aiohttp.ClientTimeout(PATIENCE)) as http,
    ):
        yield http


async def post(http: aiohttp.ClientSession, **fields: Any) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    async with http.post(CHAT, json={**HELLO, **fields}) as answer:
        return answer.status, await answer.json(content_type=None)


def steady(document: Any) -> Any:
    """A document without what is another one each time."""
    return {name: value for name, value in document.items() if name not in {"id", "created", "timings"}}


def events(text: str) -> list[Any]:
    """The documents of a streamed answer."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert data[-1] == "[DONE]"
    return [steady(json.loads(line)) for line in data[:-1]]


@dataclass(frozen=True)
class Real:
    """A gateway in front of a manager with a real engine."""

    service: LlmService
    http: aiohttp.ClientSession


async def computing(llm: Llm) -> bool:
    """Whether any slot of the engine is busy."""
    _, slots = await ask(llm, "GET", "/slots")
    return any(slot["is_processing"] for slot in slots)


async def idle(llm: Llm) -> bool:
    """Whether none is."""
    return not await computing(llm)


@pytest.fixture
async def real(tmp_path: Path, demo_models: DemoModels) -> AsyncIterator[Real]:
    async with llm_service(tmp_path, demo_models.llm) as service, gateway(service.address) as http:
        yield Real(service, http)
    assert children() == []


# --- the real engine


async def test_what_the_engine_answers_comes_back_as_it_is(real: Real) -> None:
    llm = await real.service.client.llm.start("llm", config=SMALL)
    async with aiohttp.ClientSession(str(llm.base_url), connector=aiohttp.TCPConnector(force_close=True)) as direct:
        for path, body in (
            ("chat/completions", {**HELLO, **SAME}),
            ("completions", {"prompt": "once", **SAME}),
            ("embeddings", {"input": "once"}),
            ("chat/completions", {"messages": "nonsense"}),
        ):
            async with (
                real.http.post(f"/openai/v1/{path}", json=body) as ours,
                direct.post(f"/v1/{path}", json=body) as theirs,
            ):
                assert ours.status == theirs.status
                assert ours.headers["Content-Type"] == theirs.headers["Content-Type"]
                assert steady(await ours.json()) == steady(await theirs.json())
        for path, body in (("chat/completions", {**HELLO, **SAME}), ("completions", {"prompt": "once", **SAME})):
            async with (
                real.http.post(f"/openai/v1/{path}", json={**body, "stream": True}) as ours,
                direct.post(f"/v1/{path}", json={**body, "stream": True}) as theirs,
            ):
                assert ours.headers["Content-Type"] == theirs.headers["Content-Type"] == "text/event-stream"
                documents = events(await ours.text())
                assert len(documents) > 8
                assert documents == events(await theirs.text())
        async with real.http.get("/openai/v1/models") as ours, direct.get("/v1/models") as theirs:
            models = await ours.json()
            assert [model["id"] for model in models["data"]] == ["llm"]
            assert set(models) == set(await theirs.json())
        async with real.http.head("/openai/v1/models") as head:
            assert (head.status, await head.read()) == (200, b"")
            assert int(head.headers["Content-Length"]) > 0


async def test_the_sdk_streams_a_chat(real: Real) -> None:
    await real.service.client.llm.start("llm", config=SMALL)
    async with (
        serving(real.service.address) as address,
        openai.AsyncOpenAI(base_url=f"http://{address}/openai/v1", api_key="none", max_retries=0) as sdk,
    ):
        assert [model.id async for model in sdk.models.list()] == ["llm"]
        message: Any = {"role": "user", "content": "hello"}
        whole = await sdk.chat.completions.create(model="llm", messages=[message], max_tokens=8, temperature=0, seed=1)
        parts = await sdk.chat.completions.create(
            model="llm", messages=[message], max_tokens=8, temperature=0, seed=1, stream=True
        )
        text = [chunk.choices[0].delta.content or "" async for chunk in parts if chunk.choices]
        assert len(text) > 2
        assert "".join(text) == whole.choices[0].message.content
        await real.service.client.llm.stop()
        with pytest.raises(openai.InternalServerError, match="genaid llm start") as caught:
            await sdk.chat.completions.create(model="llm", messages=[message])
        assert (caught.value.status_code, caught.value.code, caught.value.type) == (503, "SERVER_ERROR", "server_error")


async def test_the_engine_stops_computing_for_a_caller_that_leaves(tmp_path: Path) -> None:
    long = write_llm(tmp_path / "long.gguf", context_length=32_768)
    async with llm_service(tmp_path / "data", long) as service, gateway(service.address) as http:
        llm = await service.client.llm.start("long", config=LlmConfig(threads=1, context_size=32_768))
        body = {**HELLO, "max_tokens": 30_000, "ignore_eos": True, "stream": True}
        async with asyncio.timeout(PATIENCE):
            async with http.post(CHAT, json=body) as answer:
                await answer.content.readuntil(b"\n\n")
                assert await computing(llm)
            await service.logged("cancel task")
            await until(lambda: idle(llm))


async def test_a_request_waits_while_the_engine_is_loaded(real: Real) -> None:
    starting = asyncio.create_task(real.service.client.llm.start("llm", config=SMALL))
    await real.service.loading()
    assert (await post(real.http, **SAME))[0] == 200
    await starting


async def test_requests_survive_the_death_of_the_engine(real: Real) -> None:
    llm = await real.service.client.llm.start("llm", config=SMALL)
    expected = await post(real.http, **SAME)
    psutil.Process(llm.pid).kill()
    answers = await asyncio.gather(*(post(real.http, **SAME) for _ in range(4)))
    assert all(status == 200 for status, _ in answers)
    assert answers[0][1]["choices"] == expected[1]["choices"]
    assert (await real.service.serving(generation=2)).generation == 2


async def test_an_answer_that_had_not_begun_is_computed_again(real: Real) -> None:
    llm = await real.service.client.llm.start("llm", config=LlmConfig(threads=1, context_size=2048))
    body = {**SAME, "max_tokens": 1500}
    request = asyncio.create_task(post(real.http, **body))
    await until(lambda: computing(llm))
    assert not request.done()
    psutil.Process(llm.pid).kill()
    status, document = await request
    assert (status, document["usage"]["completion_tokens"]) == (200, 1500)
    assert (await real.service.serving(generation=2)).generation == 2


async def test_requests_survive_a_replacement_of_the_engine(real: Real) -> None:
    await real.service.client.llm.start("llm", config=SMALL)
    replacing = asyncio.create_task(real.service.client.llm.restart())
    statuses = []
    while not replacing.done():
        statuses.append((await post(real.http, **SAME))[0])
    assert (await replacing).generation == 2
    assert set(statuses) == {200}


async def test_nothing_waits_for_an_engine_that_was_stopped(real: Real) -> None:
    await real.service.client.llm.start("llm", config=SMALL)
    await real.service.client.llm.stop()
    status, document = await post(real.http)
    assert (status, document["error"]["code"]) == (503, "SERVER_ERROR")
    assert "genaid llm start MODEL" in document["error"]["message"]
    async with real.http.get("/openai/v1/models") as answer:
        assert (answer.status, await answer.json()) == (200, {"object": "list", "data": []})


async def test_the_engine_s_key_is_asked_for_by_the_engine(real: Real) -> None:
    llm = await real.service.client.llm.start("llm", config=SMALL, serving=LlmServing(api_key=KEY))
    wrong = {"Authorization": "Bearer wrong"}
    async with (
        real.http.post(CHAT, json=HELLO, headers=wrong) as ours,
        aiohttp.request("POST", f"{llm.base_url}/v1/chat/completions", json=HELLO, headers=wrong) as theirs,
    ):
        assert ours.status == theirs.status == 401
        assert await ours.read() == await theirs.read()
    async with real.http.post(CHAT, json=HELLO | SAME, headers={"Authorization": f"Bearer {KEY}"}) as answer:
        assert answer.status == 200


# --- an engine that does what it is told


@dataclass
class Script:
    """What a scripted engine answers, one request after the other and the last again and again; what it was asked."""

    answers: list[Callable[[web.Request], Any]]
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1](request)
        response = await answer
        assert isinstance(response, web.StreamResponse)
        return response


async def fine(_: web.Request) -> web.StreamResponse:
    return web.json_response({"fine": True})


async def dies(request: web.Request) -> web.StreamResponse:
    """The connection breaks before the answer begins."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@dataclass
class Scripted:
    """A gateway in front of a scripted manager and a scripted engine, which runs."""

    manager: LlmManager
    at: Address
    http: aiohttp.ClientSession
    script: Script
    peers: AsyncExitStack


@asynccontextmanager
async def scripted(
    *answers: Callable[[web.Request], Any],
    state: str = "RUNNING",
    error: str = "",
    offloaded: bool = False,
    **settings: Any,
) -> AsyncIterator[Scripted]:
    script, manager = Script(list(answers or (fine,))), LlmManager()
    async with engine(script) as at, AsyncExitStack() as peers:
        manager_address = await peers.enter_async_context(manager.serve())
        manager.set(state, at=at, error=error, offloaded=offloaded)
        async with gateway(manager_address, **settings) as http:
            await until(lambda: manager.calls["WatchLlm"] == 1)
            yield Scripted(manager, at, http, script, peers)


async def test_what_is_passed_on_and_what_is_not() -> None:
    async def odd(_: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "text/x-odd; a=b", "Cache-Control": "max-age=5", "Set-Cookie": "a=b", "X-Own": "1"}
        return web.Response(status=418, reason="Short and stout", body=b"\x00\xff", headers=headers)

    body = b' {"messages": 1, "messages": [2], "unknown": null} '
    async with scripted(odd) as rig:
        asked = {**JSON, "Authorization": "Bearer k", "Accept": "text/x", "Cookie": "a=b", "X-Own": "1"}
        async with rig.http.post(f"{CHAT}?x=1", data=body, headers=asked) as answer:
            assert (answer.status, answer.reason, await answer.read()) == (418, "Short and stout", b"\x00\xff")
            assert answer.headers["Content-Type"] == "text/x-odd; a=b"
            assert answer.headers["Cache-Control"] == "max-age=5"
            assert answer.headers["Server"] == "genaid"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert not {"Set-Cookie", "X-Own"} & set(answer.headers)
        (request,), (sent,) = rig.script.requests, rig.script.bodies
        assert (request.method, request.path_qs, sent) == ("POST", "/v1/chat/completions", body)
        assert {name: request.headers.get(name) for name in asked} == {**asked, "Cookie": None, "X-Own": None}


async def test_a_request_that_is_passed_on_has_a_line_that_tells_the_slot_and_no_prompt(tmp_path: Path) -> None:
    file = tmp_path / "genaid.log"
    with ServiceLog(logging.DEBUG, logging.WARNING, file, None):
        async with scripted() as rig:
            for fields, request_id in (({"id_slot": 3}, "one"), ({}, "two")):
                async with rig.http.post(CHAT, json=HELLO | fields, headers={"X-Request-Id": request_id}) as answer:
                    assert answer.headers["X-Request-Id"] == request_id
    lines = [line.partition("] ")[2] for line in file.read_text().splitlines() if "takes it" in line]
    assert [line.partition(" gateway")[0] for line in lines] == ["[DEBUG] [one]", "[DEBUG] [two]"]
    assert ", slot 3) takes it" in lines[0]
    assert "slot" not in lines[1]
    assert "hello" not in file.read_text()


async def test_requests_to_an_engine_that_runs_cost_no_call() -> None:
    async with scripted() as rig:

        async def free() -> bool:
            before = rig.manager.calls.copy()
            assert (await post(rig.http))[0] == 200
            return rig.manager.calls == before

        await until(free)
        before = rig.manager.calls.copy()
        for _ in range(5):
            assert (await post(rig.http))[0] == 200
        assert rig.manager.calls == before


async def test_the_engine_s_own_refusal() -> None:
    async def refuses(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"code": 400, "message": "no", "type": "x"}}, status=400)

    async with scripted(refuses) as rig:
        assert await post(rig.http) == (400, {"error": {"code": 400, "message": "no", "type": "x"}})


async def test_each_part_of_a_stream_is_handed_on_as_it_arrives() -> None:
    seen: asyncio.Queue[None] = asyncio.Queue()

    async def streams(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(3):
            await response.write(f"data: {number}\n\n".encode())
            await seen.get()
        return response

    async with scripted(streams) as rig, rig.http.post(CHAT, json=HELLO) as answer:
        for number in range(3):
            assert await answer.content.readuntil(b"\n\n") == f"data: {number}\n\n".encode()
            seen.put_nowait(None)
        assert await answer.content.read() == b""


@pytest.mark.parametrize("length", [None, 1000])
async def test_a_stream_that_breaks_off_is_no_whole_one(length: int | None) -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.content_length = length
        await response.prepare(request)
        await response.write(b"data: half\n\n")
        return await dies(request)

    async with scripted(breaks) as rig, rig.http.post(CHAT, json=HELLO) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    assert len(rig.script.requests) == 1


async def test_a_large_answer_to_a_large_request() -> None:
    data = bytes(range(256)) * 40_000

    async def large(request: web.Request) -> web.StreamResponse:
        return web.Response(body=data)

    async with scripted(large, max_body_bytes=8_000_000) as rig:
        body = io.BytesIO(b'{"x": "%s"}' % (b"y" * 5_000_000))
        async with rig.http.post(CHAT, data=body, headers=JSON) as answer:
            assert answer.content_length == len(data)
            assert await answer.read() == data
        assert len(rig.script.bodies[0]) == 5_000_009


async def test_a_redirect_is_not_followed() -> None:
    async def redirects(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/v1/models"})

    async with scripted(redirects) as rig, rig.http.post(CHAT, json=HELLO, allow_redirects=False) as answer:
        assert answer.status == 302
        assert len(rig.script.requests) == 1


async def test_a_request_waits_for_the_engine_that_comes_after_the_one_that_died() -> None:
    async with scripted(dies, fine) as rig:
        request = asyncio.create_task(post(rig.http))
        await until(lambda: len(rig.script.requests) == 1)
        for state in ("CRASHED", "STARTING"):
            rig.manager.set(state)
        rig.manager.set("RUNNING", at=rig.at, generation=2)
        assert await request == (200, {"fine": True})
        assert rig.script.bodies[0] == rig.script.bodies[1]


async def test_a_request_waits_while_the_engine_is_replaced() -> None:
    async with scripted(state="STOPPING") as rig:
        request = asyncio.create_task(post(rig.http))
        await until(lambda: running("_handle_request") == 1)
        for state in ("STOPPED", "STARTING"):
            rig.manager.set(state)
        assert rig.script.requests == []
        rig.manager.set("RUNNING", at=rig.at, generation=2)
        assert await request == (200, {"fine": True})


async def test_a_request_that_kills_engines_is_not_tried_for_ever() -> None:
    async with scripted(dies) as rig:
        request = asyncio.create_task(rig.http.post(CHAT, json=HELLO))
        await until(lambda: len(rig.script.requests) == 1)
        rig.manager.set("RUNNING", at=rig.at, generation=2)
        await until(lambda: len(rig.script.requests) == 2)
        rig.manager.set("CRASHED", generation=2)
        async with await request as answer:
            assert (answer.status, answer.headers["X-Should-Retry"]) == (500, "false")
            assert (await answer.json())["error"]["code"] == "BACKEND_ERROR"
        assert len(rig.script.requests) == 2


# --- an engine that makes room for an image

AWAY = ("RUNNING", "STOPPING", "STOPPED", "CRASHED", "STARTING")
"""All states of an engine that makes room, has made room, or comes back."""


async def held(rig: Scripted) -> asyncio.Task[tuple[int, Any]]:
    """A request that has come as far as it can."""
    request = asyncio.create_task(post(rig.http))
    await until(lambda: running("_handle_request") == 1)
    return request


async def listed(rig: Scripted) -> bool:
    """Whether the gateway knows that the engine is away: it lists the model by itself then."""
    async with rig.http.get("/openai/v1/models") as answer:
        return bool((await answer.json()).get("data"))


async def refused(request: Awaitable[tuple[int, Any]]) -> tuple[int, str, str]:
    """Status, code and message of the answer."""
    status, document = await request
    return status, document["error"]["code"], document["error"]["message"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not offloaded is given up at once."""
    for name in ("REPLACED_WITHIN", "RESTARTED_WITHIN", "NOTICED_WITHIN"):
        monkeypatch.setattr(llm_mirror, name, 0.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("state", AWAY)
async def test_a_request_is_held_back_while_the_engine_is_away(state: str) -> None:
    async with scripted(state=state, offloaded=True) as rig:
        request = await held(rig)
        for later in ("STOPPED", "STARTING", "RUNNING"):
            rig.manager.set(later, at=rig.at, generation=2, offloaded=True)
        rig.manager.set("RUNNING", at=rig.at, generation=2)
        assert await request == (200, {"fine": True})


async def test_an_engine_that_stays_after_all_is_used_again() -> None:
    async with scripted(offloaded=True) as rig:
        request = await held(rig)
        rig.manager.set("RUNNING", at=rig.at)
        assert await request == (200, {"fine": True})


@pytest.mark.parametrize("state", AWAY)
async def test_a_wait_for_an_engine_that_is_away_has_an_end(state: str) -> None:
    async with scripted(state=state, offloaded=True, hold_timeout_seconds=0.05) as rig:
        async with rig.http.post(CHAT, json=HELLO) as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) >= 1
            error = (await answer.json())["error"]
        assert (error["code"], error["message"]) == (
            "SERVER_BUSY",
            "The LLM makes room for an image and comes back by itself. Try again shortly.",
        )
        assert rig.script.requests == []


async def test_why_an_engine_has_not_come_back_yet() -> None:
    error = "It does not fit: 3 GiB are missing.\nA log line"
    async with scripted(state="STOPPED", error=error, offloaded=True, hold_timeout_seconds=0.05) as rig:
        status, code, message = await refused(post(rig.http))
    assert (status, code) == (503, "SERVER_BUSY")
    assert message == (
        "The LLM makes room for an image and comes back by itself. It could not be loaded again yet: It does not fit: "
        "3 GiB are missing. Try again shortly."
    )


@pytest.mark.parametrize("state", ["STOPPED", "CRASHED"])
async def test_nothing_waits_for_an_engine_that_was_given_up(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REPLACED_WITHIN", "RESTARTED_WITHIN"):
        monkeypatch.setattr(llm_mirror, name, 0.05)
    async with scripted(state=state, offloaded=True) as rig:
        request = await held(rig)
        rig.manager.set(state)
        status, code, message = await refused(request)
        assert (status, code) == (503, "SERVER_ERROR")
        assert "genaid llm start MODEL" in message
        async with rig.http.get("/openai/v1/models") as answer:
            assert await answer.json() == {"object": "list", "data": []}


@pytest.mark.usefixtures("impatient")
async def test_the_models_are_known_while_the_engine_is_away() -> None:
    async with scripted(state="STOPPED", offloaded=True) as rig:
        async with rig.http.get("/openai/v1/models") as answer:
            assert answer.status == 200
            assert answer.headers["Cache-Control"] == "no-store"
            models = await answer.json()
        assert [(model["id"], model["object"]) for model in models["data"]] == [("tiny", "model")]
        async with rig.http.head("/openai/v1/models") as head:
            assert (head.status, await head.read()) == (200, b"")
        assert rig.script.requests == []


async def test_an_engine_that_makes_room_is_no_engine_that_died() -> None:
    posts: list[web.Request] = []

    async def leaves_three_times(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({})
        posts.append(request)
        return await (dies if len(posts) < 4 else fine)(request)

    async with scripted(leaves_three_times) as rig:
        request = asyncio.create_task(post(rig.http))
        for generation in (1, 2, 3):
            await until(lambda number=generation: len(posts) == number)  # type: ignore[misc]
            rig.manager.set("STOPPED", generation=generation, offloaded=True)
            await until(lambda: listed(rig))
            rig.manager.set("RUNNING", at=rig.at, generation=generation + 1)
        assert await request == (200, {"fine": True})


async def test_an_engine_that_runs_and_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_mirror, "NOTICED_WITHIN", 0.05)
    async with scripted(dies) as rig:
        status, document = await post(rig.http)
        assert (status, document["error"]["code"]) == (503, "SERVER_ERROR")
        assert "genaid llm restart" in document["error"]["message"]
        assert len(rig.script.requests) == 1


async def test_an_engine_that_speaks_no_http() -> None:
    async def babbles(request: web.Request) -> web.StreamResponse:
        assert isinstance(request.transport, asyncio.WriteTransport)
        request.transport.write(b"what?\r\n\r\n")
        request.transport.close()
        return web.Response()

    async with scripted(babbles) as rig:
        status, document = await post(rig.http)
        assert (status, document["error"]["code"]) == (500, "BACKEND_ERROR")


async def test_the_wait_has_an_end() -> None:
    async with scripted(state="STARTING", hold_timeout_seconds=0.2) as rig:
        for method, path in (("POST", CHAT), ("GET", "/openai/v1/models")):
            async with rig.http.request(method, path, json=HELLO) as answer:
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) >= 1
                error = (await answer.json())["error"]
                assert (error["code"], error["type"]) == ("SERVER_BUSY", "server_error")
        assert rig.script.requests == []


async def test_an_engine_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_mirror, "RESTARTED_WITHIN", 0.05)
    async with scripted(state="CRASHED", error="It ran out of memory.\nA log line") as rig:
        status, document = await post(rig.http)
        assert (status, document["error"]["code"]) == (503, "SERVER_ERROR")
        assert document["error"]["message"] == (
            "The LLM engine crashed and did not come back: It ran out of memory. Start it again: genaid llm start MODEL"
        )
        async with rig.http.get("/openai/v1/models") as answer:
            assert await answer.json() == {"object": "list", "data": []}


async def test_a_caller_that_leaves_waits_no_more() -> None:
    async with scripted(state="STARTING") as rig:
        request = asyncio.create_task(post(rig.http))
        await until(lambda: running("_handle_request") == 1)
        request.cancel()
        await until(lambda: running("_handle_request") == 0)
        rig.manager.set("RUNNING", at=rig.at)
        assert (await post(rig.http))[0] == 200
        assert len(rig.script.requests) == 1


async def test_a_caller_that_leaves_is_answered_no_more() -> None:
    left = asyncio.Event()

    async def hangs(_: web.Request) -> web.StreamResponse:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    async with scripted(hangs) as rig:
        request = asyncio.create_task(post(rig.http))
        await until(lambda: len(rig.script.requests) == 1)
        request.cancel()
        await left.wait()


async def test_the_end_of_the_gateway_is_the_end_of_the_wait() -> None:
    before = asyncio.all_tasks()
    script = LlmManager()
    script.set("STARTING")
    async with script.serve() as manager:
        async with AsyncExitStack() as clients:
            async with serving(manager) as address:
                reader, writer = await asyncio.open_connection(address.host, address.port)
                clients.callback(writer.close)
                lines = (
                    f"POST {CHAT} HTTP/1.1",
                    "Host: localhost",
                    "Content-Type: application/json",
                    "Content-Length: 2",
                )
                writer.write("\r\n".join((*lines, "", "{}")).encode())
                await until(lambda: running("_handle_request") == 1)
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"SERVER_ERROR"' in answer
    assert asyncio.all_tasks() == before


async def test_a_manager_that_is_not_there() -> None:
    async with scripted() as rig:
        await rig.peers.aclose()

        async def refused() -> bool:
            return (await post(rig.http))[0] == 503

        await until(refused)
        status, document = await post(rig.http)
        assert (status, document["error"]["code"]) == (503, "SERVER_ERROR")
        assert "resource manager can't be reached" in document["error"]["message"]


async def test_a_manager_that_comes_back() -> None:
    manager, script = LlmManager(), Script([fine])
    async with engine(script) as at:
        async with manager.serve() as address, gateway(address) as http:
            pass
        async with gateway(address) as http:
            assert (await post(http))[0] == 503
            manager.set("RUNNING", at=at)
            async with manager.serve(address):

                async def answered() -> bool:
                    return (await post(http))[0] == 200

                await until(answered)


async def test_a_manager_that_refuses_to_tell() -> None:
    manager = LlmManager()
    manager.refusal = ServerError("It is shutting down.")
    async with manager.serve() as address, gateway(address) as http:
        status, document = await post(http)
    assert status == 503
    assert document["error"]["code"] == "SERVER_ERROR"
    assert document["error"]["message"] == "It is shutting down."


async def test_a_gateway_without_a_manager() -> None:
    async with gateway("") as http:
        for method, path in (("POST", CHAT), ("GET", "/openai/v1/models")):
            async with http.request(method, path, json=HELLO) as answer:
                assert answer.status == 503
                assert "genaid up" in (await answer.json())["error"]["message"]


# --- requests that are wrong


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "code"),
    [
        ("GET", CHAT, {}, b"", 405, "INVALID_REQUEST"),
        ("POST", "/openai/v1/models", JSON, b"{}", 405, "INVALID_REQUEST"),
        ("POST", "/openai/v1/nowhere", JSON, b"{}", 404, "NOT_FOUND"),
        ("GET", "/openai", {}, b"", 404, "NOT_FOUND"),
        ("POST", CHAT, {"Content-Type": "text/plain"}, b"{}", 415, "INVALID_REQUEST"),
        ("POST", CHAT, {**JSON, "Content-Encoding": "gzip"}, b"{}", 415, "INVALID_REQUEST"),
        ("POST", CHAT, JSON, b'{"x": "%s"}' % (b"y" * 2000), 413, "INVALID_REQUEST"),
        ("POST", CHAT, JSON, b"", 400, "INVALID_REQUEST"),
        ("POST", CHAT, JSON, b'{"x":', 400, "INVALID_REQUEST"),
        ("POST", CHAT, JSON, b"[]", 400, "INVALID_REQUEST"),
        ("POST", CHAT, JSON, b'{"x": NaN}', 400, "INVALID_REQUEST"),
        ("POST", CHAT, JSON, b'"\xff"', 400, "INVALID_REQUEST"),
        ("POST", CHAT, JSON, b'{"x":%s}' % (b"9" * 1000), 200, ""),
        ("POST", CHAT, {**JSON, "Host": "evil.example"}, b"{}", 403, "INVALID_REQUEST"),
        ("POST", CHAT, {**JSON, "Origin": "http://evil.example"}, b"{}", 403, "INVALID_REQUEST"),
    ],
)
async def test_wrong_requests_never_reach_the_engine(
    method: str, path: str, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    async with scripted(max_body_bytes=1024) as rig:
        async with rig.http.request(method, path, data=body, headers=headers) as answer:
            assert answer.status == status
            document = await answer.json()
        if status == 200:
            assert len(rig.script.requests) == 1
            return
        error = document["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["param"]) == (code, None)
        assert error["message"]
        assert rig.script.requests == []


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"x": %s}' % (b"9" * 5000)])
async def test_json_that_python_can_not_hold(body: bytes) -> None:
    async with scripted() as rig, rig.http.post(CHAT, data=body, headers=JSON) as answer:
        assert answer.status == 400
        assert "Malformed JSON" in (await answer.json())["error"]["message"]


async def test_a_page_s_sdk_may_call() -> None:
    headers = {
        "Origin": "app://.",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    async with scripted() as rig:
        async with rig.http.options(CHAT, headers=headers) as answer:
            assert answer.status == 204
            allowed = set(answer.headers["Access-Control-Allow-Headers"].split(", "))
            assert {"Authorization", "Content-Type", "*"} <= allowed
        async with rig.http.post(CHAT, json=HELLO, headers={"Origin": "app://."}) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == "app://."
