"""The resource manager's services: each call converts, asks the core, and converts back."""

import contextlib
from collections.abc import AsyncIterator

import grpc.aio

from genaid.resource.v1 import downloads_pb2, downloads_pb2_grpc, models_pb2, models_pb2_grpc
from genaid_server.kit.errors import ModelNotFoundError
from genaid_server.kit.paging import page
from genaid_server.resource import convert
from genaid_server.resource.core.download import Download
from genaid_server.resource.core.downloads import Downloads
from genaid_server.resource.core.model import Model
from genaid_server.resource.core.models import ModelStore
from genaid_server.resource.core.refreshing import RemoteHeader

type Context = grpc.aio.ServicerContext[object, object]


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """ModelService."""

    def __init__(self, store: ModelStore, remote_header: RemoteHeader) -> None:
        self._store, self._remote_header = store, remote_header
        self._messages: dict[str, tuple[Model, models_pb2.Model]] = {}

    async def ListModels(  # noqa: N802
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        """A page of models."""
        models = self._store.list(convert.type_from_pb(request.type))
        some = page(
            models,
            lambda model: model.id,
            request.page_size,
            request.page_token,
            lambda model: self._message(model).ByteSize(),
        )
        return models_pb2.ListModelsResponse(
            models=[self._message(model) for model in some.items], next_page_token=some.next_token
        )

    async def GetModel(  # noqa: N802
        self, request: models_pb2.GetModelRequest, context: Context
    ) -> models_pb2.GetModelResponse:
        """One model."""
        model = self._store.get(request.model_id)
        raw = await self._store.raw_metadata(model.id) if request.include_raw_metadata else ""
        return models_pb2.GetModelResponse(model=convert.model_to_pb(model), raw_metadata_json=raw)

    async def ImportModel(  # noqa: N802
        self, request: models_pb2.ImportModelRequest, context: Context
    ) -> models_pb2.ImportModelResponse:
        """Install a file from the inbox."""
        model = await self._store.import_file(
            request.file_name,
            name=request.name,
            model_type=convert.type_from_pb(request.type),
            model_id=request.model_id,
            request_id=request.request_id,
        )
        return models_pb2.ImportModelResponse(model=convert.model_to_pb(model))

    async def DeleteModel(  # noqa: N802
        self, request: models_pb2.DeleteModelRequest, context: Context
    ) -> models_pb2.DeleteModelResponse:
        """Remove a model."""
        await self._store.delete(request.model_id)
        self._messages.pop(request.model_id, None)
        return models_pb2.DeleteModelResponse()

    async def VerifyModel(  # noqa: N802
        self, request: models_pb2.VerifyModelRequest, context: Context
    ) -> AsyncIterator[models_pb2.VerifyModelResponse]:
        """Hash a model's files."""
        async with contextlib.aclosing(self._store.verify(request.model_id)) as found:
            async for progress in found:
                yield convert.verification_to_pb(progress)

    async def RefreshModelMetadata(  # noqa: N802
        self, request: models_pb2.RefreshModelMetadataRequest, context: Context
    ) -> models_pb2.RefreshModelMetadataResponse:
        """Read a header anew."""
        strategy = convert.strategy_from_pb(request.strategy)
        model = await self._store.refresh(request.model_id, strategy, self._remote_header)
        return models_pb2.RefreshModelMetadataResponse(model=convert.model_to_pb(model))

    def _message(self, model: Model) -> models_pb2.Model:
        """The message of a model, made once: lists are long, and models don't change, but are replaced."""
        known, message = self._messages.get(model.id, (None, None))
        if known is model and message is not None:
            return message
        message = convert.model_to_pb(model)
        self._messages[model.id] = (model, message)
        return message


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
