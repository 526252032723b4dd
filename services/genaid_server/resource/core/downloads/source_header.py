"""The header of an installed model, read where its file came from."""

from genaid_server.kit.errors import DownloadError
from genaid_server.resource.core.downloads.remote import HubFile, Item, Remote, RemoteError
from genaid_server.resource.core.downloads.remote_header import read_remote_header
from genaid_server.resource.core.downloads.retry import answer_within
from genaid_server.resource.core.formats.gguf import GgufHeader
from genaid_server.resource.core.formats.kinds import ModelFormat
from genaid_server.resource.core.store.model import Model, SourceType


class SourceHeaders:
    """Reads headers through `remote`; nothing may arrive for `stall_seconds` at most."""

    def __init__(self, remote: Remote, stall_seconds: float) -> None:
        self._remote, self._stall_seconds = remote, stall_seconds

    async def read(self, model: Model) -> GgufHeader:
        """The header of the model's primary file. Raises DownloadError, InvalidRequestError."""
        source = model.primary.source
        if source.type is SourceType.FILE:
            raise DownloadError(
                f"The model {model.id!r} was imported from a file of this machine; there is no source to ask.",
                modelId=model.id,
            )
        is_hub = source.type is SourceType.HUGGINGFACE
        item = Item(HubFile(source.repo, source.file, source.revision or "main") if is_hub else source.url)
        try:
            async with answer_within(self._stall_seconds):
                resolved = await self._remote.resolve(item)
            header = await read_remote_header(self._remote, resolved, ModelFormat.GGUF, self._stall_seconds)
        except RemoteError as error:
            raise DownloadError(error.message, modelId=model.id) from error
        if not isinstance(header, GgufHeader):
            raise DownloadError(f"The source of {model.id!r} doesn't tell the size of its file.", modelId=model.id)
        return header
