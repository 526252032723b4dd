"""The memory of diffusion models: against what the engine says of its buffers, by hand, and as laws."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.resource.core.fitting.diffusion_memory import GPU_OVERHEAD, fallback, need
from genaid_server.resource.core.fitting.footprint import Footprint, MemoryNeed
from genaid_server.resource.core.fitting.model_shape import Backbone, DiffusionShape

MEBIBYTE = 2**20
GIBIBYTE = 2**30

FLUX = DiffusionShape(
    backbone=Backbone.TRANSFORMER,
    encoder_weights=5 * GIBIBYTE,
    vae_weights=GIBIBYTE // 8,
    backbone_weights=6 * GIBIBYTE,
    width=3072,
    heads=24,
    pixels_per_token=16,
    text_tokens=512,
    text_width=4096,
    decoder_width=128,
    fused_blocks=True,
    language_encoder=True,
)
FLUX_CLIP = replace(FLUX, text_tokens=256)
SD3 = replace(FLUX, width=1536, text_tokens=154, fused_blocks=False)
SD1 = DiffusionShape(
    backbone=Backbone.UNET,
    encoder_weights=GIBIBYTE // 4,
    vae_weights=GIBIBYTE // 8,
    backbone_weights=2 * GIBIBYTE,
    width=320,
    heads=8,
    pixels_per_token=8,
    text_tokens=77,
    text_width=768,
    decoder_width=128,
)
SD2 = replace(SD1, heads=5, text_width=1024)
SDXL = replace(SD1, width=640, heads=10, pixels_per_token=16, text_width=2048)


def backbone(shape: DiffusionShape, edge: int, *, flash_attention: bool = False) -> int:
    """The compute buffer on the GPU with the other networks on the processor: the backbone's."""
    found = need(
        shape,
        width=edge,
        height=edge,
        gpu=True,
        flash_attention=flash_attention,
        clip_on_cpu=True,
        vae_on_cpu=True,
    )
    return found.vram.compute


@pytest.mark.parametrize(
    ("shape", "edge", "flash_attention", "seen"),
    [
        (FLUX, 1024, False, 2577),
        (FLUX_CLIP, 1024, False, 2361.25),
        (FLUX_CLIP, 512, False, 341.50),
        (FLUX_CLIP, 1024, True, 780.25),
        (FLUX_CLIP, 512, True, 230.50),
        (SD3, 64, False, 11.57),
        (SD3, 256, False, 37.09),
        (SD3, 512, False, 169.64),
        (SD3, 512, True, 59.69),
        (SD3, 1024, True, 200.83),
        (SD1, 256, False, 49.57),
        (SD1, 512, False, 559.90),
        (SD1, 1024, False, 8360.93),
        (SD1, 512, True, 123.07),
        (SD1, 1024, True, 491.60),
        (SDXL, 512, False, 132.05),
        (SD2, 512, False, 367.98),
        (SDXL, 1024, False, 830.86),
        (SDXL, 1024, True, 491.99),
    ],
)
def test_a_backbone_computes_in_what_the_engine_says(
    shape: DiffusionShape, edge: int, flash_attention: bool, seen: float
) -> None:
    assert backbone(shape, edge, flash_attention=flash_attention) == pytest.approx(seen * MEBIBYTE, rel=0.1)


@pytest.mark.parametrize(
    ("decoder_width", "tiny", "edge", "tiling", "seen"),
    [
        (32, False, 256, False, 104.06),
        (32, False, 512, False, 416.25),
        (32, False, 1024, False, 1665.00),
        (32, False, 2048, False, 16548.00),
        (32, False, 1024, True, 104.06),
        (128, False, 1024, False, 6656),
        (64, True, 256, False, 120.06),
        (64, True, 512, False, 480.25),
        (64, True, 512, True, 120.06),
    ],
)
def test_a_decoder_computes_in_what_the_engine_says(
    decoder_width: int, tiny: bool, edge: int, tiling: bool, seen: float
) -> None:
    # Beside a backbone that takes next to nothing.
    shape = replace(SD1, width=1, heads=1, pixels_per_token=64, decoder_width=decoder_width, tiny_decoder=tiny)
    found = need(shape, width=edge, height=edge, gpu=True, vae_tiling=tiling)
    assert found.vram.compute == pytest.approx(seen * MEBIBYTE, rel=0.01)


