"""Whether a language model thinks before it answers."""

from typing import Final

from genaid_server.resource.core.formats.gguf import GgufHeader

PATTERNS: Final = ("qwen3", "deepseek-r1", "gpt-oss")
"""Parts of the file names of model families that reason, in lower case."""

_MARKS: Final = ("<think>", "reasoning_content")
_TEMPLATE: Final = "tokenizer.chat_template"  # further ones have a name after a dot


def named_for_reasoning(file_name: str) -> bool:
    """Tell from the name of a GGUF file, in any case of its letters."""
    name = file_name.lower()
    return name.endswith(".gguf") and any(pattern in name for pattern in PATTERNS)


def templated_for_reasoning(header: GgufHeader) -> bool:
    """Tell from the chat templates in a header: whether one of them knows of thoughts."""
    return any(
        isinstance(value, str) and any(mark in value for mark in _MARKS)
        for key, value in header.fields.items()
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")
    )
