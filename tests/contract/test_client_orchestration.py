"""The calls about shared memory, on both faces against a scripted server, and what their messages become."""

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from contract.faces import Connect
from contract.scripted import Flag, Script, serve
from genaid.resource.v1 import llm_pb2, models_pb2, orchestration_pb2, system_pb2
from genaid_client import (
    Component,
    ConnectionFailedError,
    DeadlineError,
    Departure,
    FileSystemError,
    GenaidError,
    ImageNeed,
    ImagePlacement,
    ImagePlan,
    InsufficientResourcesError,
    InvalidRequestError,
    Lease,
    LeaseList,
    LeaseState,
    LlmConfig,
    LlmServing,
    MemoryKind,
    ModelNotFoundError,
    NotFoundError,
    OffloadedLlm,
    OffloadPhase,
    ServerError,
    TenantKind,
    convert_orchestration,
)
from genaid_server.kit import errors
from genaid_server.kit.errors import DomainError

PATIENCE = 30.0  # seconds until a test that waits for something gives up
THEN = datetime.fromtimestamp(1_700_000_000, UTC)
LATER = datetime.fromtimestamp(1_700_000_060, UTC)

NEED = ImageNeed("sd", 1024, 768, "cuda12", True, True, True, True, True, 2**33)
SENT_NEED = orchestration_pb2.ImageNeed(
    model_id="sd",
    width=1024,
    height=768,
    variant="cuda12",
    flash_attention=True,
    vae_tiling=True,
    offload_to_cpu=True,
    clip_on_cpu=True,
    vae_on_cpu=True,
    max_vram_bytes=2**33,
)

PLACED = orchestration_pb2.ImagePlacement(
    offload_to_cpu=True, vae_tiling=True, max_vram_bytes=2**33, reason="VRAM is short."
)
SAME_PLACEMENT = ImagePlacement(True, True, 2**33, "VRAM is short.")

LEASED = orchestration_pb2.Lease(
    id="lease-1",
    tenant_id="worker",
    kind=orchestration_pb2.TENANT_KIND_IMAGE,
    model_id="sd",
    state=orchestration_pb2.LEASE_STATE_RECLAIM,
    ram_bytes=2**34,
    vram_bytes=2**35,
    measured=True,
    reason="The LLM comes back.",
    create_time=Timestamp(seconds=1_700_000_000),
    reclaim_after=Duration(seconds=2, nanos=500_000_000),
    placement=PLACED,
)
SAME_LEASE = Lease(
    id="lease-1",
    tenant_id="worker",
    kind=TenantKind.IMAGE,
    model_id="sd",
    state=LeaseState.RECLAIM,
    ram_bytes=2**34,
    vram_bytes=2**35,
    measured=True,
    reason="The LLM comes back.",
    create_time=THEN,
    reclaim_after_seconds=2.5,
    placement=SAME_PLACEMENT,
)

PLANNED = orchestration_pb2.PlanImageGenerationResponse(
    would_need_offload=True,
    possible=True,
    bottleneck=orchestration_pb2.MEMORY_KIND_VRAM,
    required_bytes=2**33,
    available_bytes=2**32,
    total_bytes=2**35,
    departures=[
        orchestration_pb2.Departure(
            tenant_id="llm",
            kind=orchestration_pb2.TENANT_KIND_LLM,
            model_id="tiny",
            ram_bytes=2**31,
            vram_bytes=2**34,
            reason="It is offloaded.",
        )
    ],
    explanation="The LLM makes room.",
    suggestion="Choose a smaller one.",
    placement=PLACED,
    ram_bytes=2**36,
    vram_bytes=2**37,
    measured=True,
    model_id="sd",
)
SAME_PLAN = ImagePlan(
    model_id="sd",
    would_need_offload=True,
    possible=True,
    bottleneck=MemoryKind.VRAM,
    required_bytes=2**33,
    available_bytes=2**32,
    total_bytes=2**35,
    departures=(Departure("llm", TenantKind.LLM, "tiny", 2**31, 2**34, "It is offloaded."),),
    explanation="The LLM makes room.",
    suggestion="Choose a smaller one.",
    placement=SAME_PLACEMENT,
    ram_bytes=2**36,
    vram_bytes=2**37,
    measured=True,
)

MODEL = orchestration_pb2.ImageModel(
    id="sd",
    name="SD",
    files=[
        models_pb2.ModelFile(name="sd.gguf", component=models_pb2.COMPONENT_DIFFUSION_MODEL, path="/m/sd.gguf"),
        models_pb2.ModelFile(name="vae.gguf", component=models_pb2.COMPONENT_VAE, path="/m/vae.gguf"),
    ],
)

