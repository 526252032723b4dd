"""The resource manager's services: each call converts, asks the core, and converts back."""

import grpc.aio

from genaid.resource.v1 import models_pb2, models_pb2_grpc
from genaid_server.kit.paging import page
from genaid_server.resource import convert
from genaid_server.resource.core.models import ModelStore

type Context = grpc.aio.ServicerContext[object, object]


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """ModelService."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    async def ListModels(  # noqa: N802
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        """A page of models."""
        models = self._store.list(convert.type_from_pb(request.type))
        some = page(models, lambda model: model.id, request.page_size, request.page_token)
        return models_pb2.ListModelsResponse(
            models=[convert.model_to_pb(model) for model in some.items], next_page_token=some.next_token
        )

    async def GetModel(  # noqa: N802
        self, request: models_pb2.GetModelRequest, context: Context
    ) -> models_pb2.GetModelResponse:
        """One model."""
        return models_pb2.GetModelResponse(model=convert.model_to_pb(self._store.get(request.model_id)))

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
        return models_pb2.DeleteModelResponse()
