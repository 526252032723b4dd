"""How an image engine computes follows from the memory that there is and from the limit of VRAM that was set."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorded_machines
from conftest import DemoModels
from genaid_server.kit.errors import FileSystemError, InvalidRequestError, ModelNotFoundError
from genaid_server.resource.core.fitting import diffusion_memory
from genaid_server.resource.core.fitting.capacity import Budgets, Capacity
from genaid_server.resource.core.fitting.footprint import Amount, MemoryKind
from genaid_server.resource.core.fitting.model_shape import DiffusionShape
from genaid_server.resource.core.leases.images import ImageLeaseRequest, ImageNeeds
from genaid_server.resource.core.leases.lease import ImagePlacement, Lease, LeaseRequest
from genaid_server.resource.core.leases.plan import AvailableMemory, TenantKind, plan
from genaid_server.resource.core.leases.usage import Usage, image_key
from genaid_server.resource.core.leases.ways import ImageNeed, Way, choose
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.core.system.survey import Survey
from unit.fitting.fitting_models import GIB, MIB, flux

EDGE = 1024
GPU = ImageNeed("flux", EDGE, EDGE, "cuda12")
CPU = ImageNeed("flux", EDGE, EDGE)
WAYS = [(False, False), (False, True), (True, False), (True, True)]  # offload, tiling: the fastest first


LIGHT = replace(flux(), encoder_weights=GIB, backbone_weights=2 * GIB)
"""One of which the decoder takes the most, whatever the weights do."""
FITTING = [(flux(), 0), (flux(), 1), (flux(), 2), (LIGHT, 0), (LIGHT, 1), (LIGHT, 3)]
"""A model, and the number of a way that is the first for which as much VRAM as it needs does."""


def needed(
    offload: bool = False, tiling: bool = False, *, gpu: bool = True, shape: DiffusionShape | None = None
) -> Amount:
    found = diffusion_memory.need(
        shape or flux(), width=EDGE, height=EDGE, gpu=gpu, offload_to_cpu=offload, vae_tiling=tiling
    )
    return Amount(found.ram.total, found.vram.total)


def unmeasured(_: ImageNeed) -> None:
    return None


def chosen(
    need: ImageNeed, whole: Capacity, limit: int = 0, shape: DiffusionShape | None = None, **settings: bool
) -> Way:
    return choose(shape or flux(), 17 * GIB, need, whole, limit, unmeasured, **settings)


class TestWays:
    """Flux takes 17 GiB of weights; with 1024 x 1024 pixels decoding takes more than a step."""

    def test_with_ample_memory_it_is_as_asked(self) -> None:
        way = chosen(GPU, Capacity(64 * GIB, (48 * GIB,)))
        assert (way.need, way.amount, way.measured) == (GPU, needed(), False)
        assert way.placement == ImagePlacement()

    @pytest.mark.parametrize(("shape", "number"), FITTING)
    def test_the_fastest_that_fits_into_vram_is_taken(self, shape: DiffusionShape, number: int) -> None:
        need = needed(*WAYS[number], shape=shape)
        way = chosen(GPU, Capacity(64 * GIB, (need.vram,)), shape=shape)
        assert way.amount == need
        assert (way.placement.offload_to_cpu, way.placement.vae_tiling) == WAYS[number]
        assert bool(way.placement.reason) == bool(number)

    def test_the_reason_says_what_is_done_and_what_is_short(self) -> None:
        tiled = chosen(GPU, Capacity(64 * GIB, (needed(tiling=True).vram,)))
        assert tiled.placement.reason.startswith("To save memory the image is decoded in tiles: else it would take ")
        assert " of VRAM, and may use " in tiled.placement.reason
        both = chosen(GPU, Capacity(64 * GIB, (needed(True, True, shape=LIGHT).vram,)), shape=LIGHT)
        assert (
            "the weights stay in main memory and move to the GPU as they are needed, and the image is"
            in both.placement.reason
        )
        in_ram = chosen(CPU, Capacity(needed(tiling=True, gpu=False).ram))
        assert " of RAM, and may use " in in_ram.placement.reason

    def test_what_is_refused_is_told_for_the_way_that_comes_closest(self) -> None:
        """Offloading is short of a byte of main memory, tiles alone of two of VRAM."""
        room = Amount(needed(True).ram - 1, needed(tiling=True).vram - 2)
        way = chosen(GPU, Capacity(room.ram, (room.vram,)))
        assert way.amount == needed(True)
        refused = plan(way.amount, [], AvailableMemory(room, room))
        assert (refused.possible, refused.bottleneck) == (False, MemoryKind.RAM)
        assert (refused.required, refused.available) == (way.amount.ram, room.ram)

    def test_what_can_not_fit_is_told_with_the_smallest_numbers(self) -> None:
        way = chosen(GPU, Capacity(64 * GIB, (GIB,)))
        assert way.amount == needed(True, True)
        alone = chosen(CPU, Capacity(GIB))
        assert alone.amount == needed(tiling=True, gpu=False)

    def test_on_the_processor_only_tiles_help(self) -> None:
        room = Capacity(needed(gpu=False).ram, (48 * GIB,))
        assert chosen(CPU, room).placement == ImagePlacement()
        less = chosen(CPU, replace(room, ram=room.ram - 1))
        assert (less.placement.vae_tiling, less.placement.offload_to_cpu) == (True, False)
        assert less.amount == needed(tiling=True, gpu=False)

    def test_what_was_asked_for_stays(self) -> None:
        ample = Capacity(64 * GIB, (48 * GIB,))
        for offload, tiling in WAYS:
            way = chosen(replace(GPU, offload_to_cpu=offload, vae_tiling=tiling), ample)
            assert way.placement == ImagePlacement(offload, tiling)
        asked = replace(GPU, flash_attention=True, clip_on_cpu=True, vae_on_cpu=True)
        way = chosen(asked, ample)
        expected = diffusion_memory.need(
            flux(), width=EDGE, height=EDGE, gpu=True, flash_attention=True, clip_on_cpu=True, vae_on_cpu=True
        )
        assert (way.need, way.amount) == (asked, Amount(expected.ram.total, expected.vram.total))

    def test_an_engine_that_is_resident_computes_as_it_does(self) -> None:
        way = chosen(GPU, Capacity(GIB, (GIB,)), as_asked=True)
        assert (way.amount, way.placement) == (needed(), ImagePlacement())

    def test_a_variant_without_a_gpu_computes_on_the_processor(self) -> None:
        way = chosen(replace(GPU, max_vram_bytes=GIB), Capacity(64 * GIB))
        assert (way.amount, way.need.variant) == (needed(gpu=False), "cpu")
        assert way.placement == ImagePlacement(reason=way.placement.reason)
        assert "No GPU was found" in way.placement.reason

    def test_one_gpu_is_used_the_largest(self) -> None:
        two = Capacity(64 * GIB, (needed().vram - 1, needed(True, True).vram))
        assert chosen(GPU, two).placement.vae_tiling
        assert chosen(GPU, replace(two, vram=(GIB, needed().vram))).placement == ImagePlacement()


class TestUnifiedMemory:
    """What the GPU takes is main memory."""

    def test_all_of_it_counts_as_main_memory(self) -> None:
        way = chosen(GPU, Capacity(64 * GIB, (48 * GIB,), unified=True))
        both = needed()
        assert (way.amount, way.on_gpu) == (Amount(both.ram + both.vram, 0), both.vram)

    def test_nothing_measured_counts_as_processes_do_not_show_what_the_gpu_has_of_theirs(self) -> None:
        room = Capacity(64 * GIB, (48 * GIB,), unified=True)
        way = choose(flux(), 17 * GIB, GPU, room, 0, lambda _: GIB)
        assert (way.measured, way.amount.ram) == (False, needed().ram + needed().vram)
        assert choose(flux(), 17 * GIB, CPU, room, 0, lambda _: GIB).measured

    def test_what_can_not_fit_is_told_with_the_smallest_numbers(self) -> None:
        """To keep weights in main memory as well would only take more of it."""
        way = chosen(GPU, Capacity(16 * GIB, (11 * GIB,), unified=True))
        amounts = [needed(*each) for each in WAYS]
        assert way.amount.ram == min(each.ram + each.vram for each in amounts)


class TestLimitOfVram:
    """The documented vramBudget."""

    ROOM = Capacity(64 * GIB, (48 * GIB,))

    @pytest.mark.parametrize(("shape", "number"), FITTING)
    def test_the_placement_follows_from_it(self, shape: DiffusionShape, number: int) -> None:
        limit = needed(*WAYS[number], shape=shape).vram
        way = chosen(replace(GPU, max_vram_bytes=limit), self.ROOM, shape=shape)
        assert (way.placement.offload_to_cpu, way.placement.vae_tiling) == WAYS[number]
        assert way.placement.max_vram_bytes == way.need.max_vram_bytes == limit

    def test_the_smaller_one_of_two_counts(self) -> None:
        asked = replace(GPU, max_vram_bytes=30 * GIB)
        assert chosen(asked, self.ROOM, 40 * GIB).placement.max_vram_bytes == 30 * GIB
        assert chosen(asked, self.ROOM, 25 * GIB).placement.max_vram_bytes == 25 * GIB
        assert chosen(GPU, self.ROOM, 25 * GIB).placement.max_vram_bytes == 25 * GIB

    def test_it_means_nothing_to_a_processor(self) -> None:
        assert chosen(replace(CPU, max_vram_bytes=GIB), self.ROOM, GIB).placement == ImagePlacement()

    def test_one_that_is_too_small_for_every_way_has_the_engine_compute_in_parts(self) -> None:
        way = chosen(replace(GPU, max_vram_bytes=GIB), self.ROOM)
        assert way.amount == needed(True, True)
        assert "computes in smaller parts to stay within 1.0 GiB" in way.placement.reason
        # What the machine does not have is refused, not computed in parts.
        assert "smaller parts" not in chosen(GPU, Capacity(64 * GIB, (GIB,)), GIB).placement.reason


class TestWithoutShape:
    """Of a model whose header says nothing, the size of its files is known."""

    def test_it_takes_the_documented_share_of_its_files(self) -> None:
        room = Capacity(64 * GIB, (48 * GIB,))
        assert choose(None, GIB, GPU, room, 0, unmeasured).amount == Amount(0, int(1.2 * GIB))
        assert choose(None, GIB, CPU, room, 0, unmeasured).amount == Amount(int(1.2 * GIB), 0)
        offloaded = choose(None, GIB, replace(GPU, offload_to_cpu=True), room, 0, unmeasured)
        assert offloaded.amount == Amount(int(1.2 * GIB), int(1.2 * GIB))

    def test_nobody_knows_what_would_help(self) -> None:
        way = choose(None, 40 * GIB, GPU, Capacity(64 * GIB, (8 * GIB,)), 0, unmeasured)
        assert (way.placement, way.amount.vram) == (ImagePlacement(), int(48 * GIB))


class TestMeasured:
    """A measurement of exactly this way replaces the estimate of main memory."""

    def test_it_replaces_main_memory_alone(self) -> None:
        room = Capacity(64 * GIB, (48 * GIB,))
        way = choose(flux(), 17 * GIB, GPU, room, 0, {GPU: 123 * MIB}.get)
        assert (way.measured, way.amount) == (True, Amount(123 * MIB, needed().vram))

    def test_it_takes_part_in_the_choice(self) -> None:
        room = Capacity(needed(gpu=False).ram - 1)
        tiled = replace(CPU, vae_tiling=True)
        way = choose(flux(), 17 * GIB, CPU, room, 0, {tiled: GIB}.get)
        assert (way.measured, way.amount) == (True, Amount(GIB, 0))

    def test_what_fits_by_its_estimate_is_not_refused_for_having_been_measured(self) -> None:
        """It has run in that room."""
        room = Capacity(needed(gpu=False).ram)
        way = choose(flux(), 17 * GIB, CPU, room, 0, {CPU: room.ram + 1}.get)
        assert (way.measured, way.placement.vae_tiling, way.amount) == (True, False, Amount(room.ram, 0))

    def test_what_does_not_fit_is_as_large_as_it_was_measured(self) -> None:
        room = Capacity(GIB)
        measured = dict.fromkeys((CPU, replace(CPU, vae_tiling=True)), 90 * GIB)
        assert choose(flux(), 17 * GIB, CPU, room, 0, measured.get).amount == Amount(90 * GIB, 0)


def amounts() -> st.SearchStrategy[int]:
    return st.builds(lambda parts, odd: parts * 32 * MIB + odd, st.integers(1, 1024), st.integers(0, 4096))


needs = st.builds(
    ImageNeed,
    st.just("any"),
    width=st.integers(8, 256).map(lambda edge: edge * 8),
    height=st.integers(8, 256).map(lambda edge: edge * 8),
    variant=st.sampled_from(["cpu", "cuda12"]),
    flash_attention=st.booleans(),
    vae_tiling=st.booleans(),
    offload_to_cpu=st.booleans(),
    clip_on_cpu=st.booleans(),
    vae_on_cpu=st.booleans(),
    max_vram_bytes=st.one_of(st.just(0), amounts()),
)


@given(needs, amounts(), st.lists(amounts(), max_size=2), st.booleans(), st.one_of(st.just(0), amounts()))
def test_whatever_the_machine_a_way_that_fits_stays_within_every_limit(
    need: ImageNeed, ram: int, gpus: list[int], unified: bool, limit: int
) -> None:
    unified = unified and len(gpus) == 1
    whole = Capacity(ram, tuple(min(each, ram) if unified else each for each in gpus), unified)
    way = chosen(need, whole, limit)
    on_gpu = bool(gpus) and need.variant != "cpu"
    most = min([whole.vram_best, *(each for each in (need.max_vram_bytes, limit) if each)])
    fitting = []
    for offload, tiling in WAYS:
        if (need.offload_to_cpu and not offload) or (need.vae_tiling and not tiling):
            continue
        asked: dict[str, Any] = {
            name: getattr(need, name) for name in ("width", "height", "flash_attention", "clip_on_cpu", "vae_on_cpu")
        }
        takes = diffusion_memory.need(flux(), **asked, gpu=on_gpu, offload_to_cpu=offload, vae_tiling=tiling)
        if whole.ram_for(takes) <= ram and (not on_gpu or takes.vram.total <= most):
            fitting.append((offload, tiling))
    assert (need.offload_to_cpu, need.vae_tiling) <= (way.placement.offload_to_cpu, way.placement.vae_tiling)
    if fitting:
        assert way.amount.ram <= ram
        assert way.on_gpu <= (most if on_gpu else 0)
        assert way.amount.vram == (0 if unified else way.on_gpu)
        if on_gpu:
            assert (way.placement.offload_to_cpu, way.placement.vae_tiling) == fitting[0]
    if on_gpu and (need.max_vram_bytes or limit):
        assert way.placement.max_vram_bytes == min(each for each in (need.max_vram_bytes, limit) if each)
    else:
        assert way.placement.max_vram_bytes == 0


# --- with a store of real models, on recorded machines


@dataclass(frozen=True)
class Place:
    """A recorded machine with `sd` and `llama` installed, and how many times its memory was measured."""

    needs: ImageNeeds
    store: ModelStore
    usage: Usage
    files: Path

    async def ask(self, **need: Any) -> ImageLeaseRequest:
        return await self.needs.request("worker", ImageNeed(**{"model_id": "sd", "width": 64, "height": 64, **need}))


@asynccontextmanager
async def place(
    folder: Path, models: DemoModels, machine: str = "cores-8", budgets: Budgets | None = None, default: str = ""
) -> AsyncIterator[Place]:
    store = await ModelStore.open(folder / "data")
    for name, file in (("sd", models.diffusion), ("llama", models.llm)):
        await install(store, name, file)
    usage = Usage(folder / "data" / "memory-usage.json")
    recorded = recorded_machines.materialize(machine, folder)
    async with Survey(recorded, folder / "data", probe_timeout=60.0) as survey:
        yield Place(ImageNeeds(store, survey, budgets or Budgets(), usage, default), store, usage, folder / "data")
    await store.close()


async def install(store: ModelStore, name: str, file: Path) -> None:
    store.inbox.mkdir(exist_ok=True)
    (store.inbox / f"{name}.gguf").hardlink_to(file)
    await store.import_file(f"{name}.gguf", name=name, model_id=name)


on_recorded_machines = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows can't have the names of files of sysfs"
)


@on_recorded_machines
class TestRequests:
    async def test_it_asks_for_what_the_engine_takes(self, tmp_path: Path, demo_models: DemoModels) -> None:
        async with place(tmp_path, demo_models) as at:
            small, large = await at.ask(), await at.ask(width=512, height=512)
            assert (small.tenant_id, small.kind, small.model_id) == ("worker", TenantKind.IMAGE, "sd")
            assert (small.placement, small.measured, small.resident) == (ImagePlacement(), False, False)
            assert at.store.get("sd").size_bytes < small.amount.ram < large.amount.ram
            assert small.amount.vram == 0
            assert (await at.needs.request("worker", ImageNeed("sd"), resident=True)).resident

    async def test_a_gpu_is_used_within_the_limits(self, tmp_path: Path, demo_models: DemoModels) -> None:
        async with place(tmp_path, demo_models, "nvidia-3090") as at:
            ample = await at.ask(variant="cuda12", width=512, height=512)
            assert ample.amount.vram > diffusion_memory.GPU_OVERHEAD
            assert ample.placement == ImagePlacement()
            assert (await at.ask(width=512, height=512)).amount.vram == 0
            limit = ample.amount.vram - 1
            less = await at.ask(variant="cuda12", width=512, height=512, max_vram_bytes=limit)
            assert less.amount.vram <= limit
            assert less.placement is not None
            assert (less.placement.vae_tiling, less.placement.max_vram_bytes) == (True, limit)
        async with place(tmp_path / "limited", demo_models, "nvidia-3090", Budgets(vram=limit)) as at:
            again = await at.ask(variant="cuda12", width=512, height=512)
        assert replace(again, model=less.model) == less

    async def test_memory_that_is_shared_with_the_gpu_is_main_memory(
        self, tmp_path: Path, demo_models: DemoModels
    ) -> None:
        async with place(tmp_path, demo_models, "apple-m2-pro") as at:
            metal, cpu = await at.ask(variant="metal"), await at.ask()
            assert metal.amount.vram == 0
            assert metal.amount.ram > diffusion_memory.GPU_OVERHEAD > 0
            assert metal.amount.ram > cpu.amount.ram

    async def test_a_budget_of_main_memory_has_it_decode_in_tiles(
        self, tmp_path: Path, demo_models: DemoModels
    ) -> None:
        async with place(tmp_path, demo_models) as at:
            ample = await at.ask(width=512, height=512)
        async with place(tmp_path / "limited", demo_models, budgets=Budgets(ram=ample.amount.ram - 1)) as at:
            less = await at.ask(width=512, height=512)
            assert less.placement is not None
            assert less.placement.vae_tiling
            assert less.amount.ram < ample.amount.ram

    async def test_the_header_is_read_again_only_where_the_file_changed(
        self, tmp_path: Path, demo_models: DemoModels
    ) -> None:
        async with place(tmp_path, demo_models) as at:
            before = await at.ask()
            assert await at.ask() == before
            path = at.store.get("sd").path
            path.unlink()
            path.write_bytes(b"no header at all")
            assert (await at.ask()).amount.ram == int(at.store.get("sd").size_bytes * 1.2)
            path.unlink()
            with pytest.raises(FileSystemError):
                await at.ask()


@on_recorded_machines
class TestWhichModel:
    async def test_the_only_one_is_meant_where_none_is_named(self, tmp_path: Path, demo_models: DemoModels) -> None:
        async with place(tmp_path, demo_models) as at:
            assert (await at.ask(model_id="")).model_id == "sd"
            await install(at.store, "other", demo_models.diffusion)
            with pytest.raises(ModelNotFoundError, match=r"other, sd"):
                await at.ask(model_id="")
            for name in ("sd", "other"):
                await at.store.delete(name)
            with pytest.raises(ModelNotFoundError, match="genaid models import"):
                await at.ask(model_id="")

    async def test_the_configured_one_comes_before_that(self, tmp_path: Path, demo_models: DemoModels) -> None:
        async with place(tmp_path, demo_models, default="other") as at:
            with pytest.raises(ModelNotFoundError, match="'other' is not installed"):
                await at.ask(model_id="")
            await install(at.store, "other", demo_models.diffusion)
            assert (await at.ask(model_id="")).model_id == "other"
            assert (await at.ask(model_id="sd")).model_id == "sd"

    async def test_one_that_can_not_draw_is_not_found(self, tmp_path: Path, demo_models: DemoModels) -> None:
        async with place(tmp_path, demo_models, default="llama") as at:
            for name in ("llama", ""):
                with pytest.raises(ModelNotFoundError, match="is no diffusion model") as error:
                    await at.ask(model_id=name)
                assert error.value.facts == {"modelId": "llama"}
            with pytest.raises(ModelNotFoundError, match="not installed"):
                await at.ask(model_id="nothing")


@on_recorded_machines
async def test_what_is_out_of_range_is_refused_and_named(tmp_path: Path, demo_models: DemoModels) -> None:
    async with place(tmp_path, demo_models) as at:
        for field, value in [
            *product(("width", "height"), (63, 8193, -1, 0)),
            ("max_vram_bytes", -1),
            ("variant", ""),
            ("variant", "x" * 65),
        ]:
            with pytest.raises(InvalidRequestError, match=field) as error:
                await at.ask(**{field: value})
            assert error.value.facts == {"field": field}
        for tenant in ("", "x" * 129, "a\nb", "a\x00", " a", "a ", "llm"):
            with pytest.raises(InvalidRequestError, match="tenant_id") as error:
                await at.needs.request(tenant, ImageNeed("sd"))
            assert error.value.facts == {"field": "tenant_id"}
        for tenant in ("a", "x" * 128, "an image worker, Nr. 1", "LLM", "ä"):
            assert (await at.needs.request(tenant, ImageNeed("sd", 8192, 64))).tenant_id == tenant


@on_recorded_machines
class TestLearning:
    async def test_the_next_lease_is_as_large_as_what_was_seen(self, tmp_path: Path, demo_models: DemoModels) -> None:
        async with place(tmp_path, demo_models) as at:
            lease = Lease("1", await at.ask(width=128), 0.0)
            at.needs.learn(lease, 128, 64, 300 * MIB)
            again = await at.ask(width=128)
            assert (again.amount, again.measured) == (Amount(300 * MIB), True)
            assert replace(again, amount=lease.request.amount, measured=False) == lease.request
            for other in (await at.ask(), await at.ask(width=128, vae_tiling=True), await at.ask(width=136)):
                assert not other.measured
            restarted = Usage(at.files / "memory-usage.json")
            key = image_key("sd", at.store.get("sd").size_bytes, ImageNeed("sd", 128, 64))
            assert restarted.known(key) == 300 * MIB

    async def test_what_is_learned_is_of_the_images_that_were_made(
        self, tmp_path: Path, demo_models: DemoModels
    ) -> None:
        async with place(tmp_path, demo_models) as at:
            lease = Lease("1", await at.ask(width=256), 0.0)
            at.needs.learn(lease, 128, 72, 300 * MIB)
            sizes = [(128, 72), (128, 64), (256, 72), (256, 64)]
            asked = [await at.ask(width=width, height=height) for width, height in sizes]
            assert [each.measured for each in asked] == [True, False, False, False]

    async def test_it_is_learned_for_the_way_that_was_chosen(self, tmp_path: Path, demo_models: DemoModels) -> None:
        async with place(tmp_path, demo_models, "nvidia-3090") as at:
            ample = await at.ask(variant="cuda12", width=512, height=512)
            limited = {"variant": "cuda12", "width": 512, "height": 512, "max_vram_bytes": ample.amount.vram - 1}
            less = await at.ask(**limited)
            at.needs.learn(Lease("1", less, 0.0), 512, 512, 300 * MIB)
            assert (await at.ask(**limited)).amount == Amount(300 * MIB, less.amount.vram)
            assert await at.ask(variant="cuda12", width=512, height=512) == ample

    async def test_nothing_is_learned_where_nothing_was_made_or_seen(
        self, tmp_path: Path, demo_models: DemoModels
    ) -> None:
        async with place(tmp_path, demo_models) as at:
            request = await at.ask()
            at.needs.learn(Lease("1", request, 0.0), 0, 0, 300 * MIB)
            at.needs.learn(Lease("1", request, 0.0), 64, 64, 0)
            at.needs.learn(Lease("2", LeaseRequest("llm", TenantKind.LLM, "llama", Amount(1)), 0.0), 64, 64, 300 * MIB)
            assert await at.ask() == request
            assert not (at.files / "memory-usage.json").exists()
