"""What every test may use."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from genaid_server.demo import models


@dataclass(frozen=True)
class DemoModels:
    """Small models with random weights that the real engines load."""

    llm: Path
    diffusion: Path


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> DemoModels:
    folder = tmp_path_factory.mktemp("models")
    return DemoModels(models.write_llm(folder / "llm.gguf"), models.write_diffusion(folder / "diffusion.gguf"))
