"""What is said of a diffusion model's memory holds against what the real engine takes."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from conftest import DemoModels
from genaid_server.demo.models import write_diffusion_parts
from genaid_server.resource.core.fitting.diffusion_memory import need
from genaid_server.resource.core.fitting.diffusion_shape import TensorPart, shape_of
from genaid_server.resource.core.formats.gguf import read_header
from genaid_server.resource.core.store.model import Component
from genaid_server.supervision.process import SPINS

PROGRAM = Path(__file__).parents[1] / "fakes" / "diffusion_memory.py"
# Threads that spin while they wait make this ten times slower on a busy machine.
ENVIRONMENT = {"GOMP_SPINCOUNT": SPINS}
NAMES = {
    Component.MODEL: "model_path",
    Component.DIFFUSION_MODEL: "diffusion_model_path",
    Component.CLIP_L: "clip_l_path",
    Component.TAE: "taesd_path",
}


async def measure(files: Mapping[Component, Path], width: int, height: int, *flags: str) -> dict[str, int]:
    """Have a process of its own draw a picture, and return what that took."""
    paths = json.dumps({NAMES[component]: str(path) for component, path in files.items()})
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *(str(PROGRAM), paths, str(width), str(height), *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | ENVIRONMENT,
    )
    try:
        output, errors = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == 0, errors[-2000:].decode(errors="replace")
    found: dict[str, int] = json.loads(output.splitlines()[-1])
    return found


async def compare(files: Mapping[Component, Path], width: int, height: int, *, tiling: bool = False) -> None:
    """The estimate is within 15 % of the peak."""
    shape = shape_of([TensorPart.from_gguf(read_header(path), component) for component, path in files.items()])
    assert shape is not None
    estimate = need(shape, width=width, height=height, gpu=False, vae_tiling=tiling)
    measured = await measure(files, width, height, *(["--vae-tiling"] if tiling else []))
    assert estimate.vram.total == 0
    assert shape.weights <= measured["loaded"] <= estimate.ram.weights + estimate.ram.overhead
    assert estimate.ram.total == pytest.approx(measured["peak"], rel=0.15), measured


@pytest.mark.parametrize("edge", [64, 256, 512])
async def test_the_whole_model(demo_models: DemoModels, edge: int) -> None:
    await compare({Component.MODEL: demo_models.diffusion}, edge, edge)


async def test_a_picture_in_tiles(demo_models: DemoModels) -> None:
    await compare({Component.MODEL: demo_models.diffusion}, 512, 256, tiling=True)


async def test_a_model_of_several_files_with_a_tiny_autoencoder(tmp_path: Path) -> None:
    parts = {Component(role): path for role, path in write_diffusion_parts(tmp_path).items()}
    await compare(parts, 256, 256)
