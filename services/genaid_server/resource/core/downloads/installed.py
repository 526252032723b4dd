"""Whether a download's files are a model's already."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from genaid_server.resource.core.downloads.journal import FileRecord
from genaid_server.resource.core.downloads.remote import HubFile
from genaid_server.resource.core.store.model import Model, ModelFile, ModelSource, SourceType

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def expected_checksum(file: FileRecord) -> str:
    """The checksum that a file must have: the request's, else the source's; empty where nobody knows."""
    return file.item.checksum or (file.resolved.checksum if file.resolved else "")


def find_installed(models: Iterable[Model], files: Sequence[FileRecord], model_id: str) -> Model | None:
    """The model that has just these files, and the id where one is wanted."""
    for model in models:
        fits = model_id in ("", model.id) and len(model.files) == len(files)
        if fits and all(any(_is(have, wanted) for have in model.files) for wanted in files):
            return model
    return None


def _is(have: ModelFile, wanted: FileRecord) -> bool:
    if have.component != wanted.item.component or have.shard != wanted.shard:
        return False
    checksum = wanted.checksum or expected_checksum(wanted)
    if checksum and have.checksum:
        return checksum == have.checksum
    return _same_source(have.source, wanted)


def _same_source(have: ModelSource, wanted: FileRecord) -> bool:
    """Whether both are the same version of the same file, as far as their sources tell."""
    if wanted.resolved is not None:
        source = wanted.resolved.source
        told = source.revision if source.type is SourceType.HUGGINGFACE else source.etag
        return bool(told) and _place(have) == _place(source) and told in (have.revision, have.etag)
    source_item = wanted.item.source
    if not isinstance(source_item, HubFile) or not _COMMIT.fullmatch(source_item.revision):
        return False
    return (have.repo, have.file, have.revision) == (source_item.repo, source_item.file, source_item.revision)


def _place(source: ModelSource) -> tuple[str, ...]:
    if source.type is SourceType.HUGGINGFACE:
        return (source.type, source.repo, source.file)
    return (source.type, source.url)
