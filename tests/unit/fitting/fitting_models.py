"""Models and machines to decide about: the shapes of well-known models, without their files."""

from genaid_server.resource.core.fitting.model_shape import Backbone, DiffusionShape, Layer, LlmShape
from genaid_server.resource.core.system.facts import Cpu, Gpu, Hardware, Vendor

GIB = 2**30
MIB = 2**20


def llama_8b(context_length: int = 131072) -> LlmShape:
    """Llama 3.1 8B in Q8_0: 8.0 GiB of weights, and 128 KiB of KV cache for a token in f16."""
    return dense(layers=32, layer_weights=221 * MIB, context_length=context_length)


def dense(
    *, layers: int = 32, layer_weights: int = 221 * MIB, context_length: int = 131072, head_width: int = 128
) -> LlmShape:
    """A model as Llama 3 makes them, with 8 KV heads."""
    layer = Layer(
        layer_weights,
        key_width=8 * head_width,
        value_width=8 * head_width,
        head_width=head_width,
        largest_tensor=layer_weights // 4,
    )
    return LlmShape(
        architecture="llama",
        layers=(layer,) * layers,
        input_weights=532 * MIB,
        output_weights=532 * MIB,
        embedding_width=4096,
        feed_forward_width=14336,
        query_width=32 * head_width,
        head_count=32,
        vocab_size=128256,
        context_length=context_length,
    )


def mixture() -> LlmShape:
    """Like Qwen3 30B A3B in Q4_K_M: 17 GiB of weights, all but 1.6 GiB of which are experts."""
    layer = Layer(
        355 * MIB,
        expert_weights=340 * MIB,
        key_width=512,
        value_width=512,
        head_width=128,
        largest_tensor=120 * MIB,
    )
    return LlmShape(
        architecture="qwen3moe",
        layers=(layer,) * 48,
        input_weights=240 * MIB,
        output_weights=240 * MIB,
        embedding_width=2048,
        feed_forward_width=8 * 768,
        query_width=4096,
        head_count=32,
        vocab_size=151936,
        context_length=262144,
        experts_used=8,
    )


def flux() -> DiffusionShape:
    """Like Flux dev in 8 bits with both of its text encoders."""
    return DiffusionShape(
        backbone=Backbone.TRANSFORMER,
        encoder_weights=5 * GIB,
        vae_weights=160 * MIB,
        backbone_weights=12 * GIB,
        width=3072,
        heads=24,
        pixels_per_token=16,
        text_tokens=512,
        text_width=4096,
        decoder_width=128,
        fused_blocks=True,
    )


def machine(*gpus: Gpu, cores: int = 8, usable: int | None = None) -> Hardware:
    """A machine with so many physical cores, twice as many logical ones, and these GPUs."""
    cpu = Cpu("A processor", "x64", cores, 2 * cores, 2 * cores if usable is None else usable)
    return Hardware("linux", cpu, gpus)


def gpu(size: int | None, name: str = "0", *, unified: bool = False, integrated: bool = False) -> Gpu:
    """A GPU with so many bytes of memory, all of them free."""
    vendor = Vendor.APPLE if unified else Vendor.NVIDIA
    return Gpu(
        name,
        vendor,
        f"GPU {name}",
        vram_total=size,
        vram_free=size,
        unified=unified,
        integrated=integrated,
    )
