"""The edges of HTTP: who may call, bodies that are none, methods, limits, and bytes that are no request."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest

from fakes.gateway import Rig, gateway, read_answer, rig, running, until
from genaid_server.gateway.http import app, connection
from genaid_server.gateway.images import rest
from genaid_server.kit.address import Address
from genaid_server.kit.errors import PortInUseError

CREATE = "/v1/images/generations"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def api() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request; names of headers are written with underscores."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def create(body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request for a generation."""
    return request("POST", CREATE, body, Host="localhost", Content_Type="application/json", **headers)


def error(body: bytes) -> tuple[str, str]:
    document = json.loads(body)
    assert document.keys() == {"error"}
    return document["error"]["code"], document["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8081", "127.9.9.9", "[::1]:8081"])
async def test_a_host_header_that_names_this_machine(api: Rig, host: str) -> None:
    status, _, body = await api.raw(request("GET", "/health", Host=host))
    assert (status, json.loads(body)["status"]) == (200, "ok")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8081", "127.0.0.1.evil.example", "192.168.0.2", ""])
@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/nowhere", CREATE])
async def test_a_rebound_name_is_refused(api: Rig, host: str, path: str) -> None:
    status, headers, body = await api.raw(request("GET", path, Host=host))
    assert (status, error(body)[0]) == (403, "INVALID_REQUEST")
    assert "access-control-allow-origin" not in headers


async def test_a_request_without_a_host_is_refused(api: Rig) -> None:
    status, _, body = await api.raw(b"GET /health HTTP/1.0\r\n\r\n")
    assert (status, error(body)[0]) == (403, "INVALID_REQUEST")


async def test_two_hosts_are_refused(api: Rig) -> None:
    status, _, _ = await api.raw(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
    assert status == 400


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:5173", "app://.", "file://", "tauri://localhost"],
)
async def test_pages_of_this_machine_and_of_applications_may_call(api: Rig, origin: str) -> None:
    async with api.http.post(CREATE, json={"prompt": "a tree"}, headers={"Origin": origin}) as answer:
        assert answer.status == 201
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Vary"] == "Origin"
        assert "ETag" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "https://localhost.evil.example", "http://192.168.0.2", "", "ws://evil.example"],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", CREATE), ("GET", "/health"), ("DELETE", CREATE + "/gen_1"), ("OPTIONS", CREATE)]
)
async def test_pages_of_strangers_may_not(api: Rig, method: str, path: str, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", **JSON}
    async with api.http.request(method, path, data=b'{"prompt": "a tree"}', headers=headers) as answer:
        assert answer.status == 403
        assert (await answer.json())["error"]["code"] == "INVALID_REQUEST"
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
    assert api.worker.specs == []


async def test_a_configured_origin_may_call() -> None:
    async with rig(allowed_origins=("https://app.example",)) as api:
        async with api.http.get("/health", headers={"Origin": "https://app.example"}) as answer:
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        async with api.http.get("/health", headers={"Origin": "https://other.example"}) as answer:
            assert answer.status == 403


async def test_errors_can_be_read_by_pages_that_may_call(api: Rig) -> None:
    async with api.http.get("/nowhere", headers={"Origin": "app://."}) as answer:
        assert answer.status == 404
        assert answer.headers["Access-Control-Allow-Origin"] == "app://."


async def test_an_event_stream_can_be_read_by_pages_that_may_call(api: Rig) -> None:
    generation_id = await api.post()
    async with api.http.get(f"{CREATE}/{generation_id}/events", headers={"Origin": "app://."}) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "app://."
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 200), ("same-origin", 200), ("none", 200)]
)
async def test_images_in_the_pages_of_strangers(api: Rig, site: str, status: int) -> None:
    async with api.http.get("/health", headers={"Sec-Fetch-Site": site}) as answer:
        assert answer.status == status


async def test_an_application_s_page_is_cross_site_and_may_call(api: Rig) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "app://."}
    async with api.http.get("/health", headers=headers) as answer:
        assert answer.status == 200


async def test_a_request_without_an_origin_gets_no_cors_headers(api: Rig) -> None:
    async with api.http.get("/health") as answer:
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
        assert answer.headers["Vary"] == "Origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Server"] == "genaid"


