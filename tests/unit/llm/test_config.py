"""What an LLM engine is started with: what is refused, and what a llama-server program is told."""

from dataclasses import replace
from pathlib import Path

import pytest

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.fitting.model_shape import CacheType, Pooling
from genaid_server.resource.core.fitting.plan import LlmOptions, LlmWishes
from genaid_server.resource.core.llm.config import LlmEngineConfig, LlmRequest, Serving, check_serving, own_argv

KEY = "open-sesame"
CONFIG = LlmEngineConfig(
    model_id="qwen",
    model_path=Path("models") / "qwen.gguf",
    size_bytes=1000,
    llm=LlmOptions(threads=6, gpu_layers=33, context_size=4096, parallel=4),
    serving=Serving(port=8080, api_key=KEY),
    separates_reasoning=False,
    slot_save_path=Path("slots") / "qwen",
    program="llama-server",
)


@pytest.mark.parametrize(
    "serving",
    [
        Serving(),
        Serving(port=0),
        Serving(port=65_535),
        Serving(host="127.8.9.10"),
        Serving(host="::1"),
        Serving(api_key="!" + "~" * 255),
    ],
)
def test_what_can_be_served(serving: Serving) -> None:
    check_serving(serving)


@pytest.mark.parametrize(
    ("serving", "field"),
    [
        (Serving(port=-1), "port"),
        (Serving(port=65_536), "port"),
        (Serving(host=""), "host"),
        (Serving(host="0.0.0.0"), "host"),  # noqa: S104 - it is to be refused
        (Serving(host="::"), "host"),
        (Serving(host="192.168.0.1"), "host"),
        (Serving(host="localhost.example.org"), "host"),
        (Serving(host="127.0.0.1 --verbose"), "host"),
        (Serving(host="h" * 100_000), "host"),
        (Serving(api_key="x" * 257), "api_key"),
        (Serving(api_key="a b"), "api_key"),
        (Serving(api_key="a\nb"), "api_key"),
        (Serving(api_key="\x7f"), "api_key"),
        (Serving(api_key="schlüssel"), "api_key"),
    ],
)
def test_what_is_refused(serving: Serving, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_serving(serving)
    assert caught.value.facts == {"field": field}
    assert caught.value.message.startswith(field)
    assert len(caught.value.message) < 200
    if serving.api_key:
        assert serving.api_key not in caught.value.message


def test_a_key_is_in_no_representation_but_makes_a_difference() -> None:
    request = LlmRequest("qwen", LlmWishes(threads=1), Serving(api_key=KEY))
    assert KEY not in repr(request)
    assert KEY not in repr(CONFIG)
    assert request == LlmRequest("qwen", LlmWishes(threads=1), Serving(api_key=KEY))
    assert request != replace(request, serving=Serving(api_key=KEY + KEY))


def test_the_arguments_of_a_program() -> None:
    argv = own_argv(CONFIG, 4711)
    assert argv == [
        *("llama-server", "-m", str(Path("models") / "qwen.gguf"), "--alias", "qwen"),
        *("--host", "127.0.0.1", "--port", "4711"),
        *("-c", "16384", "-np", "4", "-t", "6", "-ngl", "33", "-fa", "on"),
        *("--cache-type-k", "f16", "--cache-type-v", "f16", "--cache-ram", "0"),
        *("--slot-save-path", str(Path("slots") / "qwen"), "--no-webui", "--jinja", "--reasoning-format", "none"),
    ]
    assert KEY not in " ".join(argv)


@pytest.mark.parametrize(
    ("config", "added"),
    [
        (replace(CONFIG, separates_reasoning=True), ["--reasoning-format", "deepseek"]),
        (replace(CONFIG, llm=replace(CONFIG.llm, experts_on_cpu=True)), ["--cpu-moe"]),
        (replace(CONFIG, llm=replace(CONFIG.llm, flash_attention=False)), ["-fa", "off"]),
        (replace(CONFIG, llm=replace(CONFIG.llm, cache_type_k=CacheType.Q8_0)), ["--cache-type-k", "q8_0"]),
        (replace(CONFIG, llm=replace(CONFIG.llm, cache_type_v=CacheType.Q4_0)), ["--cache-type-v", "q4_0"]),
        (replace(CONFIG, llm=replace(CONFIG.llm, gpu_layers=0)), ["-ngl", "0"]),
        (replace(CONFIG, serving=Serving(memory_map=False)), ["--no-mmap"]),
        (replace(CONFIG, serving=Serving(memory_lock=True)), ["--mlock"]),
        (replace(CONFIG, serving=Serving(host="::1")), ["--host", "::1"]),
        (replace(CONFIG, pooling=Pooling.MEAN), ["--embeddings", "--batch-size", "4096", "--ubatch-size", "4096"]),
    ],
)
def test_each_setting_is_an_argument(config: LlmEngineConfig, added: list[str]) -> None:
    argv = own_argv(config, 1)
    pairs = [argv[start : start + len(added)] for start in range(len(argv))]
    assert pairs.count(added) == 1
    assert added not in [own_argv(CONFIG, 1)[start : start + len(added)] for start in range(len(argv))]


@pytest.mark.parametrize(
    ("pooling", "context", "batch"),
    [
        (None, 32_768, 512),
        (Pooling.LAST, 32_768, 512),
        (Pooling.MEAN, 256, 512),
        (Pooling.MEAN, 2048, 2048),
        (Pooling.CLS, 8192, 8192),
        (Pooling.CLS, 32_768, 8192),
    ],
)
def test_a_text_is_computed_at_once_where_its_vector_needs_that(
    pooling: Pooling | None, context: int, batch: int
) -> None:
    config = replace(CONFIG, pooling=pooling, llm=replace(CONFIG.llm, context_size=context))
    assert (config.embeddings, config.batch) == (pooling is not None, batch)


def test_the_variant_is_the_users_own_or_the_built_in_one() -> None:
    assert CONFIG.variant == "own"
    assert replace(CONFIG, program="").variant == "cpu"
