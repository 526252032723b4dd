"""Which language models are said to reason: by their files' names, and by their chat templates."""

from pathlib import Path

import pytest

from genaid_server.resource.core.formats.gguf import MAX_STRING_BYTES, ValueType, parse_header
from genaid_server.resource.core.formats.kinds import ModelType
from genaid_server.resource.core.formats.reasoning import PATTERNS, named_for_reasoning, templated_for_reasoning
from genaid_server.resource.core.store.store import ModelStore
from unit.formats.gguf_files import MemorySource, array, diffusion_model, language_model, model, pair
from unit.store.store_files import Staging, shards


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-8B-Instruct-Q4_K_M.gguf", True),
        ("qwen3-0.6b.gguf", True),
        ("DeepSeek-R1-Distill-Llama-8B-Q4_K_M.GGUF", True),
        ("gpt-oss-20b-mxfp4.gguf", True),
        ("some-GPT-OSS-tune-00001-of-00003.gguf", True),
        ("qwen2.5-7b.gguf", False),
        ("deepseek-v3.gguf", False),
        ("llama-2-7b.Q4_K_M.gguf", False),
        ("qwen3.safetensors", False),
        ("qwen3", False),
        ("", False),
    ],
)
def test_by_name(name: str, expected: bool) -> None:
    assert named_for_reasoning(name) is expected


def test_the_documented_patterns() -> None:
    assert PATTERNS == ("qwen3", "deepseek-r1", "gpt-oss")


@pytest.mark.parametrize(
    ("key", "template", "expected"),
    [
        ("tokenizer.chat_template", "{{ '<think>\\n' }}{{ message.content }}", True),
        ("tokenizer.chat_template", "{% if message.reasoning_content %}x{% endif %}", True),
        ("tokenizer.chat_template.tool_use", "<think>", True),
        ("tokenizer.chat_template", "{{ message.content }}", False),
        ("tokenizer.chat_template", "{{ content.split('</think>')[-1] }}", False),
        ("tokenizer.chat_templates_of_others", "<think>", False),
        ("general.description", "<think>", False),
        ("tokenizer.chat_template", "<think>".ljust(MAX_STRING_BYTES + 1), False),  # which isn't read
    ],
)
def test_by_template(key: str, template: str, expected: bool) -> None:
    content = model([pair(key, ValueType.STRING, template)], [("a", (4,))])
    assert templated_for_reasoning(parse_header(MemorySource(content))) is expected


def test_a_template_that_is_no_text() -> None:
    template = pair("tokenizer.chat_template", ValueType.ARRAY, array(ValueType.STRING, ["<think>"]))
    assert not templated_for_reasoning(parse_header(MemorySource(model([template], [("a", (4,))]))))


async def test_installed_models_are_told_by_either(tmp_path: Path) -> None:
    store = await ModelStore.open(tmp_path)
    staging = Staging(store)
    template = pair("tokenizer.chat_template", ValueType.STRING, "<think>")
    thinker = model([template, pair("general.architecture", ValueType.STRING, "x")], [("a", (4,))])
    by_template = await store.install([staging.file("a.gguf", thinker)], model_type=ModelType.LLM)
    by_name = await store.install([staging.file("Qwen3-8B.gguf", language_model())])
    by_first_shard = await store.install(staging.shards(shards(2), "gpt-oss"))
    neither = await store.install([staging.file("b.gguf", language_model())])
    picture = await store.install([staging.file("qwen3-painter.gguf", diffusion_model())])
    (store.inbox / "deepseek-r1.gguf").write_bytes(language_model())
    imported = await store.import_file("deepseek-r1.gguf")
    expected = {by_template: True, by_name: True, by_first_shard: True, neither: False, picture: False, imported: True}
    assert {each.id: each.supports_reasoning for each in expected} == {each.id: told for each, told in expected.items()}
    assert (await ModelStore.open(tmp_path)).list() == store.list()
