"""What every test may use."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from genaid_server.demo import models

# A busy machine is no failure, and what is tried on one machine is tried again on another to look into it.
settings.register_profile("any machine", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("any machine")

# Where the tests run in the background of a shell script, programs that they start would never hear Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class DemoModels:
    """Small models with random weights that the real engines load."""

    llm: Path
    diffusion: Path


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> DemoModels:
    folder = tmp_path_factory.mktemp("models")
    return DemoModels(models.write_llm(folder / "llm.gguf"), models.write_diffusion(folder / "diffusion.gguf"))