async def test_preflight(api: Rig) -> None:
    headers = {
        "Origin": "app://.",
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "content-type",
        "Access-Control-Request-Private-Network": "true",
    }
    async with api.http.options(CREATE + "/gen_1", headers=headers) as answer:
        assert answer.status == 204
        assert await answer.read() == b""
        assert answer.headers["Access-Control-Allow-Origin"] == "app://."
        assert answer.headers["Access-Control-Allow-Methods"] == "DELETE, GET, HEAD, OPTIONS"
        assert "Content-Type" in answer.headers["Access-Control-Allow-Headers"]
        assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_options_without_a_preflight(api: Rig) -> None:
    async with api.http.options(CREATE) as answer:
        assert answer.status == 204
        assert answer.headers["Allow"] == "OPTIONS, POST"
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CREATE, "OPTIONS, POST"),
        ("DELETE", CREATE, "OPTIONS, POST"),
        ("PUT", CREATE + "/gen_1", "DELETE, GET, HEAD, OPTIONS"),
        ("POST", CREATE + "/gen_1", "DELETE, GET, HEAD, OPTIONS"),
        ("POST", CREATE + "/gen_1/events", "GET, HEAD, OPTIONS"),
        ("DELETE", CREATE + "/gen_1/images/0", "GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("PATCH", "/openapi.json", "GET, HEAD, OPTIONS"),
        ("PROPFIND", "/health", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_wrong_method(api: Rig, method: str, path: str, allowed: str) -> None:
    async with api.http.request(method, path) as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == allowed
        assert (await answer.json())["error"]["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path",
    ["/", "/nowhere", CREATE + "/", "/health/", "/v1", "//health", CREATE + "/gen_1/images", "/openai/v1/nowhere"],
)
async def test_an_unknown_route(api: Rig, method: str, path: str) -> None:
    status, headers, body = await api.raw(request(method, path, Host="localhost", Expect="anything"))
    assert (status, error(body)) == (404, ("NOT_FOUND", "Not found"))
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert headers["cache-control"] == "no-store"


async def test_an_asterisk_and_a_query(api: Rig) -> None:
    status, _, body = await api.raw(request("OPTIONS", "*", Host="localhost"))
    assert (status, error(body)[0]) == (404, "NOT_FOUND")
    status, _, _ = await api.raw(request("GET", "/health?x=1", Host="localhost"))
    assert status == 200


@pytest.mark.parametrize("path", ["/health", "/openapi.json", CREATE + "/gen_1"])
async def test_head_is_get_without_the_body(api: Rig, path: str) -> None:
    await api.post()
    async with api.http.get(path) as get, api.http.head(path) as head:
        length = len(await get.read())
        assert (head.status, head.headers["Content-Length"]) == (200, str(length))
        assert await head.read() == b""


@pytest.mark.parametrize(
    "declared",
    [
        "",
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonp",
        "application/json; charset=utf-16",
        "json",
    ],
)
async def test_a_body_that_is_not_declared_as_json(api: Rig, declared: str) -> None:
    body = b'{"prompt": "a tree"}'
    status, _, answer = await api.raw(
        request("POST", CREATE, body, Host="localhost", Content_Type=declared, Content_Length=str(len(body)))
    )
    assert (status, error(answer)[0]) == (415, "INVALID_REQUEST")
    assert api.worker.specs == []


async def test_a_body_that_is_not_declared_at_all(api: Rig) -> None:
    body = b'{"prompt": "a tree"}'
    status, _, answer = await api.raw(request("POST", CREATE, body, Host="localhost", Content_Length=str(len(body))))
    assert (status, error(answer)[0]) == (415, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "declared", ["application/json; charset=utf-8", "Application/JSON", 'application/json;charset="UTF-8"']
)
async def test_ways_to_declare_json(api: Rig, declared: str) -> None:
    async with api.http.post(CREATE, data=b'{"prompt": "a tree"}', headers={"Content-Type": declared}) as answer:
        assert answer.status == 201


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x"])
async def test_a_compressed_body(api: Rig, encoding: str) -> None:
    headers = {"Content-Encoding": encoding, **JSON}
    async with api.http.post(CREATE, data=b'{"prompt": "a tree"}', headers=headers) as answer:
        assert answer.status == 415
        assert "compressed" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Missing request body"),
        (b"{", "Malformed JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"null", "JSON object"),
        (b'{"prompt": "a tree", "step": 4}', "Did you mean steps?"),
        (b'{"prompt": "a tree", "count": 6}', "count must be between 1 and 5"),
    ],
)
async def test_a_wrong_body(api: Rig, body: bytes, message: str) -> None:
    async with api.http.post(CREATE, data=body, headers=JSON) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == "INVALID_REQUEST"
        assert message in (await answer.json())["error"]["message"]
    assert api.worker.specs == []


def padded(size: int) -> bytes:
    return b'{"prompt": "a tree"}'.ljust(size)


async def test_the_largest_body() -> None:
    async with rig(max_body_bytes=2048) as api:
        async with api.http.post(CREATE, data=padded(2048), headers=JSON) as answer:
            assert answer.status == 201
        async with api.http.post(CREATE, data=padded(2049), headers=JSON) as answer:
            assert answer.status == 413
            assert (await answer.json())["error"]["code"] == "INVALID_REQUEST"
            assert "2048" in (await answer.json())["error"]["message"]


async def test_a_chunked_body_is_counted() -> None:
    async def chunks(total: int) -> AsyncIterator[bytes]:
        body = padded(total)
        for at in range(0, total, 256):
            yield body[at : at + 256]

    async with rig(max_body_bytes=2048) as api:
        async with api.http.post(CREATE, data=chunks(2048), headers=JSON) as answer:
            assert answer.status == 201
        async with api.http.post(CREATE, data=chunks(4096), headers=JSON) as answer:
            assert answer.status == 413


async def test_a_huge_body_is_refused_before_it_is_sent(api: Rig) -> None:
    status, headers, body = await api.raw(create(Expect="100-continue", Content_Length=str(2**40)))
    assert (status, error(body)[0]) == (413, "INVALID_REQUEST")
    assert headers["connection"] == "close"


async def test_a_body_that_waits_to_be_asked_for(api: Rig) -> None:
    body = b'{"prompt": "a tree"}'
    async with api.connection() as (reader, writer):
        writer.write(create(Expect="100-continue", Content_Length=str(len(body))))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await read_answer(reader))[0] == 201


