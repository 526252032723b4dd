"""The asyncio face: one method a call, typed results, typed errors."""

from genaid_client.aio.client import AsyncClient
from genaid_client.aio.connection import AsyncTarget
from genaid_client.aio.downloads import AsyncDownloadCalls
from genaid_client.aio.engine import AsyncEngineCalls
from genaid_client.aio.images import AsyncImageCalls
from genaid_client.aio.llm import AsyncLlmCalls
from genaid_client.aio.models import AsyncModelCalls
from genaid_client.aio.orchestration import AsyncOrchestrationCalls
from genaid_client.aio.system import AsyncSystemCalls

__all__ = [
    "AsyncClient",
    "AsyncDownloadCalls",
    "AsyncEngineCalls",
    "AsyncImageCalls",
    "AsyncLlmCalls",
    "AsyncModelCalls",
    "AsyncOrchestrationCalls",
    "AsyncSystemCalls",
    "AsyncTarget",
]
