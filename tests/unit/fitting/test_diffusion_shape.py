"""The shape of diffusion models, told from tensor lists as the real models have them, and from nonsense."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import DemoModels
from genaid_server.demo.models import write_diffusion_parts
from genaid_server.resource.core.fitting.diffusion_shape import PartTensor, TensorPart, shape_of
from genaid_server.resource.core.fitting.model_shape import Backbone, DiffusionShape
from genaid_server.resource.core.formats.gguf import read_header
from genaid_server.resource.core.formats.safetensors import SafetensorInfo, SafetensorsHeader
from genaid_server.resource.core.store.model import Component

MEBIBYTE = 2**20


def part(component: Component, *tensors: tuple[str, Sequence[int]], size: int = 100) -> TensorPart:
    """A file whose tensors all have the same size; shapes in ggml's order."""
    return TensorPart(component, tuple(PartTensor(name, tuple(shape), size) for name, shape in tensors))


def flux_tensors(width: int = 3072, prefix: str = "") -> list[tuple[str, Sequence[int]]]:
    return [
        (f"{prefix}img_in.weight", (64, width)),
        (f"{prefix}txt_in.weight", (4096, width)),
        (f"{prefix}double_blocks.0.img_attn.qkv.weight", (width, 3 * width)),
        (f"{prefix}double_blocks.0.img_attn.norm.query_norm.scale", (128,)),
        (f"{prefix}single_blocks.0.linear1.weight", (width, 7 * width)),
    ]


def unet_tensors(context: int, *, deeper: bool) -> list[tuple[str, Sequence[int]]]:
    """A U-Net with 320 channels, whose attention begins at the first level or at the second."""
    prefix = "model.diffusion_model"
    block, width = (4, 640) if deeper else (1, 320)
    return [
        (f"{prefix}.input_blocks.0.0.weight", (3, 3, 4, 320)),
        (f"{prefix}.input_blocks.3.0.op.weight", (3, 3, 320, 320)),
        (f"{prefix}.input_blocks.7.1.transformer_blocks.0.attn2.to_k.weight", (context, 1280)),
        (f"{prefix}.input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight", (context, width)),
        (f"{prefix}.middle_block.1.transformer_blocks.0.attn2.to_k.weight", (context, 1280)),
    ]


VAE: list[tuple[str, Sequence[int]]] = [
    ("first_stage_model.decoder.conv_in.weight", (3, 3, 4, 512)),
    ("first_stage_model.decoder.conv_out.weight", (3, 3, 128, 3)),
    ("first_stage_model.encoder.conv_in.weight", (3, 3, 3, 128)),
]


def test_flux_dev_in_four_files() -> None:
    parts = [
        part(Component.DIFFUSION_MODEL, *flux_tensors()),
        part(Component.CLIP_L, ("text_model.embeddings.token_embedding.weight", (768, 49408)), size=7),
        part(Component.T5XXL, ("encoder.block.0.layer.0.SelfAttention.q.weight", (4096, 4096)), size=11),
        part(Component.VAE, ("decoder.conv_out.weight", (3, 3, 128, 3)), ("encoder.conv_in.weight", (3, 3, 3, 128))),
    ]
    assert shape_of(parts) == DiffusionShape(
        backbone=Backbone.TRANSFORMER,
        encoder_weights=18,
        vae_weights=200,
        backbone_weights=500,
        width=3072,
        heads=24,
        pixels_per_token=16,
        text_tokens=512,
        text_width=4096,
        decoder_width=128,
        fused_blocks=True,
        language_encoder=True,
    )


def test_sd_1_5_in_one_file() -> None:
    encoder = ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (768, 49408))
    found = shape_of([part(Component.MODEL, *unet_tensors(768, deeper=False), encoder, *VAE)])
    assert found == DiffusionShape(
        backbone=Backbone.UNET,
        encoder_weights=100,
        vae_weights=300,
        backbone_weights=500,
        width=320,
        heads=8,
        pixels_per_token=8,
        text_tokens=77,
        text_width=768,
        decoder_width=128,
    )


def test_sd_2_has_fewer_heads() -> None:
    found = shape_of([part(Component.MODEL, *unet_tensors(1024, deeper=False), *VAE)])
    assert found is not None
    assert (found.width, found.heads, found.pixels_per_token, found.text_width) == (320, 5, 8, 1024)


