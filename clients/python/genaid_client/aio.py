"""The asyncio face: one method a call, typed results, typed errors."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import grpc.aio

from genaid.image.v1 import engine_pb2, generation_pb2
from genaid.image.v1.engine_pb2_grpc import EngineServiceStub
from genaid.image.v1.generation_pb2_grpc import GenerationServiceStub
from genaid.resource.v1 import downloads_pb2, llm_pb2, models_pb2, orchestration_pb2, system_pb2
from genaid.resource.v1.downloads_pb2_grpc import DownloadServiceStub
from genaid.resource.v1.llm_pb2_grpc import LlmServiceStub
from genaid.resource.v1.models_pb2_grpc import ModelServiceStub
from genaid.resource.v1.orchestration_pb2_grpc import OrchestrationServiceStub
from genaid.resource.v1.system_pb2_grpc import SystemServiceStub
from genaid_client import convert, convert_common, convert_llm, convert_orchestration, convert_system
from genaid_client.channel import OPTIONS, cut_off, typed_errors
from genaid_client.messages import request
from genaid_client.tracing import call_metadata
from genaid_client.types import (
    Download,
    DownloadSpec,
    Engine,
    EngineOptions,
    Generation,
    GenerationSpec,
    GenerationState,
    Image,
    LogEntry,
    MetadataStrategy,
    Model,
    ModelType,
    VerifyProgress,
)
from genaid_client.types_llm import Llm, LlmServing
from genaid_client.types_orchestration import ImageNeed, ImagePlan, Lease, LeaseList, OffloadedLlm
from genaid_client.types_system import (
    LlmConfig,
    LlmRecommendation,
    MemorySnapshot,
    ModelCheck,
    ServerVersion,
    SystemCapabilities,
)


class _AsyncClient:
    """A channel to one service. Make it while the event loop runs; close it, or use it in an `async with`.

    `address` is `host:port`. `timeout` is the deadline in seconds of calls that have none of their own.
    Every call may raise ConnectionFailedError, DeadlineError and InternalError besides what it documents.
    """

    def __init__(self, address: str, *, timeout: float = 10.0) -> None:
        asyncio.get_running_loop()  # a channel that is made before its loop fails later, and strangely
        self._address = address
        self._timeout = timeout
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the calls that are under way with ConnectionFailedError, and close the channel."""
        await self._channel.close()

    async def _call[Request, Response](
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        message: Request,
        timeout: float | None = None,
    ) -> Response:
        with self._typed_errors():
            deadline = self._timeout if timeout is None else timeout
            return await method(message, timeout=deadline, metadata=call_metadata())

    async def _stream[Request, Response, Item](
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        message: Request,
        unpack: Callable[[Response], Iterable[Item]],
        timeout: float | None = None,
    ) -> AsyncGenerator[Item, None]:
        call = method(message, timeout=timeout, metadata=call_metadata())
        try:
            with self._typed_errors():
                async for response in call:
                    for item in unpack(response):
                        yield item
        finally:
            call.cancel()  # an iterator that is left early would keep the call open

    async def _pages[Request: convert.PageRequest, Response: convert.Page](
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], message: Request
    ) -> list[Response]:
        pages = [await self._call(method, message)]
        while pages[-1].next_page_token:
            message.page_token = pages[-1].next_page_token
            pages.append(await self._call(method, message))
        return pages

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            with typed_errors(self._address):
                yield
        except asyncio.CancelledError as error:
            # Closing the channel raises this as well, in tasks that nobody cancelled.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise cut_off(self._address) from error


