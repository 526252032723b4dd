"""The store that the tests of the store work on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from genaid_server.resource.core.store.store import ModelStore
from unit.store.store_files import Staging


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ModelStore]:
    opened = await ModelStore.open(tmp_path / "data")
    yield opened
    await opened.close()


@pytest.fixture
def staging(store: ModelStore) -> Staging:
    return Staging(store)
