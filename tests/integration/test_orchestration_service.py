"""OrchestrationService over the wire: plans, leases and the LLM that made room, with real models."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from conftest import DemoModels
from genaid.resource.v1 import orchestration_pb2, orchestration_pb2_grpc
from genaid_client import (
    AsyncClient,
    ImageNeed,
    ImagePlan,
    InsufficientResourcesError,
    InvalidRequestError,
    Lease,
    LeaseList,
    LeaseState,
    LlmServing,
    MemoryKind,
    ModelNotFoundError,
    NotFoundError,
    OffloadPhase,
    ServerError,
    ServerState,
    TenantKind,
)
from llm_service import PATIENCE, llm_service

if TYPE_CHECKING:
    from genaid.resource.v1.orchestration_pb2_grpc import OrchestrationServiceAsyncStub

MIB = 2**20
SMALL = ImageNeed("diffusion", 64, 64)


@dataclass(frozen=True)
class Place:
    """A resource manager with both demo models, by its client and by the bare contract."""

    client: AsyncClient
    stub: "OrchestrationServiceAsyncStub"
    address: str

    async def until(self, condition: Callable[[LeaseList], bool]) -> LeaseList:
        """The leases once the condition holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition(found := await self.client.orchestration.list_leases()):
                pass
            return found


