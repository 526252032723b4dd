"""What the headers of all formats have in common, and what a model is for by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.formats import gguf, safetensors
from genaid_server.resource.core.formats import metadata as gguf_metadata
from genaid_server.resource.core.formats.gguf import GgufHeader
from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from genaid_server.resource.core.formats.metadata import GgufMetadata
from genaid_server.resource.core.formats.reasoning import templated_for_reasoning


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a model: `guess` is what it says that the model is for, `reasoning` whether its template thinks."""

    format: ModelFormat
    name: str
    guess: ModelType | None
    metadata: GgufMetadata | None
    reasoning: bool = False


def read_header(path: Path, form: ModelFormat) -> Header:
    """Read and check the header of a file that is whole by itself. Raises InvalidRequestError, OSError."""
    if form is ModelFormat.GGUF:
        header = gguf.read_header(path)
        count = header.fields.get("split.count")
        if isinstance(count, int) and count > 1:
            raise InvalidRequestError(
                f"The file is one of {count} shards of a model: an engine needs all of them. Download the model by its "
                "first shard, or merge them with llama-gguf-split.",
                field="file",
            )
        check_whole(header.tensor_count)
        return of_gguf([header])
    tensors = safetensors.read_header(path)
    check_whole(len(tensors.tensors))
    title = tensors.metadata.get("modelspec.title", "")
    return Header(form, title, ModelType(safetensors.guess_type(tensors)), None)


def read_shards(paths: Sequence[Path]) -> Header:
    """Read and check the headers of all shards of a model, in order. Raises InvalidRequestError, OSError."""
    headers = [gguf.read_header(path) for path in paths]
    for number, (path, header) in enumerate(zip(paths, headers, strict=True), 1):
        for key, expected in (("split.count", len(paths)), ("split.no", number - 1)):
            if header.fields.get(key, expected) != expected:
                raise InvalidRequestError(
                    f"{path.name} is not shard {number} of {len(paths)}: its header says {key} = "
                    f"{header.fields[key]!r:.40}. Fetch the shards again, all from one place.",
                    field="file",
                )
    check_whole(sum(header.tensor_count for header in headers))
    return of_gguf(headers)


def of_gguf(headers: Sequence[GgufHeader]) -> Header:
    """What GGUF headers say: a file's, or those of all shards."""
    first, *others = headers
    guess, metadata = gguf_metadata.guess_type(first, others), gguf_metadata.metadata_of_shards(headers)
    return Header(
        format=ModelFormat.GGUF,
        name=metadata.general_name,
        guess=ModelType(guess) if guess else None,
        metadata=metadata,
        reasoning=templated_for_reasoning(first),
    )


def check_whole(tensor_count: int) -> None:
    """Raises InvalidRequestError for a file that is only a part of a model."""
    if not tensor_count:
        raise InvalidRequestError(
            "The file holds no tensors: it is a part of a model, such as a vocabulary. Fetch the whole model.",
            field="file",
        )


def decide_type(header: Header, wanted: ModelType | None) -> ModelType:
    """What a model is for: as wanted, if the header does not say otherwise. Raises InvalidRequestError."""
    if header.format is ModelFormat.SAFETENSORS:
        return _safetensors_type(header.guess, wanted)
    if wanted and header.guess and wanted is not header.guess:
        raise InvalidRequestError(
            f"The file's header says that it is a model of type {header.guess}, not {wanted}. Leave the type away.",
            field="type",
        )
    found = wanted or header.guess
    if found is None:
        raise InvalidRequestError(
            "The file's header doesn't say what the model is for: give the type, llm or diffusion.", field="type"
        )
    return found


def _safetensors_type(guess: ModelType | None, wanted: ModelType | None) -> ModelType:
    if wanted is ModelType.LLM:
        raise InvalidRequestError(
            "A safetensors file can only be a diffusion model. Fetch the language model as .gguf.", field="type"
        )
    if wanted is None and guess is ModelType.LLM:
        raise InvalidRequestError(
            "The safetensors file looks like a language model, which has to be GGUF. Fetch it as .gguf.", field="file"
        )
    return ModelType.DIFFUSION
