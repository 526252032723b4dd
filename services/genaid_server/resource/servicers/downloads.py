"""DownloadService."""

import contextlib
from collections.abc import AsyncIterator

from genaid.resource.v1 import downloads_pb2, downloads_pb2_grpc
from genaid_server.kit.errors import ModelNotFoundError
from genaid_server.kit.paging import page
from genaid_server.resource.convert import downloads as convert
from genaid_server.resource.core.downloads.download import Download
from genaid_server.resource.core.downloads.manager import Downloads
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.servicers.context import Context


class DownloadServicer(downloads_pb2_grpc.DownloadServiceServicer):
    """DownloadService."""

    def __init__(self, downloads: Downloads, store: ModelStore) -> None:
        self._downloads, self._store = downloads, store

    async def CreateDownload(  # noqa: N802
        self, request: downloads_pb2.CreateDownloadRequest, context: Context
    ) -> downloads_pb2.CreateDownloadResponse:
        """Accept a download."""
        download = await self._downloads.create(convert.spec_from_pb(request.spec), request.request_id)
        return downloads_pb2.CreateDownloadResponse(download=self._message(download))

    async def GetDownload(  # noqa: N802
        self, request: downloads_pb2.GetDownloadRequest, context: Context
    ) -> downloads_pb2.GetDownloadResponse:
        """One download."""
        return downloads_pb2.GetDownloadResponse(download=self._message(self._downloads.get(request.download_id)))

    async def ListDownloads(  # noqa: N802
        self, request: downloads_pb2.ListDownloadsRequest, context: Context
    ) -> downloads_pb2.ListDownloadsResponse:
        """A page of downloads."""
        messages: dict[str, downloads_pb2.Download] = {}

        def weigh(download: Download) -> int:
            messages[download.id] = self._message(download)
            return messages[download.id].ByteSize()

        newest_first = sorted(self._downloads.newest_first(request.active_only), key=_order, reverse=True)
        some = page(newest_first, _order, request.page_size, request.page_token, weigh)
        return downloads_pb2.ListDownloadsResponse(
            downloads=[messages[download.id] for download in some.items], next_page_token=some.next_token
        )

    async def CancelDownload(  # noqa: N802
        self, request: downloads_pb2.CancelDownloadRequest, context: Context
    ) -> downloads_pb2.CancelDownloadResponse:
        """End a download."""
        download = await self._downloads.cancel(request.download_id)
        return downloads_pb2.CancelDownloadResponse(download=self._message(download))

    async def WatchDownload(  # noqa: N802
        self, request: downloads_pb2.WatchDownloadRequest, context: Context
    ) -> AsyncIterator[downloads_pb2.WatchDownloadResponse]:
        """A download and its changes."""
        async for download in self._downloads.watch(request.download_id):
            yield downloads_pb2.WatchDownloadResponse(download=self._message(download))

    def _message(self, download: Download) -> downloads_pb2.Download:
        """A download with its model, unless that was deleted since."""
        model = None
        with contextlib.suppress(ModelNotFoundError):
            model = self._store.get(download.model_id) if download.model_id else None
        return convert.download_to_pb(download, model)


def _order(download: Download) -> str:
    return f"{download.created_at:020.6f} {download.id}"
