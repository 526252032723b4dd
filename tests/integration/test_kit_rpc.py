"""A server as every service runs it, over a real connection: errors, health, reflection, and an end in order."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from genaid.image.v1 import engine_pb2, engine_pb2_grpc
from genaid_server.kit import errors, rpc
from genaid_server.kit.address import Address, listening_socket
from genaid_server.kit.errors import BackendError, DomainError, ModelNotFoundError, PortInUseError
from genaid_server.kit.watchable import Watchable

ANYWHERE = Address("127.0.0.1", 0)
ENGINE = "genaid.image.v1.EngineService"
GUARD = 30.0  # seconds: the deadline of calls that must not hang

CODES = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ServerBusyError: grpc.StatusCode.UNAVAILABLE,
    errors.AlreadyTerminalError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ServerError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PortInUseError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InsufficientResourcesError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.BackendError: grpc.StatusCode.INTERNAL,
    errors.IoError: grpc.StatusCode.INTERNAL,
    errors.FileSystemError: grpc.StatusCode.INTERNAL,
    errors.ChecksumError: grpc.StatusCode.DATA_LOSS,
    errors.DownloadError: grpc.StatusCode.UNAVAILABLE,
    errors.BinaryError: grpc.StatusCode.FAILED_PRECONDITION,
}

type Context = grpc.aio.ServicerContext[object, object]


@dataclass
class Script(engine_pb2_grpc.EngineServiceServicer):
    """An EngineService that does what the test says."""

    failure: BaseException | None = None
    engines: Watchable[int] = field(default_factory=lambda: Watchable(0))
    flood: bool = False
    calls: int = 0
    inside: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetEngine(  # noqa: N802
        self, request: engine_pb2.GetEngineRequest, context: Context
    ) -> engine_pb2.GetEngineResponse:
        if self.failure is not None:
            raise self.failure
        return engine_pb2.GetEngineResponse(engine=engine_pb2.Engine(model_id="a"))

    async def StartEngine(  # noqa: N802
        self, request: engine_pb2.StartEngineRequest, context: Context
    ) -> engine_pb2.StartEngineResponse:
        self.inside.set()
        try:
            await self.release.wait()
        finally:
            self.left.set()
        return engine_pb2.StartEngineResponse(engine=engine_pb2.Engine(model_id=request.model_id))

    async def StopEngine(  # noqa: N802
        self, request: engine_pb2.StopEngineRequest, context: Context
    ) -> engine_pb2.StopEngineResponse:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        raise AssertionError

    async def WatchEngine(  # noqa: N802
        self, request: engine_pb2.WatchEngineRequest, context: Context
    ) -> AsyncIterator[engine_pb2.WatchEngineResponse]:
        self.calls += 1
        try:
            while self.flood:
                yield engine_pb2.WatchEngineResponse(engine=engine_pb2.Engine(model_id="x" * 100_000))
            async for number in self.engines.watch():
                yield engine_pb2.WatchEngineResponse(engine=engine_pb2.Engine(model_id=str(number)))
                if self.failure is not None:
                    raise self.failure
        finally:
            self.left.set()


@dataclass(frozen=True)
class Served:
    """A server and a client of it."""

    script: Script
    address: Address
    channel: grpc.aio.Channel
    stub: "engine_pb2_grpc.EngineServiceAsyncStub"

    def watch(self) -> "grpc.aio.UnaryStreamCall[engine_pb2.WatchEngineRequest, engine_pb2.WatchEngineResponse]":
        return self.stub.WatchEngine(engine_pb2.WatchEngineRequest(), timeout=GUARD)

    async def failing_call(self) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.stub.GetEngine(engine_pb2.GetEngineRequest(), timeout=GUARD)
        return raised.value

    async def failing_stream(self) -> grpc.aio.AioRpcError:
        seen: list[engine_pb2.WatchEngineResponse] = []
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await read_all(self.watch(), seen)
        assert [response.engine.model_id for response in seen] == ["0"]
        return raised.value


def new_script() -> Script:
    """A script: what it leaves out is never called."""
    return Script()  # type: ignore[abstract]


async def read_all(call: Any, seen: list[Any]) -> None:
    """Read a stream to its end; what was read before a failure is in `seen`."""
    while (response := await call.read()) is not grpc.aio.EOF:
        seen.append(response)


def service(script: Script) -> rpc.Service:
    return rpc.Service(ENGINE, lambda server: engine_pb2_grpc.add_EngineServiceServicer_to_server(script, server))


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(str(address), options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


_CHANNELS: list[grpc.aio.Channel] = []  # of the present test; open until its end, to read what a server left


@asynccontextmanager
async def serving(
    end_watches: Callable[[Script], None] = lambda script: script.engines.close(),
    others: Sequence[rpc.Service] = (),
) -> AsyncIterator[Served]:
    """Serve a script until the block ends; the client outlives the server."""
    script = new_script()
    async with rpc.serve(ANYWHERE, [service(script), *others], lambda: end_watches(script)) as address:
        channel = grpc.aio.insecure_channel(str(address), options=[("grpc.enable_http_proxy", 0)])
        served = Served(script, address, channel, engine_pb2_grpc.EngineServiceStub(channel))
        _CHANNELS.append(channel)
        yield served


@pytest.fixture(autouse=True)
async def _close_channels() -> AsyncIterator[None]:
    yield
    while _CHANNELS:
        await _CHANNELS.pop().close()


def error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The one ErrorInfo of a status."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    (detail,) = status.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    return info


# Errors


def test_the_table_of_codes_is_complete() -> None:
    assert set(CODES) == set(DomainError.__subclasses__())


@pytest.mark.parametrize("streaming", [False, True])
async def test_every_domain_error_has_its_code_and_one_error_info(streaming: bool) -> None:
    async with serving() as served:
        for kind, code in CODES.items():
            served.script.failure = kind("Something is wrong.", field="prompt", limit="5")
            error = await (served.failing_stream() if streaming else served.failing_call())
            assert (error.code(), error.details()) == (code, "Something is wrong.")
            info = error_info(error)
            assert (info.reason, info.domain) == (kind.reason, "genaid")
            assert dict(info.metadata) == {"field": "prompt", "limit": "5"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("failure", [KeyError("secret"), asyncio.CancelledError(), RecursionError("secret")])
async def test_what_is_not_expected_is_internal_and_logged_without_a_word_on_the_wire(
    failure: BaseException, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        served.script.failure = failure
        error = await (served.failing_stream() if streaming else served.failing_call())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "Internal error; the service's log has the details."
    assert rpc_status.from_call(error) is None  # type: ignore[arg-type]
    (record,) = [record for record in caplog.records if record.name == rpc.__name__]
    assert record.levelno == logging.ERROR
    assert f"/{ENGINE}/{'WatchEngine' if streaming else 'GetEngine'}" in record.getMessage()
    assert record.exc_info is not None
    assert type(failure) is record.exc_info[0]


@pytest.mark.parametrize("text", ["a", "\n", "é", "\N{GRINNING FACE}", "%"])
async def test_the_longest_message_and_facts_arrive(text: str) -> None:
    async with serving() as served:
        served.script.failure = BackendError(f"begin {text * 100_000} end", field="x", model=text * 100_000)
        error = await served.failing_call()
    assert error.code() is grpc.StatusCode.INTERNAL
    details = error.details() or ""
    assert details.startswith(f"begin {text}")
    assert details.endswith(f"{text} end")
    info = error_info(error)
    assert info.reason == "BACKEND_ERROR"
    assert info.metadata["field"] == "x"
    assert text in info.metadata["model"]


async def test_text_that_is_no_unicode_does_not_hide_the_error() -> None:
    async with serving() as served:
        served.script.failure = ModelNotFoundError("No file \udcff.gguf", model="\udcff")
        error = await served.failing_call()
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "No file ?.gguf")
    assert error_info(error).metadata["model"] == "?"


async def test_a_servicer_that_aborts_by_itself_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await served.stub.StopEngine(engine_pb2.StopEngineRequest(), timeout=GUARD)
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNAUTHENTICATED, "who are you?")
    assert [record for record in caplog.records if record.name == rpc.__name__] == []


async def test_calls_that_send_streams_are_guarded_as_well() -> None:
    async def unary(requests: AsyncIterator[bytes], context: Context) -> bytes:
        raise ModelNotFoundError(f"after {len([request async for request in requests])}")

    async def stream(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
        raise ModelNotFoundError("after all")

    handlers: dict[str, Any] = {
        "Unary": grpc.stream_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    other = rpc.Service(
        "genaid.test.Other",
        lambda server: server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("genaid.test.Other", handlers),)
        ),
    )

    async def requests() -> AsyncIterator[bytes]:
        for letter in (b"a", b"b"):
            yield letter

    async with serving(others=[other]) as served:
        channel: Any = served.channel
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.stream_unary("/genaid.test.Other/Unary")(requests(), timeout=GUARD)
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.NOT_FOUND, "after 2")
        seen: list[bytes] = []
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await read_all(channel.stream_stream("/genaid.test.Other/Stream")(requests(), timeout=GUARD), seen)
        assert seen == [b"a", b"b"]
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.NOT_FOUND, "after all")


async def test_a_message_that_is_too_large_is_refused() -> None:
    async with serving() as served:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await served.stub.StartEngine(
                engine_pb2.StartEngineRequest(model_id="x" * (rpc.MAX_MESSAGE + 1)), timeout=GUARD
            )
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await served.stub.GetEngine(engine_pb2.GetEngineRequest(), timeout=GUARD)).engine.model_id == "a"


# Clients that leave


@pytest.fixture
def _unlogged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record for record in caplog.get_records("call") if record.name == rpc.__name__] == []


@pytest.mark.usefixtures("_unlogged")
async def test_a_client_that_cancels_ends_the_servicer_that_waits() -> None:
    async with serving() as served:
        call = served.watch()
        await call.read()
        call.cancel()
        await asyncio.wait_for(served.script.left.wait(), GUARD)


@pytest.mark.usefixtures("_unlogged")
async def test_a_client_that_cancels_without_reading_ends_the_servicer_that_sends() -> None:
    async with serving() as served:
        served.script.flood = True
        call = served.watch()
        await call.read()
        call.cancel()
        await asyncio.wait_for(served.script.left.wait(), GUARD)
        served.script.flood = False


@pytest.mark.usefixtures("_unlogged")
async def test_a_client_that_cancels_ends_a_call_that_computes() -> None:
    async with serving() as served:
        call = served.stub.StartEngine(engine_pb2.StartEngineRequest(), timeout=GUARD)
        await served.script.inside.wait()
        call.cancel()
        await asyncio.wait_for(served.script.left.wait(), GUARD)


@pytest.mark.usefixtures("_unlogged")
async def test_a_client_that_goes_away_ends_the_servicer() -> None:
    async with serving() as served:
        async with connected(served.address) as channel:
            call = engine_pb2_grpc.EngineServiceStub(channel).WatchEngine(engine_pb2.WatchEngineRequest())
            await call.read()
        await asyncio.wait_for(served.script.left.wait(), GUARD)


# Health and reflection


def health_stub(served: Served) -> Any:
    return health_pb2_grpc.HealthStub(served.channel)


async def test_health_is_told_of_each_service_and_of_all() -> None:
    async with serving() as served:
        health = health_stub(served)
        for name in ("", ENGINE):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=GUARD)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health.Check(health_pb2.HealthCheckRequest(service="genaid.Other"), timeout=GUARD)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["", ENGINE])
async def test_whoever_watches_the_health_sees_the_end(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(rpc, "STOP_GRACE", 0.05)  # nobody ends a watch of the health
    async with serving() as served:
        health = health_stub(served)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=GUARD)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_lists_the_services_and_knows_their_messages() -> None:
    async with serving() as served:
        channel: Any = served.channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=ENGINE),
        ]
        listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(requests), timeout=GUARD)]
    assert {service.name for service in listed.list_services_response.service} == {
        ENGINE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert described.file_descriptor_response.file_descriptor_proto


# The end


async def test_open_watches_end_well_and_are_not_cut_off() -> None:
    async with serving() as served:
        calls = [served.watch() for _ in range(20)]
        for call in calls:
            await call.read()
    assert served.script.calls == len(calls)
    assert [await call.read() for call in calls] == [grpc.aio.EOF] * len(calls)
    assert [await call.code() for call in calls] == [grpc.StatusCode.OK] * len(calls)


async def test_a_call_in_flight_may_finish_after_the_watches_have_ended() -> None:
    async with serving(end_watches=lambda script: script.release.set()) as served:
        call = served.stub.StartEngine(engine_pb2.StartEngineRequest(model_id="a"), timeout=GUARD)
        await served.script.inside.wait()
    assert (await call).engine.model_id == "a"


async def test_a_call_that_does_not_finish_is_cut_off_after_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "STOP_GRACE", 0.05)
    async with serving() as served:
        call = served.stub.StartEngine(engine_pb2.StartEngineRequest(), timeout=GUARD)
        await served.script.inside.wait()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    await asyncio.wait_for(served.script.left.wait(), GUARD)


async def test_the_end_is_complete_even_if_it_is_cancelled() -> None:
    ready = asyncio.Event()
    addresses: list[Address] = []

    async def run() -> None:
        async with rpc.serve(ANYWHERE, [service(new_script())], lambda: None) as address:
            addresses.append(address)
            ready.set()
            await asyncio.Event().wait()

    server = asyncio.create_task(run())
    await ready.wait()
    for _ in range(3):
        server.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([server])
    assert server.cancelled()
    listening_socket(addresses[0]).close()


async def test_a_failure_of_the_block_or_of_ending_watches_still_stops_the_server() -> None:
    def fail() -> None:
        raise RuntimeError("watches")

    with pytest.raises(RuntimeError, match="watches"):
        async with rpc.serve(ANYWHERE, [service(new_script())], fail) as address:
            raise KeyError
    listening_socket(address).close()


# The port


async def test_a_port_that_something_else_listens_on_is_told() -> None:
    with listening_socket(ANYWHERE) as listener:
        taken = ANYWHERE.with_port(listener.getsockname()[1])
        with pytest.raises(PortInUseError) as raised:
            async with rpc.serve(taken, [service(new_script())], lambda: None):
                pass
    assert raised.value.facts["port"] == str(taken.port)


async def test_two_servers_never_share_a_port() -> None:
    async with serving() as served:
        with pytest.raises(PortInUseError):
            async with rpc.serve(served.address, [service(new_script())], lambda: None):
                pass
        assert (await served.stub.GetEngine(engine_pb2.GetEngineRequest(), timeout=GUARD)).engine.model_id == "a"


async def test_the_yielded_address_has_the_real_port() -> None:
    async with serving() as served:
        assert served.address.host == "127.0.0.1"
        assert served.address.port > 0
