"""A resource manager that can't listen where it should: what is to come back, of that it forgets nothing."""

import socket
from pathlib import Path

import pytest

from conftest import DemoModels
from genaid_client import ServerState
from genaid_server import settings as configuration
from genaid_server.kit.errors import PortInUseError
from genaid_server.resource import main as resource
from llm_service import llm_service
from world.stage import saved_file


async def test_a_manager_whose_port_is_taken_keeps_what_is_to_come_back(
    tmp_path: Path, demo_models: DemoModels
) -> None:
    async with llm_service(tmp_path, demo_models.llm) as service:
        await service.client.llm.start(demo_models.llm.stem)
        left_by_a_kill = saved_file(tmp_path).read_bytes()
    saved_file(tmp_path).write_bytes(left_by_a_kill)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        config = configuration.load(flags={"data_dir": tmp_path, "resource": {"listen": listen}, "llm": {"port": 0}})
        with pytest.raises(PortInUseError):
            async with resource.serve(config):
                pass
    assert saved_file(tmp_path).exists()
    async with llm_service(tmp_path) as service:
        await service.until(lambda llm: llm.state is ServerState.RUNNING)
