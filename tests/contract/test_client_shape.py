"""What the client is made of: two faces of one shape, and what it does with one address, or a channel, or none."""

import asyncio
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest

import genaid_client
from contract.scripted import SERVICES, Script
from genaid_client import AsyncClient, Client, NoAddressError, aio, errors, sync

GROUPS = {
    "system": "resource",
    "models": "resource",
    "downloads": "resource",
    "llm": "resource",
    "orchestration": "resource",
    "engine": "image",
    "images": "image",
}
"""The groups of calls, each with the service that answers them."""

TYPES = [
    importlib.import_module(f"genaid_client.{module.name}")
    for module in pkgutil.iter_modules(genaid_client.__path__)
    if module.name.startswith("types")
]
"""The modules of what calls take and return."""


def calls(group: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(group, inspect.isfunction)
        if not name.startswith("_")
    }


def groups(client: type) -> dict[str, type]:
    found = inspect.getmembers(client, lambda member: hasattr(member, "func"))
    return {name: inspect.get_annotations(group.func)["return"] for name, group in found}


def test_both_faces_have_the_same_calls() -> None:
    def parameters(client: type) -> dict[tuple[str, str], Any]:
        return {
            (name, call): list(signature.parameters.values())
            for name, group in groups(client).items()
            for call, signature in calls(group).items()
        }

    assert parameters(AsyncClient) == parameters(Client)
    assert groups(AsyncClient).keys() == groups(Client).keys() == GROUPS.keys()


def test_every_method_of_every_service_has_a_call() -> None:
    source = "".join(inspect.getsource(group) for group in groups(AsyncClient).values())
    for service in SERVICES:
        for method in service.methods:
            assert f"self._stub.{method.name}," in source, method.full_name


@pytest.mark.parametrize("face", [aio, sync], ids=["asyncio", "blocking"])
def test_every_call_says_what_it_does(face: Any) -> None:
    client = AsyncClient if face is aio else Client
    for group in groups(client).values():
        assert group.__doc__
        for name in calls(group):
            assert getattr(group, name).__doc__, name


def test_the_blocking_face_speaks_of_no_asyncio() -> None:
    for group in (Client, *groups(Client).values()):
        source = inspect.getsource(inspect.getmodule(group) or group)
        text = source.split("\n", 1)[1]  # the notice above it names the file that it was generated from
        assert not {"async", "await", "asyncio", "aio"} & {*text.replace("`", " ").replace(".", " ").split()}


def test_everything_is_exported() -> None:
    public = {
        name
        for module in (errors, *TYPES)
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }
    faces = {*aio.__all__, *sync.__all__}
    assert {group.__name__ for client in (AsyncClient, Client) for group in groups(client).values()} < faces
    assert {name.removeprefix("Async") for name in aio.__all__} == {*sync.__all__}
    assert set(genaid_client.__all__) == public | faces | {"raise_for_failure"}
    assert all(hasattr(genaid_client, name) for name in genaid_client.__all__)


@pytest.mark.parametrize("client", [AsyncClient, Client])
@pytest.mark.parametrize(("group", "service"), GROUPS.items())
async def test_a_call_to_a_service_without_an_address(client: Callable[..., Any], group: str, service: str) -> None:
    (other,) = {"resource", "image"} - {service}
    made = client(**{other: "127.0.0.1:1"})
    with pytest.raises(NoAddressError) as raised:
        getattr(made, group)
    assert raised.value.reason == "NO_ADDRESS"
    assert raised.value.metadata == {"service": service}
    assert f"give `{service}`" in raised.value.message
    await asyncio.to_thread(made.close) if client is Client else await made.close()


async def test_one_asyncio_client_for_both_services(script: Script, address: str) -> None:
    async with AsyncClient(resource=address, image=address) as client:
        await client.llm.get()
        await client.engine.get()
    assert [name for name, _ in script.requests] == ["GetLlm", "GetEngine"]


async def test_one_blocking_client_for_both_services(script: Script, address: str) -> None:
    def ask() -> None:
        with Client(resource=address, image=address) as client:
            client.llm.get()
            client.engine.get()

    await asyncio.to_thread(ask)
    assert [name for name, _ in script.requests] == ["GetLlm", "GetEngine"]


async def test_a_channel_of_ones_own_stays_open(script: Script, address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        for _ in range(2):
            async with AsyncClient(resource=channel) as client:
                await client.llm.get()
    assert len(script.requests) == 2


async def test_a_blocking_channel_of_ones_own_stays_open(script: Script, address: str) -> None:
    def ask() -> None:
        with grpc.insecure_channel(address) as channel:
            for _ in range(2):
                with Client(resource=channel) as client:
                    client.llm.get()

    await asyncio.to_thread(ask)
    assert len(script.requests) == 2


def test_an_asyncio_client_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncClient(image="127.0.0.1:1")