OFFLOADED = orchestration_pb2.OffloadedLlm(
    model_id="tiny",
    config=system_pb2.LlmConfig(context_size=4096),
    serving=llm_pb2.LlmServing(port=8080, host="127.0.0.1", memory_map=True, memory_lock=False),
    was_running=True,
    save_time=Timestamp(seconds=1_700_000_000),
    reason="An image is made.",
    phase=orchestration_pb2.OffloadedLlm.PHASE_FAILED,
    failed_attempts=3,
    last_error="It does not load.",
    next_attempt_time=Timestamp(seconds=1_700_000_060),
    saved_tokens=2**33,
)
SAME_OFFLOADED = OffloadedLlm(
    model_id="tiny",
    config=LlmConfig(context_size=4096),
    serving=LlmServing(8080, "127.0.0.1", "", True, False),
    was_running=True,
    save_time=THEN,
    reason="An image is made.",
    phase=OffloadPhase.FAILED,
    failed_attempts=3,
    last_error="It does not load.",
    next_attempt_time=LATER,
    saved_tokens=2**33,
)


# The model


@pytest.mark.parametrize(("arguments", "keywords"), [((), {}), (("sd",), {"tenant_id": "worker"})])
async def test_which_model_is_meant(
    resource: Connect, script: Script, address: str, arguments: tuple[str, ...], keywords: dict[str, str]
) -> None:
    script.steps["ResolveImageModel"] = [orchestration_pb2.ResolveImageModelResponse(model=MODEL)]
    async with resource(address) as client:
        found = await client.call("orchestration.resolve_image_model", *arguments, **keywords)
    assert (found.id, found.name) == ("sd", "SD")
    assert [(file.component, file.path) for file in found.files] == [
        (Component.DIFFUSION_MODEL, "/m/sd.gguf"),
        (Component.VAE, "/m/vae.gguf"),
    ]
    request = orchestration_pb2.ResolveImageModelRequest(model_id="".join(arguments), **keywords)
    assert script.requests == [("ResolveImageModel", request)]


def test_a_lease_and_a_plan_say_with_which_model() -> None:
    lease = convert_orchestration.lease_from_pb(orchestration_pb2.Lease(image_model=MODEL))
    plan = convert_orchestration.plan_from_pb(orchestration_pb2.PlanImageGenerationResponse(image_model=MODEL))
    assert lease.image_model == plan.image_model == convert_orchestration.image_model_from_pb(MODEL)


# The plan


async def test_a_plan_with_all_that_can_be_said(resource: Connect, script: Script, address: str) -> None:
    script.steps["PlanImageGeneration"] = [PLANNED]
    async with resource(address) as client:
        assert await client.call("orchestration.plan_image_generation", NEED) == SAME_PLAN
    request = orchestration_pb2.PlanImageGenerationRequest(need=SENT_NEED)
    assert script.requests == [("PlanImageGeneration", request)]


async def test_a_plan_for_the_usual_image(resource: Connect, script: Script, address: str) -> None:
    async with resource(address) as client:
        found = await client.call("orchestration.plan_image_generation")
    need = orchestration_pb2.ImageNeed(width=512, height=512, variant="cpu")
    request = orchestration_pb2.PlanImageGenerationRequest(need=need)
    assert script.requests == [("PlanImageGeneration", request)]
    assert (found.possible, found.departures, found.placement) == (False, (), None)


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        (errors.ModelNotFoundError("No such model."), ModelNotFoundError),
        (errors.InvalidRequestError("Too large.", field="width"), InvalidRequestError),
        (errors.FileSystemError("It can't be read."), FileSystemError),
    ],
)
async def test_a_plan_that_fails(
    resource: Connect, script: Script, address: str, raised: DomainError, caught: type[GenaidError]
) -> None:
    script.steps["PlanImageGeneration"] = [raised]
    async with resource(address) as client:
        with pytest.raises(caught) as found:
            await client.call("orchestration.plan_image_generation", NEED)
    assert found.value.message == raised.message


# The LLM that was offloaded


async def test_the_llm_that_was_offloaded(resource: Connect, script: Script, address: str) -> None:
    script.steps["GetOffloadedLlm"] = [orchestration_pb2.GetOffloadedLlmResponse(offloaded=OFFLOADED)]
    async with resource(address) as client:
        assert await client.call("orchestration.get_offloaded_llm") == SAME_OFFLOADED
    assert script.requests == [("GetOffloadedLlm", orchestration_pb2.GetOffloadedLlmRequest())]


async def test_no_llm_was_offloaded(resource: Connect, script: Script, address: str) -> None:
    async with resource(address) as client:
        assert await client.call("orchestration.get_offloaded_llm") is None


