"""A scripted server, and both faces of the client to talk to it."""

from collections.abc import AsyncIterator

import pytest

from contract.faces import RESOURCE, Connect
from contract.scripted import Script, serve


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def address(script: Script) -> AsyncIterator[str]:
    async with serve(script) as (address, _):
        yield address


@pytest.fixture(params=["asyncio", "blocking"])
def resource(request: pytest.FixtureRequest) -> Connect:
    return RESOURCE[request.param]
