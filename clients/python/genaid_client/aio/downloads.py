"""The models that are on their way."""

import builtins
from collections.abc import AsyncGenerator

from genaid.resource.v1 import downloads_pb2
from genaid.resource.v1.downloads_pb2_grpc import DownloadServiceStub
from genaid_client import convert
from genaid_client.aio.connection import AsyncConnection
from genaid_client.messages import request
from genaid_client.types import Download, DownloadSpec


class AsyncDownloadCalls:
    """The models that are on their way."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._stub = DownloadServiceStub(connection.channel)

    async def create(self, spec: DownloadSpec, *, request_id: str | None = None) -> Download:
        """Ask for a model; returns as soon as the download is accepted. It outlives this client, and the service.

        One that is under way for the same files is joined; where the model is installed, the download comes back as
        INSTALLED. A repeat with the same `request_id` returns the original download. Raises InvalidRequestError.
        """
        message = convert.create_download_request(spec, request_id)
        response = await self._connection.call(self._stub.CreateDownload, message)
        return convert.download_from_pb(response.download)

    async def get(self, download_id: str) -> Download:
        """One download. Raises NotFoundError."""
        message = request(downloads_pb2.GetDownloadRequest, download_id=download_id)
        response = await self._connection.call(self._stub.GetDownload, message)
        return convert.download_from_pb(response.download)

    async def list(self, active_only: bool = False) -> builtins.list[Download]:
        """The downloads that are under way and, unless `active_only`, those of the last week; the newest first."""
        pages = await self._connection.pages(self._stub.ListDownloads, convert.list_downloads_request(active_only))
        return [convert.download_from_pb(download) for page in pages for download in page.downloads]

    def watch(self, download_id: str) -> AsyncGenerator[Download, None]:
        """A download as it is now, then the newest a few times a second; ends after a terminal phase.

        Whether it succeeded, its last item says: see `raise_for_failure`. Raises NotFoundError when it is iterated.
        """
        message = request(downloads_pb2.WatchDownloadRequest, download_id=download_id)
        return self._connection.stream(self._stub.WatchDownload, message, convert.watched_download)

    async def cancel(self, download_id: str, timeout: float = 60) -> Download:
        """End a download and remove what it has fetched. Repeating it is no error.

        Raises NotFoundError; AlreadyTerminalError where it is installed or has failed.
        """
        message = request(downloads_pb2.CancelDownloadRequest, download_id=download_id)
        response = await self._connection.call(self._stub.CancelDownload, message, timeout)
        return convert.download_from_pb(response.download)
