"""What a lease of the LLM is for: the estimate, until the engine was seen to take something else."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from genaid_server.resource.core.fitting.advisor import Advisor
from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.fitting.plan import LlmOptions
from genaid_server.resource.core.leases.plan import TenantKind
from genaid_server.resource.core.leases.usage import Usage, llm_key
from genaid_server.resource.core.llm.config import LlmEngineConfig, Serving
from genaid_server.resource.core.llm.deciding import Decider
from genaid_server.resource.core.store.store import ModelStore

CONFIG = LlmEngineConfig(
    model_id="qwen",
    model_path=Path("qwen.gguf"),
    size_bytes=1000,
    llm=LlmOptions(threads=1, gpu_layers=0, context_size=256),
    serving=Serving(),
    separates_reasoning=False,
    slot_save_path=Path("slots"),
    amount=Amount(50, 7),
)
NOBODY = cast("Advisor", None)  # is asked nothing
NOTHING = cast("ModelStore", None)


@pytest.fixture
def usage(tmp_path: Path) -> Usage:
    return Usage(tmp_path / "usage.json")


@pytest.fixture
def decider(usage: Usage, tmp_path: Path) -> Decider:
    return Decider(NOTHING, NOBODY, usage, tmp_path)


def seen(usage: Usage, peak: int, config: LlmEngineConfig = CONFIG) -> None:
    usage.learn(llm_key("qwen", 1000, config.llm, config.serving.memory_map), peak)


def test_before_it_has_run_it_is_estimated(decider: Decider) -> None:
    request = decider.lease_request(CONFIG, Amount(100, 100))
    assert (request.tenant_id, request.kind, request.model_id) == ("llm", TenantKind.LLM, "qwen")
    assert (request.amount, request.measured) == (Amount(50, 7), False)


@pytest.mark.parametrize(
    ("peak", "total", "ram"),
    [
        (30, 100, 30),
        (70, 100, 70),
        (120, 100, 100),  # it has run in that room
        (120, 40, 50),  # which is refused, by the estimate already
        (120, 0, 120),  # nobody knows the room yet
    ],
)
def test_what_was_seen_counts_but_refuses_nothing_that_fits(
    decider: Decider, usage: Usage, peak: int, total: int, ram: int
) -> None:
    seen(usage, peak)
    request = decider.lease_request(CONFIG, Amount(total))
    assert (request.amount, request.measured) == (Amount(ram, 7), True)


def test_another_configuration_is_another_size(decider: Decider, usage: Usage) -> None:
    seen(usage, 70, replace(CONFIG, llm=replace(CONFIG.llm, context_size=512)))
    assert not decider.lease_request(CONFIG, Amount(100)).measured


def test_an_engine_that_is_gone_has_shown_nothing(decider: Decider) -> None:
    decider.learn(CONFIG, 2**30)
    assert not decider.lease_request(CONFIG, Amount(100)).measured