def test_sdxl_attends_at_half_the_resolution() -> None:
    encoders = [
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", (768,)),
        ("conditioner.embedders.1.model.ln_final.weight", (1280,)),
    ]
    found = shape_of([part(Component.MODEL, *unet_tensors(2048, deeper=True), *encoders, *VAE)])
    assert found is not None
    assert (found.width, found.heads, found.pixels_per_token, found.text_width) == (640, 10, 16, 2048)
    assert (found.encoder_weights, found.vae_weights, found.backbone_weights) == (200, 300, 500)


@pytest.mark.parametrize(("level", "width", "pixels"), [(0, 320, 8), (1, 640, 16)])
def test_a_unet_as_diffusers_writes_it(level: int, width: int, pixels: int) -> None:
    attention = f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    tensors = [(attention, (2048, width)), ("down_blocks.0.downsamplers.0.conv.weight", (3, 3, 320, 320))]
    found = shape_of([part(Component.DIFFUSION_MODEL, *tensors)])
    assert found is not None
    assert (found.backbone, found.width, found.pixels_per_token) == (Backbone.UNET, width, pixels)


@pytest.mark.parametrize("normed", [False, True])
def test_sd3_medium_whose_heads_are_told_or_known(normed: bool) -> None:
    prefix = "model.diffusion_model"
    tensors = [
        (f"{prefix}.x_embedder.proj.weight", (2, 2, 16, 1536)),
        (f"{prefix}.context_embedder.weight", (4096, 1536)),
        (f"{prefix}.joint_blocks.0.x_block.attn.qkv.weight", (1536, 4608)),
        ("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight", (4096, 4096)),
        ("text_encoders.clip_g.transformer.text_model.final_layer_norm.weight", (1280,)),
        *([(f"{prefix}.joint_blocks.0.x_block.attn.ln_q.weight", (64,))] if normed else []),
    ]
    found = shape_of([part(Component.MODEL, *tensors, *VAE)])
    assert found is not None
    assert (found.backbone, found.width, found.heads, found.pixels_per_token) == (Backbone.TRANSFORMER, 1536, 24, 16)
    assert (found.text_tokens, found.text_width, found.fused_blocks) == (154, 4096, False)
    assert found.language_encoder
    assert (found.encoder_weights, found.vae_weights) == (200, 300)


def test_qwen_image_with_its_language_model() -> None:
    tensors = [
        ("img_in.weight", (64, 3072)),
        ("txt_in.weight", (3584, 3072)),
        ("transformer_blocks.0.attn.norm_q.weight", (128,)),
    ]
    language = part(Component.LLM, ("blk.0.attn_q.weight", (3584, 3584)), ("token_embd.weight", (3584, 152064)))
    found = shape_of([part(Component.DIFFUSION_MODEL, *tensors), language])
    assert found is not None
    assert (found.width, found.heads, found.text_tokens, found.text_width) == (3072, 24, 512, 3584)
    assert (found.encoder_weights, found.decoder_width) == (200, 128), "without an autoencoder it is the usual one"


def test_norms_over_all_heads_do_not_tell_their_size() -> None:
    tensors = [
        ("patch_embedding.weight", (2, 2, 16, 1536)),
        ("blocks.0.self_attn.norm_q.weight", (1536,)),
        ("text_embedding.0.weight", (4096, 1536)),
    ]
    found = shape_of([part(Component.DIFFUSION_MODEL, *tensors)])
    assert found is not None
    assert (found.width, found.heads, found.text_width) == (1536, 12, 4096)


def test_the_demo_model(demo_models: DemoModels) -> None:
    header = read_header(demo_models.diffusion)
    found = shape_of([TensorPart.from_gguf(header)])
    assert found is not None
    assert found.weights == header.tensor_bytes
    assert (found.width, found.heads, found.pixels_per_token) == (128, 1, 16)
    assert (found.text_tokens, found.text_width) == (256, 4096), "a Flux with CLIP alone"
    assert (found.decoder_width, found.tiny_decoder, found.fused_blocks) == (32, False, True)
    assert not found.language_encoder
    # As the engine counts them: 66.61, 3.03 and 71.39 MiB.
    assert found.encoder_weights == pytest.approx(66.61 * MEBIBYTE, rel=0.001)
    assert found.backbone_weights == pytest.approx(3.03 * MEBIBYTE, rel=0.002)
    assert found.vae_weights == pytest.approx(71.39 * MEBIBYTE, rel=0.001)


