"""Reading a model's header anew: from its file here, or from where the file came from."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from genaid_server.kit.errors import DomainError, DownloadError, InvalidRequestError
from genaid_server.resource.core.formats import gguf, raw_metadata
from genaid_server.resource.core.formats.gguf import GgufHeader
from genaid_server.resource.core.formats.headers import Header, check_whole, of_gguf, read_header, read_shards
from genaid_server.resource.core.formats.kinds import ModelFormat
from genaid_server.resource.core.formats.metadata import GgufMetadata
from genaid_server.resource.core.store.candidates import reasons
from genaid_server.resource.core.store.files import on_disk
from genaid_server.resource.core.store.model import Model, SourceType

type RemoteHeader = Callable[[Model], Awaitable[GgufHeader]]
"""Reads the header of a model's primary file at its source. Raises DownloadError, InvalidRequestError."""


class Strategy(StrEnum):
    """Where to read a header; of two places the first one counts, and the second where that fails."""

    LOCAL_REMOTE = "local-remote"
    LOCAL_ONLY = "local-only"
    REMOTE_ONLY = "remote-only"
    REMOTE_LOCAL = "remote-local"


async def fresh_header(model: Model, strategy: Strategy, remote: RemoteHeader) -> Header:
    """Read the header of a model as the strategy says.

    Raises InvalidRequestError where the file has no GGUF header or a damaged one, FileSystemError where it can't be
    read, DownloadError where its source can't or isn't known; and where both failed, the remote one's error.
    """
    if model.format is not ModelFormat.GGUF:
        raise InvalidRequestError(
            f"The model {model.id!r} is {model.format}, which has no such metadata as GGUF.", field="model_id"
        )
    match strategy:
        case Strategy.LOCAL_ONLY:
            return await _local(model)
        case Strategy.REMOTE_ONLY:
            return await _remote(model, remote)
        case Strategy.LOCAL_REMOTE:
            try:
                return await _local(model)
            except DomainError as error:
                return await _instead(model, remote, error)
        case Strategy.REMOTE_LOCAL:
            try:
                return await _remote(model, remote)
            except DomainError as error:
                try:
                    return await _local(model)
                except DomainError as second:
                    raise _with_reason(error, second) from error


def refreshed(model: Model, header: Header) -> Model:
    """The model with what the header says."""
    names = (model.primary.name, model.source.file)
    return replace(model, metadata=header.metadata, supports_reasoning=reasons(model.type, header, *names))


def raw_header(path: Path) -> str:
    """Everything that the header of a GGUF file says, as JSON. Raises FileSystemError, InvalidRequestError."""
    with on_disk("read", path.name):
        return raw_metadata.to_json(gguf.read_header(path, short_arrays=True))


async def _local(model: Model) -> Header:
    return await asyncio.to_thread(_read, model)


def _read(model: Model) -> Header:
    with on_disk("read", model.path.name):
        if model.primary.shard:
            return read_shards([file.path for file in model.files])
        return read_header(model.path, model.format)


async def _remote(model: Model, remote: RemoteHeader) -> Header:
    if model.source.type is SourceType.FILE:
        raise DownloadError(
            f"The model {model.id!r} was imported from a file: it is not known where else to read its header.",
            modelId=model.id,
        )
    found = await remote(model)
    header = of_gguf([found])
    if not model.primary.shard:
        check_whole(found.tensor_count)
        return header
    # The source was asked for the first shard only: what all of them hold together is known from before.
    known = model.metadata or GgufMetadata()
    assert header.metadata is not None  # noqa: S101 - a GGUF header says something
    whole = replace(header.metadata, tensor_count=known.tensor_count, tensor_bytes=known.tensor_bytes)
    return replace(header, metadata=whole)


async def _instead(model: Model, remote: RemoteHeader, error: DomainError) -> Header:
    try:
        return await _remote(model, remote)
    except DomainError as second:
        raise _with_reason(second, error) from error


def _with_reason(remote: DomainError, local: DomainError) -> DomainError:
    return type(remote)(f"{remote.message} Nor can the file on this machine be read: {local.message}", **remote.facts)
