"""ModelService."""

import contextlib
from collections.abc import AsyncIterator

from genaid.resource.v1 import models_pb2, models_pb2_grpc
from genaid_server.kit.paging import page
from genaid_server.resource.convert import models as convert
from genaid_server.resource.core.store.model import Model
from genaid_server.resource.core.store.refreshing import RemoteHeader
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.servicers.context import Context


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
