"""Commands at one moment, and choices that are older than what they were made of."""

import asyncio
import sys
from pathlib import Path

import pytest

from genaid.image.v1 import generation_pb2
from genaid_server.image.core.generation import GenerationState, Limits
from genaid_server.image.core.generations import Generations
from genaid_server.image.core.progress import Calibration
from genaid_server.image.servicers import GenerationServicer
from genaid_server.kit.errors import (
    AlreadyTerminalError,
    DomainError,
    InvalidRequestError,
    ModelNotFoundError,
    NotFoundError,
    ServerError,
)
from genaid_server.supervision.stop_reason import StopReason
from genaid_server.supervision.supervisor import ServerState
from image_stage import DEAF, FAKE, SMALL, SPEC, drawing, finished, model_in, scene
from worker import children

CAT = generation_pb2.GenerateImagesRequest(
    spec=generation_pb2.GenerationSpec(prompt="a cat", width=64, height=64, steps=2, seed=1)
)


async def complete(generations: Generations) -> str:
    """Make an image; returns the model that it was made with."""
    made = await finished(generations, (await generations.create(SPEC)).id)
    assert made.state is GenerationState.COMPLETE, made.failure
    return made.model_id


# --- stop and start


async def test_a_stop_wins_over_a_start_that_still_asks_for_room(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        stage.manager.open_for_questions.clear()
        starting = asyncio.create_task(stage.engine.start("tiny"))
        await stage.manager.asked_room.wait()
        stopped = await stage.engine.stop()
        stage.manager.open_for_questions.set()
        with pytest.raises(ServerError, match="was stopped"):
            await starting
        for _ in range(10):
            await asyncio.sleep(0)
        now = stage.engine.info.value
        assert (stopped.life.state, now.life.state, now.accepting) == (ServerState.STOPPED, ServerState.STOPPED, False)
        assert (stage.manager.streams, now.stop_reason) == ([], StopReason.STOPPED)


async def test_a_start_that_comes_while_a_stop_ends_the_engine_is_what_counts(tmp_path: Path) -> None:
    async with scene(tmp_path, command=DEAF) as stage, stage.generations(cancel_grace=0.05) as generations:
        created = await generations.create(SPEC)
        await drawing(generations, created.id)
        stopping = asyncio.create_task(generations.stop_engine())
        await stage.until(ServerState.STOPPING)
        started = await stage.engine.start("tiny")
        stopped = await stopping
        assert generations.get(created.id).state is GenerationState.CANCELLED
        assert (stopped.life.state, started.life.state) == (ServerState.STOPPED, ServerState.RUNNING)
        now = stage.engine.info.value
        assert (now.life.state, now.accepting, now.life.pid) == (ServerState.RUNNING, True, started.life.pid)


async def test_no_generation_is_accepted_once_a_stop_was_asked_for(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage, stage.generations() as generations:
        stage.manager.open_for_questions.clear()
        creating = asyncio.create_task(generations.create(SPEC))
        await asyncio.sleep(0)
        await generations.stop_engine()
        stage.manager.open_for_questions.set()
        with pytest.raises(ServerError, match="is stopped"):
            await creating
        assert generations.newest_first() == []


async def test_a_generation_is_for_the_model_that_was_chosen_when_it_was_accepted(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage, stage.generations() as generations:
        stage.manager.installed["other"] = model_in(tmp_path, "other")
        await stage.engine.start("tiny")
        stage.manager.open_for_questions.clear()
        await stage.engine.stop()
        starting = asyncio.create_task(stage.engine.start("other"))
        await stage.manager.asked_room.wait()
        stage.manager.open_for_questions.set()
        await starting
        assert await complete(generations) == "other"


async def test_a_repeated_start_is_the_same_start(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        first, joined = await asyncio.gather(*(stage.engine.start("tiny", request_id="one") for _ in range(2)))
        assert first == joined
        await stage.engine.stop()
        assert await stage.engine.start("tiny", request_id="one") == first
        assert (stage.engine.info.value.life.state, len(stage.manager.streams)) == (ServerState.STOPPED, 1)
        await stage.engine.start("tiny", request_id="two")
        assert stage.engine.info.value.life.state is ServerState.RUNNING
        with pytest.raises(InvalidRequestError):
            await stage.engine.start("tiny", request_id="x" * 129)


async def test_a_start_that_failed_may_be_tried_again_with_its_id(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        for _ in range(2):
            with pytest.raises(ModelNotFoundError):
                await stage.engine.start("nothing", request_id="one")
        assert (await stage.engine.start("tiny", request_id="one")).life.state is ServerState.RUNNING


async def test_a_start_goes_on_when_its_caller_leaves(tmp_path: Path) -> None:
    async with scene(tmp_path, generous=False) as stage:
        starting = asyncio.create_task(stage.engine.start("tiny"))
        lease = await stage.manager.next()
        starting.cancel()
        lease.grant()
        await stage.until(ServerState.RUNNING)


# --- choice and default


async def test_a_default_is_decided_anew_and_a_choice_is_kept(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage, stage.generations() as generations:
        installed = stage.manager.installed
        assert await complete(generations) == "tiny"
        before = stage.engine.info.value
        installed["other"] = model_in(tmp_path, "other")
        with pytest.raises(ModelNotFoundError, match="not just one"):  # as it would be without that image before
            await generations.create(SPEC)
        del installed["tiny"]
        assert await complete(generations) == "other"
        installed["tiny"] = model_in(tmp_path, "tiny")
        await stage.engine.start("tiny", replace_running=True)
        assert await complete(generations) == "tiny"
        assert (before.chosen, stage.engine.info.value.chosen) == (False, True)
        assert stage.manager.announced[-1] == "tiny"
        del installed["tiny"]
        await stage.engine.start("", replace_running=True)  # which is no choice any more
        assert stage.manager.announced[-1] == ""
        assert await complete(generations) == "other"


async def test_a_default_that_changes_while_a_generation_waits_is_the_new_one(tmp_path: Path) -> None:
    async with scene(tmp_path, generous=False) as stage, stage.generations() as generations:
        first, second = [await generations.create(SPEC) for _ in range(2)]
        lease = await stage.manager.next()
        stage.manager.installed = {"other": model_in(tmp_path, "other")}
        stage.manager.generous = True
        lease.grant()
        assert (await finished(generations, first.id)).model_id == "tiny"
        assert (await finished(generations, second.id)).model_id == "other"


async def test_a_choice_ends_with_the_model_that_was_chosen(tmp_path: Path) -> None:
    async with scene(tmp_path, keep_alive=0) as stage, stage.generations() as generations:
        stage.manager.installed["other"] = model_in(tmp_path, "other")
        await stage.engine.start("tiny")
        await stage.until(ServerState.STOPPED)
        assert stage.engine.info.value.stop_reason is StopReason.UNLOADED_WHEN_IDLE
        del stage.manager.installed["tiny"]
        stage.manager.installed["third"] = model_in(tmp_path, "third")
        with pytest.raises(ModelNotFoundError, match="not just one"):
            await generations.create(SPEC)
        assert (stage.engine.info.value.chosen, stage.manager.announced[-1]) == (False, "")
        del stage.manager.installed["third"]
        assert await complete(generations) == "other"


async def test_a_model_that_was_imported_again_is_opened_where_it_lies_now(tmp_path: Path) -> None:
    async with scene(tmp_path, keep_alive=0) as stage, stage.generations() as generations:
        await stage.engine.start("tiny")
        await stage.until(ServerState.STOPPED)
        stage.model.unlink()
        again = tmp_path / "again"
        again.mkdir()
        stage.manager.installed["tiny"] = model_in(again, "tiny")
        assert await complete(generations) == "tiny"
        life = stage.engine._owner.life
        assert life is not None
        assert life.process is not None
        assert life.process.config.model.files[0][1].parent == again


async def test_where_nobody_can_be_asked_the_default_is_what_is_in_memory(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage, stage.generations() as generations:
        assert await complete(generations) == "tiny"
        stage.manager.away = True
        assert await complete(generations) == "tiny"
        assert len(stage.manager.streams) == 1
        await stage.engine.stop()
        with pytest.raises(ServerError):
            await generations.create(SPEC)


# --- results that are being handed out


@pytest.mark.parametrize("who", ["another generation", "somebody who deletes", "time"])
async def test_images_that_are_being_handed_out_stay(tmp_path: Path, who: str) -> None:
    clock = [1000.0]
    limits = Limits(queue_depth=5, max_results=1, result_ttl=5.0)
    async with (
        scene(tmp_path) as stage,
        Generations(stage.engine, Calibration(tmp_path / "c.json"), limits, lambda: clock[0]) as generations,
    ):
        call = GenerationServicer(generations).GenerateImages(CAT, None)  # type: ignore[arg-type]
        identity = ""
        async for response in call:
            identity = response.generation.id
            if response.generation.state == generation_pb2.GENERATION_STATE_COMPLETE:
                break
        image = GenerationServicer(generations).GetImage(
            generation_pb2.GetImageRequest(generation_id=identity),
            None,  # type: ignore[arg-type]
        )
        first = await anext(aiter(image))
        await forget(generations, identity, who, clock)
        with pytest.raises(NotFoundError):
            generations.get(identity)
        rest = [response.chunk async for response in call]
        assert b"".join(chunk.data for chunk in rest).startswith(b"\x89PNG")
        assert rest[-1].last
        assert first.chunk + b"".join([each.chunk async for each in image]) == b"".join(chunk.data for chunk in rest)


@pytest.mark.parametrize(
    ("end", "error"), [("cancel", AlreadyTerminalError), ("stop", AlreadyTerminalError), ("close", ServerError)]
)
async def test_a_call_that_gets_no_images_says_why(tmp_path: Path, end: str, error: type[DomainError]) -> None:
    async with scene(tmp_path, command=DEAF) as stage, stage.generations() as generations:
        call = GenerationServicer(generations).GenerateImages(CAT, None)  # type: ignore[arg-type]
        begun = await anext(aiter(call))
        ending: asyncio.Task[object] | None = None
        match end:
            case "cancel":
                ending = asyncio.create_task(generations.cancel(begun.generation.id))
            case "stop":
                ending = asyncio.create_task(generations.stop_engine())
            case _:
                generations.end_watches()
        with pytest.raises(error):
            assert not [response async for response in call if response.HasField("chunk")]
        if ending is not None:
            await ending


async def forget(generations: Generations, identity: str, who: str, clock: list[float]) -> None:
    match who:
        case "another generation":
            await complete(generations)
        case "somebody who deletes":
            await generations.delete(identity)
        case _:
            clock[0] += 10.0
            generations.sweep()


async def test_a_failed_generation_keeps_its_facts(tmp_path: Path) -> None:
    async with scene(tmp_path, generous=False) as stage, stage.generations() as generations:
        created = await generations.create(SPEC)
        (await stage.manager.next()).fail(ModelNotFoundError("gone", modelId="tiny"))
        failure = (await finished(generations, created.id)).failure
        assert failure is not None
        assert (failure.code, failure.facts) == ("MODEL_NOT_FOUND", {"modelId": "tiny"})


# --- the engine says what it should not


async def test_what_the_engine_says_of_another_job_is_not_taken_for_this_one(tmp_path: Path) -> None:
    late = (sys.executable, str(FAKE), "late")
    async with scene(tmp_path, command=late) as stage, stage.generations() as generations:
        for _ in range(2):
            made = await finished(generations, (await generations.create(SPEC)).id)
            assert made.state is GenerationState.COMPLETE
            assert [(image.seed, image.width) for image in made.images] == [(1, 1)]


async def test_a_process_that_died_just_now_is_given_to_nobody(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        with stage.engine.use():
            first = await stage.engine.ready(SMALL)
            first._process.strike()
            await first._process.exited()
            second = await stage.engine.ready(SMALL)
            assert second.pid != first.pid
        assert stage.engine.info.value.life.restarts == 1
        assert [child.pid for child in children()] == [second.pid]
