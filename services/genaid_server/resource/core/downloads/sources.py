"""What the sources of a download say before anything is fetched: which files they have, and what these are for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from genaid_server.kit.errors import ChecksumError
from genaid_server.resource.core.downloads.download import DownloadLimits
from genaid_server.resource.core.downloads.journal import FileRecord
from genaid_server.resource.core.downloads.remote import Item, Remote, Resolved
from genaid_server.resource.core.downloads.remote_header import Header, read_remote_header, tell_type
from genaid_server.resource.core.downloads.retry import Pauses, Tries, answer_within
from genaid_server.resource.core.downloads.spec import normal_checksum
from genaid_server.resource.core.formats.kinds import ModelType
from genaid_server.resource.core.store.model import Component
from genaid_server.resource.core.store.names import check_file_name


class Sources:
    """Asks the sources of one download, again where they fail; `on_retry` is told why before each wait."""

    def __init__(self, remote: Remote, limits: DownloadLimits, pauses: Pauses, on_retry: Callable[[str], None]) -> None:
        self._remote, self._limits, self._pauses, self._on_retry = remote, limits, pauses, on_retry

    async def resolve(self, item: Item, field: str) -> Resolved:
        """Which file the source has for an item of the request; `field` is what errors call its source.

        Raises DownloadError; InvalidRequestError where it is no model's file; ChecksumError where its source says
        that it has another checksum than the request.
        """
        resolved = await self._tries().until_done(partial(self._resolve, item))
        check_file_name(resolved.name, field)
        resolved = replace(resolved, checksum=normal_checksum(resolved.checksum, "items"))
        if item.checksum and resolved.checksum and item.checksum != resolved.checksum:
            raise wrong_checksum(resolved.name, item.checksum, resolved.checksum, "its source says that it has")
        return resolved

    async def model_type(self, files: Sequence[FileRecord], wanted: ModelType | None) -> ModelType | None:
        """What the header of the primary file, the first one, says that the model is for.

        Raises DownloadError; InvalidRequestError where it is no model, or not for what is wanted.
        """
        first, *others = files
        header = await self._read_header(first)
        if first.item.component is not Component.MODEL:
            return ModelType.DIFFUSION
        if header is None:
            return wanted
        if not first.shard:
            return tell_type([header], wanted)
        # The first shard may hold no tensors at all; then the second one tells.
        second = await self._read_header(others[0])
        return tell_type([header, second] if second else [header], wanted)

    async def _resolve(self, item: Item) -> Resolved:
        async with answer_within(self._limits.stall_seconds):
            return await self._remote.resolve(item)

    async def _read_header(self, file: FileRecord) -> Header | None:
        resolved = file.known
        form = check_file_name(resolved.name, "items")
        read = partial(read_remote_header, self._remote, resolved, form, self._limits.stall_seconds)
        return await self._tries().until_done(read)

    def _tries(self) -> Tries:
        return Tries(self._limits, self._pauses, self._on_retry)


def wrong_checksum(name: str, expected: str, actual: str, verb: str) -> ChecksumError:
    """The error for a file that doesn't have the checksum that it should; `verb` says how that is known."""
    return ChecksumError(
        f"{name} should have the checksum {expected}, and {verb} {actual}. Check the one that you gave; if it is "
        "right, the file was changed at its source or on its way: fetch it again.",
        expected=expected,
        actual=actual,
        file=name,
    )