@pytest.mark.parametrize("forgotten", [True, False])
async def test_it_is_given_up(resource: Connect, script: Script, address: str, forgotten: bool) -> None:
    script.steps["ForgetOffloadedLlm"] = [orchestration_pb2.ForgetOffloadedLlmResponse(forgotten=forgotten)]
    async with resource(address) as client:
        assert await client.call("orchestration.forget_offloaded_llm") is forgotten
    assert script.requests == [("ForgetOffloadedLlm", orchestration_pb2.ForgetOffloadedLlmRequest())]


async def test_a_load_that_is_given_up_has_time_to_end(resource: Connect, script: Script, address: str) -> None:
    async with resource(address, timeout=0.5) as client:
        await client.call("orchestration.forget_offloaded_llm")
    assert 30 < (script.deadlines["ForgetOffloadedLlm"] or 0) < 100
    script.steps["ForgetOffloadedLlm"] = [Flag.HANG]
    async with resource(address) as client:
        with pytest.raises(DeadlineError):
            await client.call("orchestration.forget_offloaded_llm", timeout=0.2)


# Leases


async def test_a_lease_is_held_with_all_that_can_be_said(resource: Connect, script: Script, address: str) -> None:
    waiting = orchestration_pb2.Lease(id="lease-1", state=orchestration_pb2.LEASE_STATE_WAITING)
    script.steps["HoldLease"] = [orchestration_pb2.HoldLeaseResponse(lease=lease) for lease in (waiting, LEASED)]
    async with resource(address, timeout=0.5) as client:
        first, last = [
            lease async for lease in client.iterate("orchestration.hold_lease", "worker", NEED, resident=True)
        ]
    request = orchestration_pb2.HoldLeaseRequest(tenant_id="worker", need=SENT_NEED, resident=True)
    assert script.requests == [("HoldLease", request)]
    assert script.deadlines["HoldLease"] is None
    assert (first.id, first.state, first.reclaim_after_seconds, first.placement) == (
        "lease-1",
        LeaseState.WAITING,
        None,
        None,
    )
    assert last == SAME_LEASE


async def test_a_lease_is_given_back_by_leaving(resource: Connect, script: Script, address: str) -> None:
    script.steps["HoldLease"] = [orchestration_pb2.HoldLeaseResponse(lease=LEASED), Flag.HANG]
    async with resource(address) as client:
        leases = client.iterate("orchestration.hold_lease", "worker", NEED)
        assert await anext(leases) == SAME_LEASE
        await asyncio.wait_for(script.hanging.wait(), PATIENCE)
        assert not script.cancelled.is_set()
        await leases.aclose()
        await asyncio.wait_for(script.cancelled.wait(), PATIENCE)
    assert not script.requests[0][1].resident


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        (
            errors.InsufficientResourcesError("Too large.", required="2", available="1", suggestion="A smaller one."),
            InsufficientResourcesError,
        ),
        (errors.ServerError("It is shutting down."), ServerError),
    ],
)
async def test_a_lease_that_is_refused(
    resource: Connect, script: Script, address: str, raised: DomainError, caught: type[GenaidError]
) -> None:
    script.steps["HoldLease"] = [orchestration_pb2.HoldLeaseResponse(lease=LEASED), raised]
    async with resource(address) as client:
        leases = client.iterate("orchestration.hold_lease", "worker", NEED)
        await anext(leases)
        with pytest.raises(caught) as found:
            await anext(leases)
    assert (found.value.message, found.value.metadata) == (raised.message, raised.facts)


async def test_a_lease_whose_server_goes(resource: Connect, script: Script) -> None:
    script.steps["HoldLease"] = [orchestration_pb2.HoldLeaseResponse(lease=LEASED), Flag.HANG]
    async with serve(script) as (address, server), resource(address) as client:
        leases = client.iterate("orchestration.hold_lease", "worker", NEED)
        await anext(leases)
        await server.stop(None)
        with pytest.raises(ConnectionFailedError):
            await anext(leases)


@pytest.mark.parametrize("field", ["width", "height", "max_vram_bytes", "model_id"])
async def test_what_no_message_can_hold(resource: Connect, script: Script, address: str, field: str) -> None:
    wrong: Any = {field: "\ud800" if field == "model_id" else 2**63}
    need = dataclasses.replace(NEED, **wrong)
    async with resource(address) as client:
        with pytest.raises(InvalidRequestError) as planned:
            await client.call("orchestration.plan_image_generation", need)
        with pytest.raises(InvalidRequestError) as held:
            await anext(client.iterate("orchestration.hold_lease", "worker", need))
    assert planned.value.metadata == held.value.metadata == {"field": field}
    assert script.requests == []


async def test_use_is_reported(resource: Connect, script: Script, address: str) -> None:
    async with resource(address) as client:
        assert await client.call("orchestration.report_lease_use", "lease-1") is None
        await client.call("orchestration.report_lease_use", "lease-1", width=1024, height=768, peak_ram_bytes=2**40)
    assert [request for _, request in script.requests] == [
        orchestration_pb2.ReportLeaseUseRequest(lease_id="lease-1"),
        orchestration_pb2.ReportLeaseUseRequest(lease_id="lease-1", width=1024, height=768, peak_ram_bytes=2**40),
    ]