@pytest.mark.parametrize(("tokens", "language", "seen"), [(256, True, 68.25), (256, False, 2.36)])
def test_text_is_encoded_in_what_the_engine_says(tokens: int, language: bool, seen: float) -> None:
    # On the processor alone with a backbone on the GPU: nothing else computes there.
    shape = replace(FLUX, text_tokens=tokens, language_encoder=language)
    found = need(shape, width=64, height=64, gpu=True, clip_on_cpu=True)
    assert found.ram.compute - 24 * 64 * 64 == pytest.approx(seen * MEBIBYTE, rel=0.02)


def test_flux_dev_by_hand() -> None:
    tokens = 64 * 64 + 512
    scores = tokens**2 * 24 * 4
    assert scores == 2_038_431_744
    assert backbone(FLUX, 1024) == scores + 13 * tokens * 3072 * 4 + 512 * 4096 * 4 == 2_782_920_704
    found = need(FLUX, width=1024, height=1024, gpu=True, vae_tiling=True)
    assert found == MemoryNeed(
        ram=Footprint(compute=24 * 1024 * 1024, overhead=54_000_000),
        vram=Footprint(weights=FLUX.weights, compute=2_782_920_704, overhead=GPU_OVERHEAD),
    )


def test_sd_1_5_by_hand() -> None:
    scores = 4096**2 * 8 * 4
    assert backbone(SD1, 512) == scores + 11 * 4096 * 320 * 4 == 594_542_592
    assert backbone(SD1, 512, flash_attention=True) == 99 * 320 * 4096 == 129_761_280
    found = need(SD1, gpu=False)
    assert found.vram == Footprint()
    assert found.ram.weights == SD1.weights
    assert found.ram.compute == 52 * 128 * 512 * 512 + 24 * 512 * 512


def test_sdxl_by_hand() -> None:
    scores = 4096**2 * 10 * 4
    waiting = 3 * 320 * 128 * 128 * 4
    assert backbone(SDXL, 1024) == scores + 11 * 4096 * 640 * 4 + waiting == 849_346_560
    # Its convolutions are at the resolution of SD 1.5, and have as many channels there.
    assert backbone(SDXL, 1024, flash_attention=True) == backbone(SD1, 1024, flash_attention=True)


def test_sd3_medium_by_hand() -> None:
    tokens = 64 * 64 + 154
    scores = tokens**2 * 24 * 4
    assert backbone(SD3, 1024) == scores + 7 * tokens * 1536 * 4 + 154 * 4096 * 4 == 1_919_307_136


def test_offloaded_weights_visit_the_gpu_one_network_at_a_time() -> None:
    found = need(FLUX, width=64, height=64, gpu=True, offload_to_cpu=True)
    assert found.ram.weights == FLUX.weights
    assert found.vram.weights == FLUX.backbone_weights
    assert found.total < need(FLUX, width=64, height=64, gpu=True).total + FLUX.weights
    large = need(FLUX, width=4096, height=4096, gpu=True, offload_to_cpu=True, flash_attention=True)
    assert large.vram.weights == FLUX.vae_weights, "at this size nothing needs as much as the decoder"


def test_what_is_on_the_processor_computes_there() -> None:
    found = need(FLUX, gpu=True, clip_on_cpu=True, vae_on_cpu=True)
    assert found.ram.weights == FLUX.encoder_weights + FLUX.vae_weights
    assert found.vram.weights == FLUX.backbone_weights
    assert found.ram.compute == (52 * 128 + 24) * 512 * 512
    assert found.vram.compute == backbone(FLUX, 512)


