# Generated from ../aio/__init__.py by scripts/generate_sync.py; edit that file, then run `make sync`.
"""The blocking face: one method a call, typed results, typed errors."""

from genaid_client.sync.client import Client
from genaid_client.sync.connection import Target
from genaid_client.sync.downloads import DownloadCalls
from genaid_client.sync.engine import EngineCalls
from genaid_client.sync.images import ImageCalls
from genaid_client.sync.llm import LlmCalls
from genaid_client.sync.models import ModelCalls
from genaid_client.sync.orchestration import OrchestrationCalls
from genaid_client.sync.system import SystemCalls

__all__ = [
    "Client",
    "DownloadCalls",
    "EngineCalls",
    "ImageCalls",
    "LlmCalls",
    "ModelCalls",
    "OrchestrationCalls",
    "SystemCalls",
    "Target",
]