async def test_use_of_a_lease_that_is_over(resource: Connect, script: Script, address: str) -> None:
    script.steps["ReportLeaseUse"] = [errors.NotFoundError("It is over.", leaseId="lease-1")]
    async with resource(address) as client:
        with pytest.raises(NotFoundError) as found:
            await client.call("orchestration.report_lease_use", "lease-1")
        with pytest.raises(InvalidRequestError, match="width"):
            await client.call("orchestration.report_lease_use", "lease-1", width=2**31)
    assert found.value.metadata == {"leaseId": "lease-1"}
    assert len(script.requests) == 1


async def test_leases_come_page_by_page(resource: Connect, script: Script, address: str) -> None:
    known = [orchestration_pb2.Lease(id=str(number)) for number in range(5)]

    def page(request: orchestration_pb2.ListLeasesRequest) -> orchestration_pb2.ListLeasesResponse:
        start = int(request.page_token or 0)
        end = start + 2
        return orchestration_pb2.ListLeasesResponse(
            leases=known[start:end],
            next_page_token=str(end) if end < len(known) else "",
            total_ram_bytes=2**36,
            total_vram_bytes=2**35,
            granted_ram_bytes=2**34 + start,
            granted_vram_bytes=2**33,
        )

    script.steps["ListLeases"] = [page]
    async with resource(address) as client:
        found = await client.call("orchestration.list_leases")
    assert [lease.id for lease in found.leases] == ["0", "1", "2", "3", "4"]
    assert dataclasses.replace(found, leases=()) == LeaseList((), 2**36, 2**35, 2**34 + 4, 2**33)
    assert [request.page_token for _, request in script.requests] == ["", "2", "4"]


async def test_a_listed_lease(resource: Connect, script: Script, address: str) -> None:
    script.steps["ListLeases"] = [orchestration_pb2.ListLeasesResponse(leases=[LEASED])]
    async with resource(address) as client:
        assert await client.call("orchestration.list_leases") == LeaseList((SAME_LEASE,), 0, 0, 0, 0)


# What messages become


PIXELS = st.integers(-(2**31), 2**31 - 1)


@given(
    st.builds(
        ImageNeed,
        model_id=st.text(st.characters(exclude_categories=["Cs"])),
        width=PIXELS,
        height=PIXELS,
        variant=st.text(st.characters(exclude_categories=["Cs"])),
        max_vram_bytes=st.none() | st.integers(-(2**63), 2**63 - 1),
    )
)
def test_a_need_arrives_as_it_is(need: ImageNeed) -> None:
    wire = convert_orchestration.hold_request("worker", need, False).SerializeToString()
    sent = orchestration_pb2.HoldLeaseRequest.FromString(wire).need
    assert (
        ImageNeed(
            model_id=sent.model_id,
            width=sent.width,
            height=sent.height,
            variant=sent.variant,
            max_vram_bytes=sent.max_vram_bytes if sent.HasField("max_vram_bytes") else None,
        )
        == need
    )


def test_a_placement_without_a_limit() -> None:
    lease = orchestration_pb2.Lease(placement=orchestration_pb2.ImagePlacement())
    assert convert_orchestration.lease_from_pb(lease).placement == ImagePlacement(False, False, None, "")


def test_what_was_just_offloaded() -> None:
    now = convert_orchestration.offloaded_from_pb(
        orchestration_pb2.GetOffloadedLlmResponse(offloaded=orchestration_pb2.OffloadedLlm())
    )
    assert now is not None
    assert (now.next_attempt_time, now.last_error, now.failed_attempts) == (None, "", 0)
    assert (now.config, now.serving) == (LlmConfig(), LlmServing())


@pytest.mark.parametrize("number", [0, 999])
def test_a_number_that_is_not_known_has_its_documented_meaning(number: Any) -> None:
    lease = convert_orchestration.lease_from_pb(orchestration_pb2.Lease(kind=number, state=number))
    assert (lease.kind, lease.state) == (None, LeaseState.WAITING)
    response = orchestration_pb2.PlanImageGenerationResponse(
        bottleneck=number, departures=[orchestration_pb2.Departure(kind=number)]
    )
    plan = convert_orchestration.plan_from_pb(response)
    assert (plan.bottleneck, plan.departures[0].kind) == (None, None)
    offloaded = convert_orchestration.offloaded_from_pb(
        orchestration_pb2.GetOffloadedLlmResponse(offloaded=orchestration_pb2.OffloadedLlm(phase=number))
    )
    assert offloaded is not None
    assert offloaded.phase is OffloadPhase.OFFLOADED