@asynccontextmanager
async def serving(folder: Path, models: DemoModels, *, ram: int = 0) -> AsyncIterator[Place]:
    inbox = folder / "inbox"
    inbox.mkdir(parents=True)
    for model in (models.llm, models.diffusion):
        (inbox / model.name).hardlink_to(model)
    async with (
        llm_service(folder, memory={"ram_limit_bytes": ram}, reload_delay_seconds=0.05) as service,
        grpc.aio.insecure_channel(service.address, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        for model in (models.llm, models.diffusion):
            await service.client.models.import_(model.name, name=model.stem)
        yield Place(service.client, orchestration_pb2_grpc.OrchestrationServiceStub(channel), service.address)


@pytest.fixture
async def place(tmp_path: Path, demo_models: DemoModels) -> AsyncIterator[Place]:
    async with serving(tmp_path / "data", demo_models) as found:
        yield found


async def amount(folder: Path, models: DemoModels) -> tuple[int, int]:
    """Bytes that the image engine and the LLM engine need."""
    async with serving(folder, models) as place:
        plan = await place.client.orchestration.plan_image_generation(SMALL)
        return plan.ram_bytes, (await place.client.system.check_model("llm")).required_bytes


class Holder:
    """Holds a lease, and reads of it when a test wants to know."""

    def __init__(self, place: Place, tenant: str, need: ImageNeed = SMALL, *, resident: bool = False) -> None:
        self.states: AsyncGenerator[Lease, None] = place.client.orchestration.hold_lease(
            tenant, need, resident=resident
        )

    async def until(self, state: LeaseState) -> Lease:
        """The lease once it is in a state."""
        async with asyncio.timeout(PATIENCE):
            async for lease in self.states:
                if lease.state is state:
                    return lease
        raise AssertionError("the stream ended")

    async def rest(self) -> list[LeaseState]:
        """What comes until the stream ends."""
        async with asyncio.timeout(PATIENCE):
            return [lease.state async for lease in self.states]

    async def aclose(self) -> None:
        """Give the lease back."""
        await self.states.aclose()


class TestPlans:
    async def test_with_ample_memory_nobody_leaves(self, place: Place) -> None:
        plan = await place.client.orchestration.plan_image_generation()
        assert (plan.model_id, plan.possible, plan.would_need_offload, plan.departures) == (
            "diffusion",
            True,
            False,
            (),
        )
        assert (plan.bottleneck, plan.required_bytes) == (MemoryKind.RAM, plan.ram_bytes)
        assert 0 < plan.ram_bytes <= plan.available_bytes <= plan.total_bytes
        assert (plan.vram_bytes, plan.measured, plan.suggestion) == (0, False, "")
        assert plan.placement is not None
        assert (plan.placement.vae_tiling, plan.placement.max_vram_bytes, plan.placement.reason) == (False, None, "")
        assert plan == replace(
            await place.client.orchestration.plan_image_generation(), available_bytes=plan.available_bytes
        )
        assert (await place.client.orchestration.list_leases()).leases == ()

    async def test_what_is_left_out_is_as_documented(self, place: Place) -> None:
        bare = await place.stub.PlanImageGeneration(orchestration_pb2.PlanImageGenerationRequest())
        full = await place.client.orchestration.plan_image_generation(ImageNeed("diffusion", 512, 512, "cpu"))
        larger = await place.client.orchestration.plan_image_generation(ImageNeed("diffusion", 512, 520))
        assert bare.ram_bytes == full.ram_bytes < larger.ram_bytes
        assert not bare.placement.HasField("max_vram_bytes")

    async def test_a_way_that_takes_less_is_explained(self, tmp_path: Path, demo_models: DemoModels) -> None:
        need = ImageNeed("diffusion", 1024, 1024)
        async with serving(tmp_path / "ample", demo_models) as place:
            ample = await place.client.orchestration.plan_image_generation(need)
        async with serving(tmp_path / "scarce", demo_models, ram=ample.ram_bytes - 1) as place:
            plan = await place.client.orchestration.plan_image_generation(need)
        assert plan.possible
        assert plan.placement is not None
        assert plan.placement.vae_tiling
        assert plan.ram_bytes < ample.ram_bytes
        assert plan.explanation.endswith(plan.placement.reason)
        assert "decoded in tiles" in plan.explanation

    async def test_what_can_never_fit_is_an_answer_for_a_plan_and_an_error_for_a_lease(
        self, tmp_path: Path, demo_models: DemoModels
    ) -> None:
        async with serving(tmp_path / "data", demo_models, ram=64 * MIB) as place:
            plan = await place.client.orchestration.plan_image_generation(SMALL)
            assert (plan.possible, plan.placement, plan.departures, plan.would_need_offload) == (False, None, (), False)
            assert plan.required_bytes > plan.total_bytes == 64 * MIB
            assert "Insufficient RAM" in plan.explanation
            assert plan.suggestion
            holder = Holder(place, "worker")
            with pytest.raises(InsufficientResourcesError, match="Insufficient RAM") as error:
                await holder.rest()
            assert int(error.value.metadata["required"]) == plan.required_bytes
            assert int(error.value.metadata["available"]) == plan.available_bytes
            assert error.value.metadata["suggestion"] == plan.suggestion
            assert (await place.client.orchestration.list_leases()).leases == ()

    async def test_what_can_not_be_planned_is_refused(self, place: Place) -> None:
        for model in ("nobody", "llm"):
            with pytest.raises(ModelNotFoundError):
                await place.client.orchestration.plan_image_generation(ImageNeed(model))
            with pytest.raises(ModelNotFoundError):
                await Holder(place, "worker", ImageNeed(model)).rest()
        for field, value in (("width", 63), ("height", 8193), ("max_vram_bytes", -1)):
            wrong = ImageNeed("diffusion", **{field: value})  # type: ignore[arg-type]
            with pytest.raises(InvalidRequestError, match=field):
                await place.client.orchestration.plan_image_generation(wrong)
            with pytest.raises(InvalidRequestError, match=field):
                await Holder(place, "worker", wrong).rest()
        for tenant in ("", "llm", " worker", "wor\nker", "w" * 129):
            with pytest.raises(InvalidRequestError, match="tenant_id"):
                await Holder(place, tenant).rest()


class TestLeases:
    async def test_it_is_held_for_as_long_as_the_stream_lasts(self, place: Place) -> None:
        plan = await place.client.orchestration.plan_image_generation(SMALL)
        async with aclosing(Holder(place, "worker")) as holder:
            lease = await holder.until(LeaseState.GRANTED)
            assert (lease.tenant_id, lease.kind, lease.model_id) == ("worker", TenantKind.IMAGE, "diffusion")
            assert (lease.ram_bytes, lease.vram_bytes, lease.measured) == (plan.ram_bytes, 0, False)
            assert (lease.reason, lease.reclaim_after_seconds, lease.placement) == ("", None, plan.placement)
            found = await place.client.orchestration.list_leases()
            assert found == LeaseList((lease,), plan.total_bytes, found.total_vram_bytes, plan.ram_bytes, 0)
        found = await place.until(lambda found: not found.leases)
        assert found.granted_ram_bytes == 0

    async def test_a_second_one_of_the_same_tenant_takes_its_place(self, place: Place) -> None:
        async with aclosing(Holder(place, "worker")) as first:
            old = await first.until(LeaseState.GRANTED)
            async with aclosing(Holder(place, "worker", ImageNeed("diffusion", 128, 64))) as second:
                new = await second.until(LeaseState.GRANTED)
                assert await first.rest() == []
                assert new.ram_bytes > old.ram_bytes
                assert (await place.client.orchestration.list_leases()).leases == (new,)

    async def test_a_client_that_is_cut_off_gives_it_back(self, place: Place) -> None:
        async with AsyncClient(resource=place.address) as other:
            states = other.orchestration.hold_lease("worker", SMALL)
            assert (await anext(states)).tenant_id == "worker"
            assert (await place.client.orchestration.list_leases()).leases
        await place.until(lambda found: not found.leases)
        await states.aclose()

    async def test_who_waits_and_who_is_to_leave_are_told(self, tmp_path: Path, demo_models: DemoModels) -> None:
        needed, _ = await amount(tmp_path / "ample", demo_models)
        async with (
            serving(tmp_path / "scarce", demo_models, ram=needed * 3 // 2) as place,
            aclosing(Holder(place, "first")) as first,
        ):
            await first.until(LeaseState.GRANTED)
            async with aclosing(Holder(place, "second")) as second:
                waiting = await second.until(LeaseState.WAITING)
                assert (waiting.placement, waiting.reclaim_after_seconds) == (None, None)
                leaving = await first.until(LeaseState.RECLAIM)
                assert (leaving.reclaim_after_seconds, leaving.placement is None) == (0.0, False)
                assert "is unloaded" in leaving.reason
                found = await place.until(lambda found: all(lease.reason for lease in found.leases))
                assert [lease.tenant_id for lease in found.leases] == ["first", "second"]
                assert found.granted_ram_bytes == needed
            assert (await first.until(LeaseState.GRANTED)).reason == ""  # the one that waited has gone
            async with aclosing(Holder(place, "third")) as third:
                await third.until(LeaseState.WAITING)
                await first.until(LeaseState.RECLAIM)
                await first.aclose()
                assert (await third.until(LeaseState.GRANTED)).placement is not None

    async def test_the_engine_that_would_make_the_image_does_not_count_against_it(
        self, tmp_path: Path, demo_models: DemoModels
    ) -> None:
        needed, _ = await amount(tmp_path / "ample", demo_models)
        async with (
            serving(tmp_path / "scarce", demo_models, ram=needed * 3 // 2) as place,
            aclosing(Holder(place, "worker")) as holder,
        ):
            await holder.until(LeaseState.GRANTED)
            plan = await place.client.orchestration.plan_image_generation(SMALL)
            assert (plan.possible, plan.departures) == (True, ())

    async def test_a_resident_engine_is_taken_as_it_is_or_refused(
        self, tmp_path: Path, demo_models: DemoModels
    ) -> None:
        needed, _ = await amount(tmp_path / "ample", demo_models)
        async with (
            serving(tmp_path / "scarce", demo_models, ram=needed * 3 // 2) as place,
            aclosing(Holder(place, "first", resident=True)) as first,
        ):
            assert (await first.until(LeaseState.GRANTED)).ram_bytes == needed
            with pytest.raises(InsufficientResourcesError):
                await Holder(place, "second", resident=True).rest()
            assert (await place.client.orchestration.list_leases()).leases[0].state is LeaseState.GRANTED

    async def test_the_end_of_the_server_is_told_to_who_holds_and_who_waits(
        self, tmp_path: Path, demo_models: DemoModels
    ) -> None:
        needed, _ = await amount(tmp_path / "ample", demo_models)
        async with AsyncExitStack() as service:
            place = await service.enter_async_context(serving(tmp_path / "scarce", demo_models, ram=needed * 3 // 2))
            async with AsyncClient(resource=place.address, timeout=PATIENCE) as client:
                first, second = (Holder(replace(place, client=client), tenant) for tenant in ("first", "second"))
                await first.until(LeaseState.GRANTED)
                await second.until(LeaseState.WAITING)
                await first.until(LeaseState.RECLAIM)
                ending = asyncio.create_task(service.aclose())
                for holder in (first, second):
                    with pytest.raises(ServerError, match="shutting down"):
                        await holder.rest()
                await ending


class TestUse:
    async def test_the_next_lease_is_as_large_as_what_was_seen(self, place: Place) -> None:
        async with aclosing(Holder(place, "worker")) as holder:
            lease = await holder.until(LeaseState.GRANTED)
            await place.client.orchestration.report_lease_use(lease.id)
            assert not (await place.client.orchestration.plan_image_generation(SMALL)).measured
            await place.client.orchestration.report_lease_use(lease.id, width=64, height=64, peak_ram_bytes=300 * MIB)
        plan = await place.client.orchestration.plan_image_generation(SMALL)
        assert (plan.measured, plan.ram_bytes, plan.required_bytes) == (True, 300 * MIB, 300 * MIB)
        async with aclosing(Holder(place, "worker")) as holder:
            lease = await holder.until(LeaseState.GRANTED)
            assert (lease.measured, lease.ram_bytes) == (True, 300 * MIB)

    async def test_what_can_not_be_is_refused(self, place: Place) -> None:
        async with aclosing(Holder(place, "worker")) as holder:
            lease = await holder.until(LeaseState.GRANTED)
            for field, use in [
                ("width", {"width": 63, "height": 64}),
                ("width", {"height": 64}),
                ("height", {"width": 64}),
                ("height", {"width": 64, "height": 8193}),
                ("peak_ram_bytes", {"width": 64, "height": 64, "peak_ram_bytes": -1}),
            ]:
                with pytest.raises(InvalidRequestError, match=field):
                    await place.client.orchestration.report_lease_use(lease.id, **use)
            with pytest.raises(NotFoundError):
                await place.client.orchestration.report_lease_use("lease-0", width=64, height=64)
        await place.until(lambda found: not found.leases)
        with pytest.raises(NotFoundError):
            await place.client.orchestration.report_lease_use(lease.id, width=64, height=64)


async def test_leases_come_in_pages_with_the_sums_of_all(place: Place) -> None:
    names = [f"worker {number}" for number in range(5)]
    async with AsyncExitStack() as held:
        for name in names:
            holder = await held.enter_async_context(aclosing(Holder(place, name)))
            lease = await holder.until(LeaseState.GRANTED)
        pages: list[orchestration_pb2.ListLeasesResponse] = []
        request = orchestration_pb2.ListLeasesRequest(page_size=2)
        while not pages or request.page_token:
            pages.append(await place.stub.ListLeases(request))
            request.page_token = pages[-1].next_page_token
        assert [[each.tenant_id for each in page.leases] for page in pages] == [names[:2], names[2:4], names[4:]]
        assert {page.granted_ram_bytes for page in pages} == {5 * lease.ram_bytes}
        assert len({page.total_ram_bytes for page in pages}) == 1
        for wrong in ({"page_size": 1001}, {"page_size": -1}, {"page_token": "x"}):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await place.stub.ListLeases(orchestration_pb2.ListLeasesRequest(**wrong))
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


class TestTheLlm:
    @staticmethod
    async def planned(place: Place) -> ImagePlan:
        plan = await place.client.orchestration.plan_image_generation(SMALL)
        assert plan.possible
        return plan

    async def test_it_is_a_tenant_that_a_plan_takes_into_account_and_that_makes_room(
        self, tmp_path: Path, demo_models: DemoModels
    ) -> None:
        image, llm = await amount(tmp_path / "ample", demo_models)
        async with serving(tmp_path / "scarce", demo_models, ram=image + llm) as place:
            assert not (await self.planned(place)).would_need_offload
            before = await place.client.llm.start("llm", serving=LlmServing(port=0, api_key="secret"))
            tenant = (await place.client.orchestration.list_leases()).leases[0]
            assert (tenant.tenant_id, tenant.kind, tenant.placement) == ("llm", TenantKind.LLM, None)

            plan = await self.planned(place)
            assert plan.would_need_offload
            assert [(each.tenant_id, each.kind, each.ram_bytes) for each in plan.departures] == [
                ("llm", TenantKind.LLM, tenant.ram_bytes)
            ]
            assert plan.departures[0].reason in plan.explanation
            assert await place.client.orchestration.get_offloaded_llm() is None
            assert not (await place.client.llm.get()).offloaded
            assert not await place.client.orchestration.forget_offloaded_llm()

            async with aclosing(Holder(place, "worker")) as holder:
                await holder.until(LeaseState.GRANTED)
                gone = await place.client.orchestration.get_offloaded_llm()
                assert gone is not None
                assert (gone.model_id, gone.phase, gone.was_running) == ("llm", OffloadPhase.OFFLOADED, True)
                assert (gone.config, gone.failed_attempts, gone.next_attempt_time) == (before.config, 0, None)
                assert (gone.serving.port, gone.serving.host) == (before.port, "127.0.0.1")
                assert gone.serving.api_key == ""
                assert "diffusion" in gone.reason or "RAM" in gone.reason
                now = await place.client.llm.get()
                assert (now.state, now.offloaded) == (ServerState.STOPPED, True)
                assert await place.client.orchestration.forget_offloaded_llm()
                assert not await place.client.orchestration.forget_offloaded_llm()
                assert await place.client.orchestration.get_offloaded_llm() is None
            await place.until(lambda found: not found.leases)
            assert (await place.client.llm.get()).state is ServerState.STOPPED
