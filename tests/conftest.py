"""What every test may use."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from genaid_server.demo import models

# A busy machine is no failure, and what is tried on one machine is tried again on another to look into it.
settings.register_profile("any machine", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("any machine")


@dataclass(frozen=True)
class DemoModels:
    """Small models with random weights that the real engines load."""

    llm: Path
    diffusion: Path


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> DemoModels:
    folder = tmp_path_factory.mktemp("models")
    return DemoModels(models.write_llm(folder / "llm.gguf"), models.write_diffusion(folder / "diffusion.gguf"))
