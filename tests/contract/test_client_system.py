"""The calls about the machine, on both faces against a scripted server, and what their messages become."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from contract.faces import Connect
from contract.scripted import Flag, Script
from genaid.resource.v1 import system_pb2
from genaid_client import (
    CacheType,
    Cpu,
    EngineMemory,
    FileSystemError,
    Footprint,
    Gpu,
    GpuMemory,
    GpuVendor,
    InvalidRequestError,
    LlmConfig,
    LlmRecommendation,
    MemoryNeed,
    MemorySnapshot,
    ModelCheck,
    ModelNotFoundError,
    Placement,
    Ram,
    Recommendations,
    SystemCapabilities,
    convert_system,
)
from genaid_server.kit.errors import DomainError
from genaid_server.kit.errors import FileSystemError as Unreadable
from genaid_server.kit.errors import InvalidRequestError as Refused
from genaid_server.kit.errors import ModelNotFoundError as NotInstalled

PATIENCE = 30.0  # seconds until a test that waits for something gives up
GIB = 1024**3
MOMENT = Timestamp(seconds=1_700_000_000)
THEN = datetime.fromtimestamp(1_700_000_000, UTC)
NEED = system_pb2.MemoryNeed(
    ram=system_pb2.Footprint(weights_bytes=1, kv_cache_bytes=2, compute_bytes=3, overhead_bytes=4, total_bytes=10),
    vram=system_pb2.Footprint(weights_bytes=5, kv_cache_bytes=6, compute_bytes=7, overhead_bytes=8, total_bytes=26),
    exact=True,
)
CONFIG = system_pb2.LlmConfig(
    threads=7,
    gpu_layers=0,
    context_size=4096,
    parallel_requests=2,
    flash_attention=False,
    cache_type_k=system_pb2.CACHE_TYPE_Q8_0,
    cache_type_v=system_pb2.CACHE_TYPE_F16,
    experts_on_cpu=True,
)
SAME_CONFIG = LlmConfig(7, 0, 4096, 2, False, CacheType.Q8_0, CacheType.F16, True)


# Calls


@pytest.mark.parametrize("refresh", [False, True])
async def test_what_the_machine_has(resource: Connect, script: Script, address: str, refresh: bool) -> None:
    script.steps["GetCapabilities"] = [
        system_pb2.GetCapabilitiesResponse(capabilities=system_pb2.SystemCapabilities(platform_key="linux-x64"))
    ]
    async with resource(address) as client:
        found = await client.call("system.get_capabilities", refresh)
    assert found.platform_key == "linux-x64"
    assert script.requests == [("GetCapabilities", system_pb2.GetCapabilitiesRequest(refresh=refresh))]


async def test_what_is_known_will_do_if_not_told_otherwise(resource: Connect, script: Script, address: str) -> None:
    async with resource(address) as client:
        await client.call("system.get_capabilities")
    assert script.requests == [("GetCapabilities", system_pb2.GetCapabilitiesRequest())]


async def test_memory_now(resource: Connect, script: Script, address: str) -> None:
    memory = system_pb2.MemorySnapshot(ram=system_pb2.Ram(total_bytes=7))
    script.steps["GetMemory"] = [system_pb2.GetMemoryResponse(memory=memory)]
    async with resource(address) as client:
        assert (await client.call("system.get_memory")).ram.total_bytes == 7
    assert script.requests == [("GetMemory", system_pb2.GetMemoryRequest())]


def measured(used: int) -> system_pb2.WatchMemoryResponse:
    return system_pb2.WatchMemoryResponse(memory=system_pb2.MemorySnapshot(ram=system_pb2.Ram(used_bytes=used)))


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [
        (None, system_pb2.WatchMemoryRequest()),
        (0.25, system_pb2.WatchMemoryRequest(interval=Duration(nanos=250_000_000))),
        (0, system_pb2.WatchMemoryRequest(interval=Duration())),
    ],
)
async def test_memory_is_watched(
    resource: Connect, script: Script, address: str, seconds: float | None, sent: system_pb2.WatchMemoryRequest
) -> None:
    script.steps["WatchMemory"] = [measured(1), measured(2)]
    async with resource(address) as client:
        seen = [memory.ram.used_bytes async for memory in client.iterate("system.watch_memory", seconds)]
    assert seen == [1, 2]
    assert script.requests == [("WatchMemory", sent)]


async def test_an_interval_that_the_server_refuses(resource: Connect, script: Script, address: str) -> None:
    script.steps["WatchMemory"] = [Refused("`interval` must be 0.1 to 3600 seconds.", field="interval")]
    async with resource(address) as client:
        with pytest.raises(InvalidRequestError, match=r"0\.1 to 3600"):
            await anext(client.iterate("system.watch_memory", 0))


async def test_a_watch_that_is_closed_cancels_its_call(resource: Connect, script: Script, address: str) -> None:
    script.steps["WatchMemory"] = [measured(1), Flag.HANG]
    async with resource(address) as client:
        iterator = client.iterate("system.watch_memory")
        await anext(iterator)
        await asyncio.wait_for(script.hanging.wait(), PATIENCE)
        await iterator.aclose()
        await asyncio.wait_for(script.cancelled.wait(), PATIENCE)


async def test_a_language_model_is_checked(resource: Connect, script: Script, address: str) -> None:
    script.steps["CheckModel"] = [system_pb2.CheckModelResponse(possible=True, llm_config=CONFIG)]
    async with resource(address) as client:
        check = await client.call("system.check_model", "tiny", check_total_memory=True, llm_config=SAME_CONFIG)
    assert (check.possible, check.llm_config) == (True, SAME_CONFIG)
    request = system_pb2.CheckModelRequest(model_id="tiny", check_total_memory=True, llm_config=CONFIG)
    assert script.requests == [("CheckModel", request)]


async def test_a_diffusion_model_is_checked(resource: Connect, script: Script, address: str) -> None:
    script.steps["CheckModel"] = [system_pb2.CheckModelResponse(reason="It is too large.")]
    async with resource(address) as client:
        check = await client.call("system.check_model", "flux", width=1024, height=0)
    assert (check.possible, check.reason, check.llm_config) == (False, "It is too large.", None)
    assert script.requests == [("CheckModel", system_pb2.CheckModelRequest(model_id="flux", width=1024, height=0))]


async def test_what_is_not_said_of_a_model_is_left_to_the_server(
    resource: Connect, script: Script, address: str
) -> None:
    async with resource(address) as client:
        await client.call("system.check_model", "tiny")
        await client.call("system.recommend_llm_config", "tiny")
        await client.call("system.recommend_llm_config", "tiny", LlmConfig())
    assert script.requests == [
        ("CheckModel", system_pb2.CheckModelRequest(model_id="tiny")),
        ("RecommendLlmConfig", system_pb2.RecommendLlmConfigRequest(model_id="tiny")),
        ("RecommendLlmConfig", system_pb2.RecommendLlmConfigRequest(model_id="tiny", wishes=system_pb2.LlmConfig())),
    ]


async def test_a_recommendation_is_made_around_wishes(resource: Connect, script: Script, address: str) -> None:
    script.steps["RecommendLlmConfig"] = [
        system_pb2.RecommendLlmConfigResponse(config=CONFIG, placement=system_pb2.PLACEMENT_CPU, fits=True)
    ]
    async with resource(address) as client:
        found = await client.call(
            "system.recommend_llm_config", "tiny", LlmConfig(gpu_layers=0, cache_type_v=CacheType.Q4_0)
        )
    assert (found.config, found.placement, found.fits) == (SAME_CONFIG, Placement.CPU, True)
    wishes = system_pb2.LlmConfig(gpu_layers=0, cache_type_v=system_pb2.CACHE_TYPE_Q4_0)
    request = system_pb2.RecommendLlmConfigRequest(model_id="tiny", wishes=wishes)
    assert script.requests == [("RecommendLlmConfig", request)]


@pytest.mark.parametrize(
    ("method", "rpc"), [("system.check_model", "CheckModel"), ("system.recommend_llm_config", "RecommendLlmConfig")]
)
@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (NotInstalled("It is not here.", modelId="tiny"), ModelNotFoundError),
        (Refused("`width` is not for a language model.", field="width"), InvalidRequestError),
        (Unreadable("It can't be read.", path="/models/tiny.gguf"), FileSystemError),
    ],
)
async def test_what_goes_wrong_has_its_class(
    resource: Connect,
    script: Script,
    address: str,
    method: str,
    rpc: str,
    raised: DomainError,
    expected: type[Exception],
) -> None:
    script.steps[rpc] = [raised]
    async with resource(address) as client:
        with pytest.raises(expected, match=str(raised)):
            await client.call(method, "tiny")


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "field"),
    [
        ("system.check_model", ("\ud800",), {}, "model_id"),
        ("system.check_model", ("tiny",), {"width": 2**40}, "width"),
        ("system.check_model", ("tiny",), {"llm_config": LlmConfig(context_size=2**40)}, "context_size"),
        ("system.recommend_llm_config", ("\ud800",), {}, "model_id"),
        ("system.recommend_llm_config", ("tiny", LlmConfig(gpu_layers=-(2**40))), {}, "gpu_layers"),
    ],
)
async def test_what_no_message_can_hold_is_refused_at_once(
    resource: Connect, script: Script, address: str, method: str, args: Any, kwargs: Any, field: str
) -> None:
    async with resource(address) as client:
        with pytest.raises(InvalidRequestError) as raised:
            await client.call(method, *args, **kwargs)
    assert raised.value.metadata == {"field": field}
    assert script.requests == []


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1e300])
async def test_an_interval_that_is_no_duration_is_refused_at_once(
    resource: Connect, script: Script, address: str, seconds: float
) -> None:
    async with resource(address) as client:
        with pytest.raises(InvalidRequestError) as raised:
            await anext(client.iterate("system.watch_memory", seconds))
    assert raised.value.metadata == {"field": "interval"}
    assert script.requests == []


# Messages and results


def test_all_of_a_machine() -> None:
    message = system_pb2.SystemCapabilities(
        cpu=system_pb2.Cpu(
            model="A CPU",
            architecture="x64",
            physical_cores=4,
            logical_cores=8,
            usable_cores=6,
            features=["avx", "avx2"],
        ),
        memory=system_pb2.Ram(
            total_bytes=32 * GIB,
            available_bytes=20 * GIB,
            used_bytes=12 * GIB,
            container_limit_bytes=32 * GIB,
            budget_bytes=16 * GIB,
        ),
        gpu_available=True,
        gpus=[
            system_pb2.Gpu(
                id="0000:01:00.0",
                vendor=system_pb2.GPU_VENDOR_NVIDIA,
                name="A GPU",
                vram_bytes=24 * GIB,
                vram_free_bytes=0,
                unified_memory=True,
                integrated=True,
                driver="560.1",
                compute_capability="8.9",
                cuda=True,
                metal=True,
                rocm=True,
                vulkan=True,
            ),
            system_pb2.Gpu(id="1"),
        ],
        platform="linux",
        platform_key="linux-x64",
        recommendations=system_pb2.Recommendations(
            max_model_size="13B",
            quantizations=["Q5_K_M", "Q4_K_M"],
            threads=7,
            gpu_layers=0,
            size_reason="size",
            threads_reason="threads",
            gpu_layers_reason="layers",
        ),
        notes=["nothing is known of the driver"],
        container=True,
        wsl=True,
        detect_time=MOMENT,
        vram_budget_bytes=8 * GIB,
    )
    assert convert_system.capabilities_from_pb(message) == SystemCapabilities(
        cpu=Cpu("A CPU", "x64", 4, 8, 6, ("avx", "avx2")),
        memory=Ram(32 * GIB, 20 * GIB, 12 * GIB, 32 * GIB, 16 * GIB),
        gpu_available=True,
        gpus=(
            Gpu(
                id="0000:01:00.0",
                vendor=GpuVendor.NVIDIA,
                name="A GPU",
                vram_bytes=24 * GIB,
                vram_free_bytes=0,
                unified_memory=True,
                integrated=True,
                driver="560.1",
                compute_capability="8.9",
                cuda=True,
                metal=True,
                rocm=True,
                vulkan=True,
            ),
            Gpu(id="1", vendor=None, name=""),
        ),
        platform="linux",
        platform_key="linux-x64",
        recommendations=Recommendations("13B", ("Q5_K_M", "Q4_K_M"), 7, 0, "size", "threads", "layers"),
        notes=("nothing is known of the driver",),
        container=True,
        wsl=True,
        detect_time=THEN,
        vram_budget_bytes=8 * GIB,
    )


def test_layers_that_depend_on_the_model_are_not_zero() -> None:
    recommended = convert_system.capabilities_from_pb(system_pb2.SystemCapabilities()).recommendations
    assert recommended.gpu_layers is None


def test_all_of_a_measurement() -> None:
    message = system_pb2.MemorySnapshot(
        time=MOMENT,
        ram=system_pb2.Ram(total_bytes=3, available_bytes=2, used_bytes=1),
        gpus=[
            system_pb2.GpuMemory(gpu_id="0", name="A GPU", total_bytes=9, free_bytes=0),
            system_pb2.GpuMemory(gpu_id="1"),
        ],
        engines=[
            system_pb2.EngineMemory(kind="image", model_id="flux", pid=2**40, resident_bytes=5, vram_bytes=0),
            system_pb2.EngineMemory(kind="llm", model_id="tiny", pid=2, resident_bytes=6),
        ],
        notes=["a note"],
        vram_budget_bytes=4,
    )
    assert convert_system.memory_from_pb(message) == MemorySnapshot(
        time=THEN,
        ram=Ram(3, 2, 1),
        gpus=(GpuMemory("0", "A GPU", 9, 0), GpuMemory("1", "", None, None)),
        engines=(EngineMemory("image", "flux", 2**40, 5, 0), EngineMemory("llm", "tiny", 2, 6, None)),
        notes=("a note",),
        vram_budget_bytes=4,
    )


def test_all_of_a_check() -> None:
    message = system_pb2.CheckModelResponse(
        possible=True,
        reason="slow",
        suggestion="a smaller one",
        required_bytes=2**40,
        available_bytes=2**41,
        need=NEED,
        llm_config=CONFIG,
    )
    need = MemoryNeed(Footprint(1, 2, 3, 4, 10), Footprint(5, 6, 7, 8, 26), exact=True)
    assert convert_system.check_from_pb(message) == ModelCheck(
        True, "slow", "a smaller one", 2**40, 2**41, need, SAME_CONFIG
    )


def test_all_of_a_recommendation() -> None:
    message = system_pb2.RecommendLlmConfigResponse(
        config=CONFIG,
        placement=system_pb2.PLACEMENT_EXPERTS_ON_CPU,
        need=NEED,
        fits=True,
        context_reduced=True,
        reasons={"threads": "one is left for others"},
    )
    need = MemoryNeed(Footprint(1, 2, 3, 4, 10), Footprint(5, 6, 7, 8, 26), exact=True)
    assert convert_system.recommendation_from_pb(message) == LlmRecommendation(
        SAME_CONFIG, Placement.EXPERTS_ON_CPU, need, True, True, {"threads": "one is left for others"}
    )


INT32 = st.integers(-(2**31), 2**31 - 1)


@given(
    st.builds(
        LlmConfig,
        threads=st.none() | INT32,
        gpu_layers=st.none() | INT32,
        context_size=st.none() | INT32,
        parallel_requests=st.none() | INT32,
        flash_attention=st.none() | st.booleans(),
        cache_type_k=st.none() | st.sampled_from(CacheType),
        cache_type_v=st.none() | st.sampled_from(CacheType),
        experts_on_cpu=st.none() | st.booleans(),
    )
)
def test_a_config_comes_back_as_it_went(config: LlmConfig) -> None:
    wire = convert_system.llm_config_to_pb(config).SerializeToString()
    assert convert_system.llm_config_from_pb(system_pb2.LlmConfig.FromString(wire)) == config


@pytest.mark.parametrize("number", [0, 999])
def test_a_number_that_is_not_known_is_none(number: Any) -> None:
    machine = system_pb2.SystemCapabilities(gpus=[system_pb2.Gpu(vendor=number)])
    assert convert_system.capabilities_from_pb(machine).gpus[0].vendor is None
    config = convert_system.llm_config_from_pb(system_pb2.LlmConfig(cache_type_k=number, cache_type_v=number))
    assert (config.cache_type_k, config.cache_type_v) == (None, None)
    found = system_pb2.RecommendLlmConfigResponse(placement=number)
    assert convert_system.recommendation_from_pb(found).placement is None
