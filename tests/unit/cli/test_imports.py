"""What a command imports before it does anything: a start is paid for by whoever waits for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SERVERS = {"pydantic", "rich", "numpy", "gguf", "huggingface_hub", "httpx2", "PIL", "cyllama", "xllamacpp", "pynvml"}
CLIENTS = SERVERS | {"aiohttp"}
SERVICES = ("genaid_server.resource", "genaid_server.image", "genaid_server.gateway")

PROGRAM = """
import sys
from genaid_server.cli import main
before = dict(main.os.environ)
main.load_command(sys.argv[1])
assert dict(main.os.environ) == before, "the environment has changed"
print(*sys.modules)
"""


def imported(command: str, **environment: str) -> set[str]:
    argv = [sys.executable, "-c", PROGRAM, command]
    answer = subprocess.run(argv, check=True, capture_output=True, text=True, env=os.environ | environment)
    return set(answer.stdout.split())


@pytest.mark.parametrize("command", ["up", "resource-manager", "image-worker", "gateway"])
def test_a_service_starts_without_what_only_some_requests_need(command: str) -> None:
    modules = imported(command)
    assert "genaid_server.resource.main" in modules
    assert modules & SERVERS == set()


@pytest.mark.parametrize("command", ["status", "engine"])
def test_a_question_is_asked_without_what_serves_and_draws(command: str) -> None:
    modules = imported(command)
    assert "genaid_client.sync" in modules
    assert modules & CLIENTS == set()
    # Where a service listens is a setting of it; besides the module with those nothing of a service is imported.
    settings = {name for service in SERVICES for name in (service, f"{service}.config")}
    assert {name for name in modules if name.startswith(SERVICES)} == settings


def test_the_certificates_that_somebody_has_chosen_stay_chosen(tmp_path: Path) -> None:
    assert "aiohttp" in imported("up", SSL_CERT_FILE=str(tmp_path / "certificates.pem"), SSL_CERT_DIR="")


def test_a_running_service_has_not_imported_what_it_does_not_need(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from contextlib import AsyncExitStack
from pathlib import Path
from genaid_server.cli.main import load_command
load_command("up")
from genaid_server.gateway import main as gateway
from genaid_server.image import main as image
from genaid_server.settings import load
from genaid_server.resource import main as resource

async def main():
    listen = {"listen": "127.0.0.1:0"}
    config = load(None, {"data_dir": sys.argv[1], "gateway": listen, "resource": listen, "image": listen})
    async with AsyncExitStack() as services:
        manager = str(await services.enter_async_context(resource.serve(config)))
        worker = str(await services.enter_async_context(image.serve(config, manager)))
        await services.enter_async_context(gateway.serve(config, worker, resource=manager))
        print(*sys.modules)

asyncio.run(main())
"""
    argv = [sys.executable, "-c", program, str(tmp_path)]
    answer = subprocess.run(argv, check=True, capture_output=True, text=True)
    modules = set(answer.stdout.split())
    assert "aiohttp.web" in modules
    assert modules & SERVERS == set()