async def test_a_body_that_never_comes(api: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.01)
    status, headers, body = await api.raw(create(b"{", Content_Length="20"))
    assert (status, error(body)[0]) == (408, "INVALID_REQUEST")
    assert headers["connection"] == "close"


async def test_a_body_with_wrong_chunks(api: Rig) -> None:
    status, _, body = await api.raw(create(b"zz\r\nnonsense\r\n", Transfer_Encoding="chunked"))
    assert (status, error(body)[0]) == (400, "INVALID_REQUEST")


async def test_a_body_with_wrong_chunks_later_on(api: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.01)  # one of the parsers of aiohttp leaves it at silence
    async with api.connection() as (reader, writer):
        writer.write(create(b"2\r\n{}\r\n", Transfer_Encoding="chunked"))
        await until(lambda: running("_handle_request") == 1)
        writer.write(b"zz\r\nnonsense\r\n")
        status, headers, body = await read_answer(reader)
    assert status in {400, 408}
    assert error(body)[0] == "INVALID_REQUEST"
    assert headers["connection"] == "close"


async def test_a_caller_that_leaves_in_the_middle_of_its_body(api: Rig) -> None:
    async with api.connection() as (_, writer):
        writer.write(create(b"{", Content_Length="20"))
        await until(lambda: running("_handle_request") == 1)
    await until(lambda: running("_handle_request") == 0)
    assert api.worker.specs == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /health HTTP/x.y\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_in_json(api: Rig, garbage: bytes) -> None:
    status, headers, body = await api.raw(garbage)
    assert (status, error(body)) == (400, ("INVALID_REQUEST", "Malformed HTTP request"))
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert (await api.poll("gen_9"))[0] == 404


async def test_headers_that_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SILENCE", 0.01)
    async with rig() as api, api.connection() as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nHo")
        assert await reader.read() == b""