def test_a_model_without_a_known_header_takes_its_size_and_a_fifth() -> None:
    assert fallback(1000, gpu=False) == MemoryNeed(ram=Footprint(weights=1200), exact=False)
    assert fallback(1000, gpu=True) == MemoryNeed(ram=Footprint(), vram=Footprint(weights=1200), exact=False)
    assert fallback(0, gpu=False).total == 0


DIMENSIONS = st.integers(1, 2**16)
WEIGHTS = st.integers(0, 2**40)
MODELS = st.builds(
    DiffusionShape,
    backbone=st.sampled_from(Backbone),
    encoder_weights=WEIGHTS,
    vae_weights=WEIGHTS,
    backbone_weights=WEIGHTS,
    width=DIMENSIONS,
    heads=st.integers(1, 4096),
    pixels_per_token=st.sampled_from([8, 16, 24, 32, 64, 128]),
    text_tokens=st.integers(0, 1024),
    text_width=DIMENSIONS,
    decoder_width=DIMENSIONS,
    tiny_decoder=st.booleans(),
    fused_blocks=st.booleans(),
    language_encoder=st.booleans(),
)
EDGES = st.integers(64, 8192)
NAMES = ("flash_attention", "vae_tiling", "offload_to_cpu", "clip_on_cpu", "vae_on_cpu")
SETTINGS = st.fixed_dictionaries({name: st.booleans() for name in NAMES})


@given(MODELS, EDGES, EDGES, st.integers(0, 1024), st.integers(0, 1024), st.booleans(), SETTINGS)
def test_a_larger_picture_never_takes_less(
    shape: DiffusionShape, width: int, height: int, wider: int, higher: int, gpu: bool, settings: dict[str, bool]
) -> None:
    small = need(shape, width=width, height=height, gpu=gpu, **settings)
    large = need(shape, width=width + wider, height=height + higher, gpu=gpu, **settings)
    assert large.ram.total >= small.ram.total
    assert large.vram.total >= small.vram.total


@given(MODELS, EDGES, EDGES, st.booleans(), SETTINGS, st.sampled_from(["flash_attention", "vae_tiling"]))
def test_flash_attention_and_tiling_never_take_more(
    shape: DiffusionShape, width: int, height: int, gpu: bool, settings: dict[str, bool], saving: str
) -> None:
    without = need(shape, width=width, height=height, gpu=gpu, **(settings | {saving: False}))
    having = need(shape, width=width, height=height, gpu=gpu, **(settings | {saving: True}))
    assert having.ram.total <= without.ram.total
    assert having.vram.total <= without.vram.total


@given(MODELS, EDGES, EDGES, st.booleans(), SETTINGS)
def test_all_weights_are_somewhere(
    shape: DiffusionShape, width: int, height: int, gpu: bool, settings: dict[str, bool]
) -> None:
    resident = need(shape, width=width, height=height, gpu=gpu, **(settings | {"offload_to_cpu": False}))
    assert resident.ram.weights + resident.vram.weights == shape.weights
    offloaded = need(shape, width=width, height=height, gpu=gpu, **(settings | {"offload_to_cpu": True}))
    assert offloaded.ram.weights == shape.weights
    assert offloaded.vram.total <= resident.vram.total


@given(MODELS, EDGES, EDGES, SETTINGS)
def test_without_a_gpu_nothing_is_there(
    shape: DiffusionShape, width: int, height: int, settings: dict[str, bool]
) -> None:
    found = need(shape, width=width, height=height, gpu=False, **settings)
    assert found.vram == Footprint()
    elsewhere = settings | {"offload_to_cpu": False, "clip_on_cpu": False, "vae_on_cpu": False}
    assert found == need(shape, width=width, height=height, gpu=False, **elsewhere)