class AsyncResourceClient(_AsyncClient):
    """The resource manager: models that are installed or on their way, the machine, its memory, and the LLM engine.

    Calls about the LLM engine take the id of its model: where there is no engine of that model they raise
    ModelNotFoundError, with `modelId` and, if there is one, `engineModelId` in its metadata. None means the engine that
    there is.
    """

    def __init__(self, address: str, *, timeout: float = 10.0) -> None:
        super().__init__(address, timeout=timeout)
        self._models = ModelServiceStub(self._channel)
        self._downloads = DownloadServiceStub(self._channel)
        self._system = SystemServiceStub(self._channel)
        self._llm = LlmServiceStub(self._channel)
        self._orchestration = OrchestrationServiceStub(self._channel)

    async def list_models(self, type: ModelType | None = None) -> list[Model]:  # noqa: A002 - as in the contract
        """All installed models of a type, or of every type, ordered by id."""
        pages = await self._pages(self._models.ListModels, convert.list_models_request(type))
        return [convert.model_from_pb(model) for page in pages for model in page.models]

    async def get_model(self, model_id: str) -> Model:
        """One model. Raises ModelNotFoundError."""
        response = await self._call(self._models.GetModel, request(models_pb2.GetModelRequest, model_id=model_id))
        return convert.model_from_pb(response.model)

    async def import_model(
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
        response = await self._call(self._models.ImportModel, message, timeout)
        return convert.model_from_pb(response.model)

    async def delete_model(self, model_id: str) -> None:
        """Remove a model and its files. Raises ModelNotFoundError, ServerBusyError and FileSystemError."""
        await self._call(self._models.DeleteModel, request(models_pb2.DeleteModelRequest, model_id=model_id))

    async def get_raw_metadata(self, model_id: str) -> dict[str, object]:
        """Everything that the header of a model's file says, by its keys; empty for a format without such a header.

        Arrays of more than 1024 elements are `{"type": ..., "length": ...}`. Raises ModelNotFoundError.
        """
        message = request(models_pb2.GetModelRequest, model_id=model_id, include_raw_metadata=True)
        return convert.raw_metadata(await self._call(self._models.GetModel, message))

    def verify_model(self, model_id: str) -> AsyncGenerator[VerifyProgress, None]:
        """Hash a model's files and compare them with their checksums: how far it is, and at last the result.

        It takes about a second a gigabyte; leaving the iterator ends the work.
        Raises ModelNotFoundError and FileSystemError when it is iterated.
        """
        message = request(models_pb2.VerifyModelRequest, model_id=model_id)
        return self._stream(self._models.VerifyModel, message, convert.verified)

    async def refresh_model_metadata(
        self, model_id: str, strategy: MetadataStrategy = MetadataStrategy.LOCAL_REMOTE, timeout: float = 120
    ) -> Model:
        """Read the header of a model's file anew and keep what it says.

        Raises ModelNotFoundError; InvalidRequestError where the file is no GGUF file or its header is damaged;
        DownloadError where the source was to be asked and does not answer, or is not known.
        """
        message = convert.refresh_request(model_id, strategy)
        response = await self._call(self._models.RefreshModelMetadata, message, timeout)
        return convert.model_from_pb(response.model)

    async def create_download(self, spec: DownloadSpec, *, request_id: str | None = None) -> Download:
        """Ask for a model; returns as soon as the download is accepted. It outlives this client, and the service.

        One that is under way for the same files is joined; where the model is installed, the download comes back as
        INSTALLED. A repeat with the same `request_id` returns the original download. Raises InvalidRequestError.
        """
        message = convert.create_download_request(spec, request_id)
        response = await self._call(self._downloads.CreateDownload, message)
        return convert.download_from_pb(response.download)

    async def get_download(self, download_id: str) -> Download:
        """One download. Raises NotFoundError."""
        message = request(downloads_pb2.GetDownloadRequest, download_id=download_id)
        response = await self._call(self._downloads.GetDownload, message)
        return convert.download_from_pb(response.download)

    async def list_downloads(self, active_only: bool = False) -> list[Download]:
        """The downloads that are under way and, unless `active_only`, those of the last week; the newest first."""
        pages = await self._pages(self._downloads.ListDownloads, convert.list_downloads_request(active_only))
        return [convert.download_from_pb(download) for page in pages for download in page.downloads]

    async def cancel_download(self, download_id: str, timeout: float = 60) -> Download:
        """End a download and remove what it has fetched. Repeating it is no error.

        Raises NotFoundError; AlreadyTerminalError where it is installed or has failed.
        """
        message = request(downloads_pb2.CancelDownloadRequest, download_id=download_id)
        response = await self._call(self._downloads.CancelDownload, message, timeout)
        return convert.download_from_pb(response.download)

    def watch_download(self, download_id: str) -> AsyncGenerator[Download, None]:
        """A download as it is now, then the newest a few times a second; ends after a terminal phase.

        Whether it succeeded, its last item says: see `raise_for_failure`. Raises NotFoundError when it is iterated.
        """
        message = request(downloads_pb2.WatchDownloadRequest, download_id=download_id)
        return self._stream(self._downloads.WatchDownload, message, convert.watched_download)

    async def get_version(self) -> ServerVersion:
        """What runs there: the versions of genaid and of its contracts, where its data is, and where it listens."""
        response = await self._call(self._system.GetVersion, system_pb2.GetVersionRequest())
        return convert_system.version_from_pb(response)

    async def get_capabilities(self, refresh: bool = False) -> SystemCapabilities:
        """What the machine has and what is recommended for it; `refresh` detects anew what is otherwise kept a minute.

        Memory is always that of now. What could not be found out is a note in the result.
        """
        message = system_pb2.GetCapabilitiesRequest(refresh=refresh)
        response = await self._call(self._system.GetCapabilities, message)
        return convert_system.capabilities_from_pb(response.capabilities)

    async def get_memory(self) -> MemorySnapshot:
        """Memory now: of the machine, of each GPU, and what each engine holds."""
        response = await self._call(self._system.GetMemory, system_pb2.GetMemoryRequest())
        return convert_system.memory_from_pb(response.memory)

    def watch_memory(self, interval_seconds: float | None = None) -> AsyncGenerator[MemorySnapshot, None]:
        """Memory now, then again and again: every second, or every `interval_seconds`, 0.1 to 3600.

        It ends only with the service. Raises InvalidRequestError for an interval out of range when it is iterated.
        """
        message = convert_system.watch_memory_request(interval_seconds)
        return self._stream(self._system.WatchMemory, message, convert_system.watched_memory)

    async def check_model(
        self,
        model_id: str,
        *,
        check_total_memory: bool = False,
        llm_config: LlmConfig | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> ModelCheck:
        """Whether a model can run with the memory that is free now, or with all that the machine has.

        `llm_config` is for a language model, and completed as in `recommend_llm_config`; `width` and `height` are for
        a diffusion model: the images' size in pixels, 512 if not told otherwise. That it can't run is no error.
        Raises ModelNotFoundError, InvalidRequestError and FileSystemError.
        """
        message = convert_system.check_model_request(model_id, check_total_memory, llm_config, width, height)
        return convert_system.check_from_pb(await self._call(self._system.CheckModel, message))

    async def recommend_llm_config(self, model_id: str, wishes: LlmConfig | None = None) -> LlmRecommendation:
        """How best to run a language model with the memory that is free now, around what the `wishes` decide.

        Raises ModelNotFoundError, InvalidRequestError and FileSystemError.
        """
        message = convert_system.recommend_request(model_id, wishes)
        return convert_system.recommendation_from_pb(await self._call(self._system.RecommendLlmConfig, message))

    async def start_llm(
        self,
        model_id: str,
        *,
        config: LlmConfig | None = None,
        serving: LlmServing | None = None,
        replace: bool = False,
        request_id: str | None = None,
        timeout: float = 3600,
    ) -> Llm:
        """Load a language model; returns when it answers at the result's `base_url`.

        What `config` and `serving` leave open is chosen. A start that is under way with the same arguments is joined.
        `replace` stops an engine that runs with another model or other options first. A start goes on when its caller
        leaves. Raises ModelNotFoundError, InvalidRequestError, PortInUseError, ServerBusyError,
        InsufficientResourcesError, BinaryError; ServerError where it does not load, or is stopped meanwhile.
        """
        message = convert_llm.start_llm_request(model_id, config, serving, replace, request_id)
        response = await self._call(self._llm.StartLlm, message, timeout)
        return convert_llm.llm_from_pb(response.llm)

    async def stop_llm(self, model_id: str | None = None, *, timeout: float = 60) -> Llm:
        """Stop the LLM engine and free its memory; it is no error where it does not run."""
        response = await self._call(self._llm.StopLlm, request(llm_pb2.StopLlmRequest, model_id=model_id), timeout)
        return convert_llm.llm_from_pb(response.llm)

    async def restart_llm(self, model_id: str | None = None, *, timeout: float = 3600) -> Llm:
        """Stop the LLM engine, and start it again with the same model and options.

        Raises ServerError where it has never been started; else what `start_llm` raises.
        """
        response = await self._call(
            self._llm.RestartLlm, request(llm_pb2.RestartLlmRequest, model_id=model_id), timeout
        )
        return convert_llm.llm_from_pb(response.llm)

    async def get_llm(self, model_id: str | None = None) -> Llm:
        """The LLM engine as it is now, its health asked for anew."""
        response = await self._call(self._llm.GetLlm, request(llm_pb2.GetLlmRequest, model_id=model_id))
        return convert_llm.llm_from_pb(response.llm)

    def watch_llm(self, model_id: str | None = None) -> AsyncGenerator[Llm, None]:
        """The LLM engine as it is now, then after each change the newest, with the event that led to it."""
        return self._stream(
            self._llm.WatchLlm, request(llm_pb2.WatchLlmRequest, model_id=model_id), convert_llm.watched_llm
        )

    async def list_llm_logs(self, lines: int | None = None, *, model_id: str | None = None) -> list[LogEntry]:
        """The newest lines of the LLM engine's log, the newest last; 100 at most if not told otherwise.

        Raises InvalidRequestError for a negative number.
        """
        response = await self._call(
            self._llm.ListLogs, request(llm_pb2.ListLogsRequest, lines=lines, model_id=model_id)
        )
        return convert_common.log_entries(response)

    def tail_llm_logs(
        self, from_sequence: int | None = None, *, model_id: str | None = None
    ) -> AsyncGenerator[LogEntry, None]:
        """The LLM engine's log from a sequence number on, then each new line; without one only new lines."""
        message = request(llm_pb2.TailLogsRequest, from_sequence=from_sequence, model_id=model_id)
        return self._stream(self._llm.TailLogs, message, convert_common.log_entries)

    async def clear_llm_logs(self, *, model_id: str | None = None) -> None:
        """Forget the LLM engine's log, in memory and on disk. Sequence numbers go on. Raises FileSystemError."""
        await self._call(self._llm.ClearLogs, request(llm_pb2.ClearLogsRequest, model_id=model_id))

    async def plan_image_generation(self, need: ImageNeed = ImageNeed()) -> ImagePlan:  # noqa: B008 - frozen
        """What making an image would take: whether the LLM would have to be offloaded for it, and why.

        Nothing is changed. That it can't be made is no error: see `possible`. Raises ModelNotFoundError, also where no
        model is named and there is none or more than one; InvalidRequestError and FileSystemError.
        """
        message = convert_orchestration.plan_request(need)
        return convert_orchestration.plan_from_pb(await self._call(self._orchestration.PlanImageGeneration, message))

    async def get_offloaded_llm(self, model_id: str | None = None) -> OffloadedLlm | None:
        """The LLM that was offloaded and is to come back, or None."""
        message = request(orchestration_pb2.GetOffloadedLlmRequest, model_id=model_id)
        return convert_orchestration.offloaded_from_pb(await self._call(self._orchestration.GetOffloadedLlm, message))

    async def forget_offloaded_llm(self, model_id: str | None = None, *, timeout: float = 60) -> bool:
        """Give up on the LLM that was offloaded: it stays stopped. Returns whether there was one."""
        message = request(orchestration_pb2.ForgetOffloadedLlmRequest, model_id=model_id)
        return (await self._call(self._orchestration.ForgetOffloadedLlm, message, timeout)).forgotten

    def hold_lease(self, tenant_id: str, need: ImageNeed, *, resident: bool = False) -> AsyncGenerator[Lease, None]:
        """Ask for the memory of an image engine, and hold it: the lease as it is now, then after each change.

        To leave the iterator is to give the memory back; do so once the engine's process is gone. `tenant_id` is the
        same for all leases of one engine: a second one asks for another size, and takes the place of the first once it
        is granted. The iterator of the first ends then. `resident` says that the engine is in memory already, and that
        its lease broke off.
        Raises, when it is iterated, InsufficientResourcesError where it can't fit, ServerError where the server stops,
        and what `plan_image_generation` raises.
        """
        message = convert_orchestration.hold_request(tenant_id, need, resident)
        return self._stream(self._orchestration.HoldLease, message, convert_orchestration.held_lease)

    async def report_lease_use(
        self, lease_id: str, *, width: int = 0, height: int = 0, peak_ram_bytes: int = 0
    ) -> None:
        """Tell that a piece of work on a lease has ended, and what it took at most.

        `width` and `height` are those of the images in pixels, 0 where none were made; `peak_ram_bytes` is 0 where it
        is not known. Raises NotFoundError for a lease that is over, and InvalidRequestError.
        """
        message = request(
            orchestration_pb2.ReportLeaseUseRequest,
            lease_id=lease_id,
            width=width,
            height=height,
            peak_ram_bytes=peak_ram_bytes,
        )
        await self._call(self._orchestration.ReportLeaseUse, message)

    async def list_leases(self) -> LeaseList:
        """All leases, the oldest first, and what there is to share."""
        pages = await self._pages(self._orchestration.ListLeases, orchestration_pb2.ListLeasesRequest())
        return convert_orchestration.leases_from_pb(pages)


class AsyncImageClient(_AsyncClient):
    """The image worker: its engine, and the images that it makes.

    The iterators end when the server ends the stream; to reconnect is to call again. One that is left early ends its
    call when it is closed or collected.
    """

    def __init__(self, address: str, *, timeout: float = 10.0) -> None:
        super().__init__(address, timeout=timeout)
        self._engine = EngineServiceStub(self._channel)
        self._generations = GenerationServiceStub(self._channel)

    async def start_engine(
        self,
        model_id: str,
        *,
        threads: int | None = None,
        options: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
        keep_alive_seconds: float | None = None,
        replace: bool = False,
        timeout: float = 600,
    ) -> Engine:
        """Select a model and load it; returns when it is loaded.

        `threads` is 1 to 512, None to choose from the number of cores. `keep_alive_seconds` is how long it stays
        loaded without work: 0 unloads after each image, negative never unloads, None is the configured time.
        `replace` stops an engine that runs with other settings first.
        Raises ModelNotFoundError, InvalidRequestError, ServerBusyError and BackendError.
        """
        message = convert.start_engine_request(model_id, threads, options, keep_alive_seconds, replace)
        response = await self._call(self._engine.StartEngine, message, timeout)
        return convert.engine_from_pb(response.engine)

    async def stop_engine(self, timeout: float = 60) -> Engine:
        """Cancel what runs and waits, free the memory, and refuse generations until the next start."""
        response = await self._call(self._engine.StopEngine, engine_pb2.StopEngineRequest(), timeout)
        return convert.engine_from_pb(response.engine)

    async def get_engine(self) -> Engine:
        """The engine as it is now."""
        response = await self._call(self._engine.GetEngine, engine_pb2.GetEngineRequest())
        return convert.engine_from_pb(response.engine)

    def watch_engine(self) -> AsyncGenerator[Engine, None]:
        """The engine as it is now, then after each change the newest."""
        return self._stream(self._engine.WatchEngine, engine_pb2.WatchEngineRequest(), convert.watched_engine)

    async def list_engine_logs(self, lines: int | None = None) -> list[LogEntry]:
        """The newest lines of the engine's log, the newest last; 100 at most if not told otherwise.

        Raises InvalidRequestError for a negative number.
        """
        response = await self._call(self._engine.ListLogs, request(engine_pb2.ListLogsRequest, lines=lines))
        return convert_common.log_entries(response)

    def tail_engine_logs(self, from_sequence: int | None = None) -> AsyncGenerator[LogEntry, None]:
        """The engine's log from a sequence number on, then each new line; without one only new lines."""
        message = request(engine_pb2.TailLogsRequest, from_sequence=from_sequence)
        return self._stream(self._engine.TailLogs, message, convert_common.log_entries)

    async def clear_engine_logs(self) -> None:
        """Forget the engine's log. Sequence numbers go on."""
        await self._call(self._engine.ClearLogs, engine_pb2.ClearLogsRequest())

    async def create_generation(self, spec: GenerationSpec, *, request_id: str | None = None) -> Generation:
        """Ask for images; returns as soon as the generation is accepted. It outlives this client.

        A repeat with the same `request_id` returns the original generation; each call makes one if none is given.
        Raises InvalidRequestError, ServerBusyError, ServerError and ModelNotFoundError.
        """
        message = convert.create_generation_request(spec, request_id)
        response = await self._call(self._generations.CreateGeneration, message)
        return convert.generation_from_pb(response.generation)

    async def get_generation(self, generation_id: str) -> Generation:
        """One generation. Raises NotFoundError."""
        message = request(generation_pb2.GetGenerationRequest, generation_id=generation_id)
        response = await self._call(self._generations.GetGeneration, message)
        return convert.generation_from_pb(response.generation)

    async def list_generations(self, state: GenerationState | None = None) -> list[Generation]:
        """The generations in a state, or all that the worker knows, the newest first."""
        pages = await self._pages(self._generations.ListGenerations, convert.list_generations_request(state))
        return [convert.generation_from_pb(generation) for page in pages for generation in page.generations]

    def watch_generation(self, generation_id: str) -> AsyncGenerator[Generation, None]:
        """A generation as it is now, then after each change the newest; ends after a terminal state.

        Raises NotFoundError when it is iterated.
        """
        message = request(generation_pb2.WatchGenerationRequest, generation_id=generation_id)
        return self._stream(self._generations.WatchGeneration, message, convert.watched_generation)

    async def cancel_generation(self, generation_id: str, timeout: float = 60) -> Generation:
        """Cancel a generation; returns when nothing computes for it any more. Repeating it is no error.

        Raises NotFoundError and AlreadyTerminalError.
        """
        message = request(generation_pb2.CancelGenerationRequest, generation_id=generation_id)
        response = await self._call(self._generations.CancelGeneration, message, timeout)
        return convert.generation_from_pb(response.generation)

    async def delete_generation(self, generation_id: str, timeout: float = 60) -> None:
        """Forget a generation and its images; cancels it first where it is not finished. Raises NotFoundError."""
        message = request(generation_pb2.DeleteGenerationRequest, generation_id=generation_id)
        await self._call(self._generations.DeleteGeneration, message, timeout)

    async def get_image(self, generation_id: str, index: int = 0) -> bytes:
        """The PNG of one image of a complete generation. Raises NotFoundError and ServerBusyError."""
        message = request(generation_pb2.GetImageRequest, generation_id=generation_id, index=index)
        chunks = self._stream(self._generations.GetImage, message, convert.image_chunk, self._timeout)
        return b"".join([chunk async for chunk in chunks])

    def generate(self, spec: GenerationSpec) -> AsyncGenerator[Generation | Image, None]:
        """Make images in one call: the generation as it changes, and at the end its images, in order.

        The generation is cancelled when the iterator is left early, and forgotten when it ends.
        Raises, when it is iterated, what `create_generation` raises, BackendError and IoError.
        """
        message = request(generation_pb2.GenerateImagesRequest, spec=convert.spec_to_pb(spec))
        return self._stream(self._generations.GenerateImages, message, convert.ImageAssembly().add)