async def test_a_connection_over_the_limit_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REFUSED_SILENCE", 0.01)
    async with rig(max_connections=1) as api, api.connection() as (held, writer):
        writer.write(request("GET", "/health", Host="localhost"))
        assert (await read_answer(held))[0] == 200
        async with api.connection() as (reader, _):
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.write(request("GET", "/health", Host="localhost"))
        assert (await read_answer(held))[0] == 200


async def test_a_stream_that_breaks_does_not_end_as_if_it_were_whole(
    api: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    generation_id = await api.post()
    monkeypatch.delattr(rest, "event")
    async with api.connection() as (reader, writer):
        writer.write(request("GET", f"{CREATE}/{generation_id}/events", Host="localhost"))
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"0\r\n\r\n" not in answer.partition(b"\r\n\r\n")[2]
    assert "failed unexpectedly" in caplog.text


async def test_a_bug_is_answered_without_internals(
    api: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(rest, "health")
    async with api.http.get("/health") as answer:
        assert answer.status == 500
        assert (await answer.json())["error"]["code"] == "INTERNAL_ERROR"
        assert "attribute" not in await answer.text()
    assert "attribute 'health'" in caplog.text


async def test_pipelined_requests(api: Rig) -> None:
    async with api.connection() as (reader, writer):
        writer.write(request("GET", "/health", Host="localhost") + request("GET", "/nowhere", Host="localhost"))
        assert [(await read_answer(reader))[0] for _ in range(2)] == [200, 404]


async def test_too_many_connections() -> None:
    health = request("GET", "/health", Host="localhost")

    async with rig(max_connections=2) as made:

        async def there_is_room() -> bool:
            status, _, _ = await made.raw(health)
            return status == 200

        async with made.connection() as first, made.connection() as second:
            for reader, writer in (first, second):
                writer.write(health)
                assert (await read_answer(reader))[0] == 200
            status, headers, body = await made.raw(health)
            assert (status, error(body)[0]) == (503, "SERVER_BUSY")
            assert headers["connection"] == "close"
            assert int(headers["retry-after"]) >= 1
        await until(there_is_room)


async def test_a_taken_port() -> None:
    async with gateway(Address("127.0.0.1", 9)) as address:
        with pytest.raises(PortInUseError):
            async with gateway(Address("127.0.0.1", 9), listen=address):
                raise AssertionError("it must not start")


async def test_the_address_is_free_again_after_the_end() -> None:
    async with gateway(Address("127.0.0.1", 9)) as address:
        pass
    async with gateway(Address("127.0.0.1", 9), listen=address) as again:
        assert again == address


async def test_nothing_is_left_behind() -> None:
    before = asyncio.all_tasks()
    async with AsyncExitStack() as clients:
        async with rig() as api:
            generation_id = await api.post()
            events, writer = await clients.enter_async_context(api.connection())
            writer.write(request("GET", f"{CREATE}/{generation_id}/events", Host="localhost"))
            await events.readuntil(b"data: ")
            silent, _ = await clients.enter_async_context(api.connection())
            half, writer = await clients.enter_async_context(api.connection())
            writer.write(b"GET /health HTTP/1.1\r\nHo")
        assert (await events.read()).endswith(b"\r\n0\r\n\r\n")
        assert await silent.read() == b""
        assert await half.read() == b""
    assert asyncio.all_tasks() == before


async def test_the_end_does_not_wait_for_a_worker_that_hangs() -> None:
    before = asyncio.all_tasks()
    body = b'{"prompt": "a tree"}'
    async with AsyncExitStack() as clients:
        async with rig() as api:
            api.worker.misbehaviour.hang |= {"GetGeneration", "CreateGeneration"}
            poll, writer = await clients.enter_async_context(api.connection())
            writer.write(request("GET", f"{CREATE}/gen_1", Host="localhost"))
            post, writer = await clients.enter_async_context(api.connection())
            writer.write(create(body, Content_Length=str(len(body))))
            await until(lambda: api.worker.calls["GetGeneration"] + api.worker.calls["CreateGeneration"] == 2)
        assert await poll.read() == b""
        assert await post.read() == b""
    assert asyncio.all_tasks() == before