def test_the_demo_model_in_files_with_a_tiny_autoencoder(tmp_path: Path) -> None:
    headers = {Component(role): read_header(path) for role, path in write_diffusion_parts(tmp_path).items()}
    found = shape_of([TensorPart.from_gguf(header, component) for component, header in headers.items()])
    assert found is not None
    assert found.encoder_weights == headers[Component.CLIP_L].tensor_bytes
    assert found.vae_weights == headers[Component.TAE].tensor_bytes
    assert found.backbone_weights == headers[Component.DIFFUSION_MODEL].tensor_bytes
    assert (found.decoder_width, found.tiny_decoder) == (64, True)


def test_safetensors_say_their_shapes_the_other_way_around() -> None:
    tensors = tuple(SafetensorInfo(name, "F16", tuple(reversed(shape)), 0, 100) for name, shape in flux_tensors())
    header = SafetensorsHeader(tensors, {}, 8, 500)
    assert TensorPart.from_safetensors(header) == part(Component.MODEL, *flux_tensors())


@pytest.mark.parametrize(
    ("dtype", "size", "loaded"),
    [("F16", 100, 100), ("BF16", 100, 100), ("F8_E4M3", 100, 200), ("F8_E5M2", 100, 200), ("F64", 100, 50)],
)
def test_floats_that_the_engine_does_not_have_are_loaded_as_others(dtype: str, size: int, loaded: int) -> None:
    header = SafetensorsHeader((SafetensorInfo("img_in.weight", dtype, (1, 1), 0, size),), {}, 8, size)
    assert TensorPart.from_safetensors(header).tensors[0].size_bytes == loaded


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        VAE,
        [("token_embd.weight", (8, 4)), ("blk.0.attn_q.weight", (8, 8))],
        [("img_in.weight", (64, 3072))],
        [("double_blocks.0.img_mlp.0.weight", (8, 4))],
        [("img_in.weight", (64, 2**17)), ("double_blocks.0.img_mlp.0.weight", (8, 4))],
        [("img_in.weight", (3072,)), ("double_blocks.0.img_mlp.0.weight", (8, 4))],
        [("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (768, 0))],
    ],
)
def test_what_is_no_known_network_has_no_shape(tensors: list[tuple[str, Sequence[int]]]) -> None:
    assert shape_of([part(Component.MODEL, *tensors)]) is None


def test_an_impossible_decoder_is_taken_for_the_usual_one() -> None:
    for decoder in ((3, 3, 2**30, 3), (3,), (3, 3, 0, 3), ()):
        found = shape_of([part(Component.MODEL, *flux_tensors(), ("vae.decoder.conv_out.weight", decoder))])
        assert found is not None
        assert found.decoder_width == 128


NAMES = st.one_of(
    st.sampled_from([name for name, _ in (*flux_tensors(), *unet_tensors(768, deeper=True), *VAE)]),
    st.sampled_from(["x_embedder.proj.weight", "decoder.layers.0.weight", "input_blocks.99999999999999.0.op.weight"]),
    st.text(max_size=40),
)
SHAPES = st.lists(st.integers(-5, 2**40) | st.integers(0, 300), max_size=5).map(tuple)
PARTS = st.builds(
    TensorPart,
    st.sampled_from(Component),
    st.lists(st.builds(PartTensor, NAMES, SHAPES, st.integers(0, 2**40)), max_size=12).map(tuple),
)


@given(st.lists(PARTS, max_size=3))
def test_nothing_is_lost_and_nothing_absurd_believed(parts: list[TensorPart]) -> None:
    found = shape_of(parts)
    if found is None:
        return
    assert found.weights == sum(tensor.size_bytes for part in parts for tensor in part.tensors)
    numbers = (found.width, found.heads, found.text_tokens, found.text_width, found.decoder_width)
    assert all(0 < each <= 2**16 for each in numbers)
    assert 8 <= found.pixels_per_token <= 128
