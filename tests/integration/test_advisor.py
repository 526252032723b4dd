"""How a language model is started on recorded machines: where its layers go, and what a caller leaves open."""

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import recorded_machines
from conftest import DemoModels
from genaid_server.kit.errors import InsufficientResourcesError, InvalidRequestError
from genaid_server.resource.core.fitting.advisor import Advisor
from genaid_server.resource.core.fitting.capacity import Budgets
from genaid_server.resource.core.fitting.plan import LayerPlacement, LlmWishes
from genaid_server.resource.core.llm.devices import engine_gpus
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.core.system.survey import Survey
from genaid_server.supervision.notes import noted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows can't have the names of files of sysfs")

NOTHING = LlmWishes()
MIB = 2**20


@asynccontextmanager
async def advisor(folder: Path, machine: str, model: Path, budgets: Budgets | None = None) -> AsyncIterator[Advisor]:
    """An advisor on a recorded machine, with one language model, `demo`."""
    store = await ModelStore.open(folder / "data")
    store.inbox.mkdir(exist_ok=True)
    (store.inbox / model.name).hardlink_to(model)
    await store.import_file(model.name, name="demo", model_type=None, model_id="demo", request_id="")
    recorded = recorded_machines.materialize(machine, folder)
    async with Survey(recorded, folder / "data", probe_timeout=60.0) as survey:
        yield Advisor(store, survey, budgets or Budgets())
    await store.close()


def gpus(count: int) -> Callable[[], Awaitable[int]]:
    async def told() -> int:
        return count

    return told


async def test_an_engine_that_can_use_the_gpu_gets_all_layers_there(tmp_path: Path, demo_models: DemoModels) -> None:
    async with advisor(tmp_path, "nvidia-3090", demo_models.llm) as advice:
        given = await advice.choose("demo", NOTHING, gpus(1))
        assert (given.placement, given.config.gpu_layers) == (LayerPlacement.FULL, 2)
        assert (await advice.choose("demo", NOTHING)).config.gpu_layers == 2


async def test_an_engine_that_can_not_gets_none_and_the_reason_says_so(tmp_path: Path, demo_models: DemoModels) -> None:
    async with advisor(tmp_path, "nvidia-3090", demo_models.llm) as advice:
        given = await advice.choose("demo", NOTHING, gpus(0))
        assert (given.placement, given.config.gpu_layers, given.need.vram.total) == (LayerPlacement.CPU, 0, 0)
        assert given.reasons["gpu_layers"] == "The installed build of the LLM engine computes on the processor alone."
        with pytest.raises(InsufficientResourcesError, match="no GPU memory"):
            await advice.choose("demo", LlmWishes(gpu_layers=2), gpus(0))


async def test_the_engine_is_not_asked_where_there_is_no_gpu(tmp_path: Path, demo_models: DemoModels) -> None:
    async def unasked() -> int:
        raise AssertionError

    async with advisor(tmp_path, "cores-8", demo_models.llm) as advice:
        assert (await advice.choose("demo", NOTHING, unasked)).config.gpu_layers == 0


async def test_what_is_left_open_are_the_documented_defaults(tmp_path: Path, demo_models: DemoModels) -> None:
    async with advisor(tmp_path, "cores-2", demo_models.llm) as advice:
        given = await advice.choose("demo", NOTHING)
        assert (given.config.context_size, given.config.parallel, given.config.threads) == (2048, 4, 2)
        assert not given.context_reduced
        assert given.reasons["context_size"] == "It is all that the model was trained for."
        wished = await advice.choose("demo", LlmWishes(context_size=512, parallel=1, threads=1))
        assert (wished.config.context_size, wished.config.parallel, wished.config.threads) == (512, 1, 1)


async def test_fewer_slots_are_taken_where_more_do_not_fit(tmp_path: Path, demo_models: DemoModels) -> None:
    async with advisor(tmp_path, "cores-2", demo_models.llm) as advice:
        needs = [(await advice.choose("demo", LlmWishes(parallel=slots))).need.ram.total for slots in (1, 2, 4)]
        between = (needs[0] + needs[1]) // 2 * 10 // 9  # a tenth is left free
    async with advisor(tmp_path / "small", "cores-2", demo_models.llm, Budgets(ram=between)) as advice:
        assert (await advice.choose("demo", NOTHING)).config.parallel == 1
        with pytest.raises(InsufficientResourcesError) as error:
            await advice.choose("demo", LlmWishes(parallel=4))
        assert int(error.value.facts["required"]) > int(error.value.facts["available"])
        assert error.value.facts["suggestion"]


@pytest.mark.parametrize("kind", ["llm", "image"])
async def test_engines_that_run_count_as_gone(tmp_path: Path, demo_models: DemoModels, kind: str) -> None:
    """This test's own process plays the engine: it holds far more than the budget."""
    async with advisor(tmp_path, "cores-2", demo_models.llm, Budgets(ram=60 * MIB)) as advice:
        with noted(tmp_path / "data", kind, "other", os.getpid()):
            assert not (await advice.check("demo")).possible
            assert (await advice.choose("demo", NOTHING)).fits


async def test_ranges_are_checked(tmp_path: Path, demo_models: DemoModels) -> None:
    async with advisor(tmp_path, "cores-2", demo_models.llm) as advice:
        with pytest.raises(InvalidRequestError, match="parallel"):
            await advice.choose("demo", LlmWishes(parallel=0))


async def test_the_real_engine_tells_how_many_gpus_it_can_use() -> None:
    assert await engine_gpus() >= 0


@pytest.mark.parametrize(
    ("program", "count"),
    [
        (f"print({json.dumps(json.dumps({'gpus': 2}))})", 2),
        ("raise SystemExit(3)", 0),
        ("print('[]')", 0),
        ("print('{}')", 0),
        ("import os; os.abort()", 0),
    ],
)
async def test_an_engine_that_does_not_tell_is_taken_to_have_none(program: str, count: int) -> None:
    assert await engine_gpus((sys.executable, "-c", program)) == count


async def test_a_program_that_is_not_there_is_taken_to_have_none(tmp_path: Path) -> None:
    assert await engine_gpus((str(tmp_path / "nothing"),)) == 0
