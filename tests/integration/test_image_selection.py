"""Which model draws: a choice is kept, a default is decided anew by the resource manager, whoever asks."""

import shutil
from pathlib import Path

import pytest

from conftest import DemoModels
from genaid_client import (
    Generation,
    GenerationState,
    ImageNeed,
    InvalidRequestError,
    Model,
    ModelNotFoundError,
    ModelType,
    ServerState,
)
from worker import TINY, Worker, image_worker

NEED = ImageNeed(width=64, height=64)


async def put(worker: Worker, file: Path, model_id: str, file_name: str = "") -> Model:
    """Install a copy of a file."""
    inbox = worker.data_dir / "inbox"
    inbox.mkdir(parents=True, exist_ok=True)
    name = file_name or f"{model_id}.gguf"
    shutil.copy(file, inbox / name)
    return await worker.client.models.import_(name, type=ModelType.DIFFUSION, model_id=model_id)


async def draw(worker: Worker) -> Generation:
    made = await worker.client.images.create(TINY)
    return [state async for state in worker.client.images.watch(made.id)][-1]


async def drawn_with(worker: Worker) -> str:
    """Make an image, after the manager was asked with which model that would be; returns the model."""
    planned = (await worker.client.orchestration.plan_image_generation(NEED)).model_id
    made = await draw(worker)
    assert made.state is GenerationState.COMPLETE, made.error
    assert made.model_id == planned
    return made.model_id


async def unloaded(worker: Worker) -> None:
    async for engine in worker.client.engine.watch():
        if engine.state is ServerState.STOPPED:
            return


async def test_a_default_goes_with_what_is_installed(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, keep_alive_seconds=0) as worker:
        await put(worker, demo_models.diffusion, "a")
        assert await drawn_with(worker) == "a"
        await unloaded(worker)
        assert (await worker.client.engine.get()).model_id == ""
        await put(worker, demo_models.diffusion, "b")
        for ask in (
            lambda: worker.client.images.create(TINY),
            lambda: worker.client.orchestration.plan_image_generation(NEED),
        ):
            with pytest.raises(ModelNotFoundError, match="Several diffusion models are installed"):
                await ask()
        await worker.client.models.delete("a")
        assert await drawn_with(worker) == "b"
        await unloaded(worker)
        await worker.client.models.delete("b")
        with pytest.raises(ModelNotFoundError, match="No diffusion model"):
            await worker.client.images.create(TINY)


async def test_a_default_in_memory_is_no_choice(tmp_path: Path, demo_models: DemoModels) -> None:
    """With two models a worker that has drawn says what one that has not would say."""
    async with image_worker(tmp_path) as worker:
        await put(worker, demo_models.diffusion, "a")
        assert await drawn_with(worker) == "a"
        await put(worker, demo_models.diffusion, "b")
        engine = await worker.client.engine.get()
        assert (engine.state, engine.model_id, engine.model_chosen) == (ServerState.RUNNING, "a", False)
        with pytest.raises(ModelNotFoundError, match="Several diffusion models are installed"):
            await worker.client.images.create(TINY)
        await worker.client.engine.start("a")  # which runs already
        chosen = await worker.client.engine.get()
        assert (chosen.pid, chosen.model_chosen) == (engine.pid, True)
        assert await drawn_with(worker) == "a"


async def test_a_choice_is_kept_for_as_long_as_its_model_is_there(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, keep_alive_seconds=0) as worker:
        for name in ("a", "b"):
            await put(worker, demo_models.diffusion, name)
        await worker.client.engine.start("b")
        await unloaded(worker)
        assert (await worker.client.engine.get()).model_id == "b"
        assert await drawn_with(worker) == "b"
        await unloaded(worker)
        await worker.client.models.delete("b")
        assert await drawn_with(worker) == "a"
        assert not (await worker.client.engine.get()).model_chosen
        log = await worker.client.engine.list_logs()
        assert any(
            "the default model is used from now on: Model 'b' is not installed" in entry.message for entry in log
        )


async def test_a_model_that_was_imported_again_is_opened_where_it_lies_now(
    tmp_path: Path, demo_models: DemoModels
) -> None:
    async with image_worker(tmp_path, keep_alive_seconds=0) as worker:
        for chosen, name in ((False, "first.gguf"), (True, "second.gguf"), (True, "third.gguf")):
            await put(worker, demo_models.diffusion, "mine", name)
            if chosen:
                await worker.client.engine.start("mine")
                await unloaded(worker)
            assert await drawn_with(worker) == "mine"
            await unloaded(worker)
            await worker.client.models.delete("mine")


async def test_the_configured_model_is_a_choice(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path, model="b") as worker:
        await put(worker, demo_models.diffusion, "a")
        with pytest.raises(ModelNotFoundError, match="'b' is not installed"):
            await worker.client.images.create(TINY)
        await put(worker, demo_models.diffusion, "b")
        assert await drawn_with(worker) == "b"


async def test_the_manager_says_which_model_is_meant(tmp_path: Path, demo_models: DemoModels) -> None:
    async with image_worker(tmp_path) as worker:
        installed = await put(worker, demo_models.diffusion, "a")
        for asked in ("", "a"):
            found = await worker.client.orchestration.resolve_image_model(asked)
            assert (found.id, found.name, found.files) == (installed.id, installed.name, installed.files)
        await put(worker, demo_models.diffusion, "b")
        await worker.client.orchestration.resolve_image_model("b", tenant_id="somebody")
        planned = await worker.client.orchestration.plan_image_generation(NEED)
        assert planned.image_model is not None
        assert (planned.model_id, planned.image_model.id) == ("b", "b")
        with pytest.raises(ModelNotFoundError, match="Several"):
            await worker.client.orchestration.resolve_image_model("", tenant_id="somebody")
        with pytest.raises(ModelNotFoundError, match="Several"):
            await worker.client.orchestration.plan_image_generation(NEED)
        for wrong in ("llm", " ", "x" * 129):
            with pytest.raises(InvalidRequestError):
                await worker.client.orchestration.resolve_image_model("a", tenant_id=wrong)
