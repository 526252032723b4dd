"""What models are for, and how their files are written."""

from enum import StrEnum


class ModelType(StrEnum):
    """What a model is for; also the name of the folder that it lies in."""

    LLM = "llm"
    DIFFUSION = "diffusion"


class ModelFormat(StrEnum):
    """How weights are stored; also the suffix of their files."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"
