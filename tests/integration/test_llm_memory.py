"""The estimate of a language model's memory against what the real engine takes."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from fakes import llama_memory
from genaid_server.demo.models import write_llm
from genaid_server.resource.core.fitting.llm_memory import batch, need
from genaid_server.resource.core.fitting.llm_shape import shape_of
from genaid_server.resource.core.fitting.model_shape import Pooling
from genaid_server.resource.core.fitting.plan import LlmOptions
from genaid_server.resource.core.formats.gguf import read_header

TOLERANCE = 0.15
CONTEXT = 32_768
PROGRAM = Path(llama_memory.__file__)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_llm(folder / "demo.gguf", context_length=CONTEXT)
    write_llm(folder / "words.gguf", context_length=CONTEXT, vocab=152_000)
    write_llm(folder / "deep.gguf", context_length=CONTEXT, layers=24)
    for kind in (Pooling.MEAN, Pooling.LAST):
        write_llm(folder / f"{kind.name}.gguf", context_length=CONTEXT, vocab=32_000, pooling=gguf.PoolingType(kind))
    return folder


def measured(model: Path, config: LlmOptions, *more: str) -> int:
    """Bytes of main memory that the engine takes once all contexts are full."""
    flags = [*more] if config.flash_attention else ["--no-flash-attention"]
    sizes = [f"--context={config.context_size}", f"--slots={config.parallel}"]
    run = subprocess.run([sys.executable, PROGRAM, model, *sizes, *flags], capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    return int(json.loads(run.stdout.splitlines()[-1])["resident_bytes"])


@pytest.mark.parametrize(
    ("file", "context", "slots", "flash_attention"),
    [
        ("demo.gguf", 512, 1, True),
        ("demo.gguf", 4096, 1, True),
        pytest.param("demo.gguf", 32_768, 1, True, marks=pytest.mark.long),
        ("demo.gguf", 4096, 4, True),
        ("demo.gguf", 4096, 1, False),
        ("words.gguf", 4096, 1, True),
        ("deep.gguf", 4096, 1, True),
    ],
    ids=["short", "medium", "long", "slots", "no flash attention", "vocabulary", "deep"],
)
def test_the_estimate_is_what_the_engine_takes(
    models: Path, file: str, context: int, slots: int, flash_attention: bool
) -> None:
    shape = shape_of([read_header(models / file)])
    assert shape is not None
    config = LlmOptions(threads=2, gpu_layers=0, context_size=context, parallel=slots, flash_attention=flash_attention)
    estimate = need(shape, config)
    assert estimate.exact
    assert estimate.vram.total == 0
    assert estimate.ram.total == pytest.approx(measured(models / file, config), rel=TOLERANCE)


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.LAST])
def test_the_estimate_of_an_embedding_model(models: Path, pooling: Pooling) -> None:
    file = models / f"{pooling.name}.gguf"
    shape = shape_of([read_header(file)])
    assert shape is not None
    config = LlmOptions(threads=2, gpu_layers=0, context_size=2048)
    found = measured(file, config, f"--embeddings={batch(pooling, config.context_size)}")
    assert need(shape, config).ram.total == pytest.approx(found, rel=TOLERANCE)
