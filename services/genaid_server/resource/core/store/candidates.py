"""Files that shall become a model: whether they belong together, and what their headers make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.formats.headers import Header, decide_type, read_header, read_shards
from genaid_server.resource.core.formats.kinds import ModelFormat, ModelType
from genaid_server.resource.core.formats.metadata import GgufMetadata
from genaid_server.resource.core.formats.reasoning import named_for_reasoning
from genaid_server.resource.core.formats.shards import ShardName, shard_name
from genaid_server.resource.core.store.model import Component, ModelFile, StagedFile
from genaid_server.resource.core.store.names import check_file_name, readable


@dataclass(frozen=True, slots=True)
class Candidate:
    """Files that were checked and aren't a model yet, the primary one first, and what the model will be.

    `files` are at the places where they lie now.
    """

    name: str
    type: ModelType
    format: ModelFormat
    metadata: GgufMetadata | None
    supports_reasoning: bool
    files: tuple[ModelFile, ...]
    names: tuple[str, ...]


def inspect(staged: Sequence[StagedFile], name: str, wanted: ModelType | None) -> Candidate:
    """Check that files make up one model. Takes long on a slow disk. Raises InvalidRequestError, OSError."""
    formats = [check_file_name(file.name, "items") for file in staged]
    if any(file.component is not Component.MODEL for file in staged):
        return _components(staged, formats, name, wanted)
    if len(staged) > 1 or any(file.shard for file in staged):
        return _shards(staged, name, wanted)
    if not staged:
        raise InvalidRequestError("A model needs at least one file.", field="items")
    header = read_header(staged[0].path, formats[0])
    return _candidate(staged, header, name or readable(header.name) or Path(staged[0].name).stem, wanted)


def _shards(staged: Sequence[StagedFile], name: str, wanted: ModelType | None) -> Candidate:
    names = _check_shards(staged)
    header = read_shards([file.path for file in staged])
    return _candidate(staged, header, name or readable(header.name) or names[0].base, wanted)


def _check_shards(staged: Sequence[StagedFile]) -> tuple[ShardName, ...]:
    """The names of shards, which are all there and in order. Raises InvalidRequestError."""
    first = shard_name(staged[0].name)
    expected = first.siblings() if first else ()
    if tuple(file.name for file in staged) != tuple(str(each) for each in expected) or any(
        file.shard != number for number, file in enumerate(staged, 1)
    ):
        raise InvalidRequestError(
            "Several files without a component have to be all shards of one model, in order: "
            "NAME-00001-of-0000N.gguf and so on.",
            field="items",
        )
    return expected


def _components(
    staged: Sequence[StagedFile], formats: Sequence[ModelFormat], name: str, wanted: ModelType | None
) -> Candidate:
    components = [file.component for file in staged]
    if Component.MODEL in components or len(set(components)) < len(components) or any(file.shard for file in staged):
        raise InvalidRequestError("Each file of a model in components has to be another component.", field="component")
    if Component.DIFFUSION_MODEL not in components:
        raise InvalidRequestError("The diffusion model itself is missing among the components.", field="component")
    if wanted is ModelType.LLM:
        raise InvalidRequestError("Only a diffusion model can be made of components.", field="type")
    headers = [read_header(file.path, form) for file, form in zip(staged, formats, strict=True)]
    primary = components.index(Component.DIFFUSION_MODEL)
    header = headers[primary]
    order = [primary, *(number for number in range(len(staged)) if number != primary)]
    return _candidate(
        [staged[number] for number in order],
        header,
        name or readable(header.name) or Path(staged[primary].name).stem,
        ModelType.DIFFUSION,
    )


def _candidate(staged: Sequence[StagedFile], header: Header, name: str, wanted: ModelType | None) -> Candidate:
    kind = decide_type(header, wanted)
    return Candidate(
        name=name,
        type=kind,
        format=header.format,
        metadata=header.metadata,
        supports_reasoning=reasons(kind, header, staged[0].name, staged[0].source.file),
        files=tuple(
            ModelFile(file.path, file.path.stat().st_size, file.checksum, file.source, file.component, file.shard)
            for file in staged
        ),
        names=tuple(file.name for file in staged),
    )


def reasons(kind: ModelType, header: Header, *file_names: str) -> bool:
    """Whether a model reasons, by its template or by one of the names that its file has."""
    return kind is ModelType.LLM and (header.reasoning or any(map(named_for_reasoning, file_names)))
