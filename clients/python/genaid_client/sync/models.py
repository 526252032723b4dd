# Generated from ../aio/models.py by scripts/generate_sync.py; edit that file, then run `make sync`.
"""The models that are installed."""

import builtins
from collections.abc import Generator

from genaid.resource.v1 import models_pb2
from genaid.resource.v1.models_pb2_grpc import ModelServiceStub
from genaid_client import convert
from genaid_client.messages import request
from genaid_client.sync.connection import Connection
from genaid_client.types import MetadataStrategy, Model, ModelType, VerifyProgress


class ModelCalls:
    """The models that are installed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = ModelServiceStub(connection.channel)

    def list(self, type: ModelType | None = None) -> builtins.list[Model]:  # noqa: A002 - as in the contract
        """All installed models of a type, or of every type, ordered by id."""
        pages = self._connection.pages(self._stub.ListModels, convert.list_models_request(type))
        return [convert.model_from_pb(model) for page in pages for model in page.models]

    def get(self, model_id: str) -> Model:
        """One model. Raises ModelNotFoundError."""
        response = self._connection.call(self._stub.GetModel, request(models_pb2.GetModelRequest, model_id=model_id))
        return convert.model_from_pb(response.model)

    def get_raw_metadata(self, model_id: str) -> dict[str, object]:
        """Everything that the header of a model's file says, by its keys; empty for a format without such a header.

        Arrays of more than 1024 elements are `{"type": ..., "length": ...}`. Raises ModelNotFoundError.
        """
        message = request(models_pb2.GetModelRequest, model_id=model_id, include_raw_metadata=True)
        return convert.raw_metadata(self._connection.call(self._stub.GetModel, message))

    def import_(
        self,
        file_name: str,
        *,
        name: str = "",
        type: ModelType | None = None,  # noqa: A002 - as in the contract
        model_id: str = "",
        request_id: str | None = None,
        timeout: float = 3600,
    ) -> Model:
        """Install a file that lies in the store's inbox; it takes as long as hashing the file does.

        `file_name` is its bare name there. The rest is told from the file's header where it is not given. A repeat
        with the same `request_id` returns the model that the first call installed.
        Raises InvalidRequestError and FileSystemError.
        """
        message = convert.import_model_request(file_name, name, type, model_id, request_id)
        response = self._connection.call(self._stub.ImportModel, message, timeout)
        return convert.model_from_pb(response.model)

    def delete(self, model_id: str) -> None:
        """Remove a model and its files. Raises ModelNotFoundError, ServerBusyError and FileSystemError."""
        self._connection.call(self._stub.DeleteModel, request(models_pb2.DeleteModelRequest, model_id=model_id))

    def verify(self, model_id: str) -> Generator[VerifyProgress, None, None]:
        """Hash a model's files and compare them with their checksums: how far it is, and at last the result.

        It takes about a second a gigabyte; leaving the iterator ends the work.
        Raises ModelNotFoundError and FileSystemError when it is iterated.
        """
        message = request(models_pb2.VerifyModelRequest, model_id=model_id)
        return self._connection.stream(self._stub.VerifyModel, message, convert.verified)

    def refresh_metadata(
        self, model_id: str, strategy: MetadataStrategy = MetadataStrategy.LOCAL_REMOTE, timeout: float = 120
    ) -> Model:
        """Read the header of a model's file anew and keep what it says.

        Raises ModelNotFoundError; InvalidRequestError where the file is no GGUF file or its header is damaged;
        DownloadError where the source was to be asked and does not answer, or is not known.
        """
        message = convert.refresh_request(model_id, strategy)
        response = self._connection.call(self._stub.RefreshModelMetadata, message, timeout)
        return convert.model_from_pb(response.model)
