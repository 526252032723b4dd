"""What an image engine needs of memory, and how it is to use it."""

from dataclasses import dataclass, replace
from typing import Final

from genaid_server.kit.errors import InvalidRequestError, ModelNotFoundError
from genaid_server.resource.core.fitting import capacity
from genaid_server.resource.core.fitting.capacity import Budgets, Capacity
from genaid_server.resource.core.fitting.shape_cache import Shapes
from genaid_server.resource.core.fitting.wishes import check_size
from genaid_server.resource.core.formats.kinds import ModelType
from genaid_server.resource.core.leases.lease import LLM_TENANT, Lease, LeaseRequest
from genaid_server.resource.core.leases.plan import Kind
from genaid_server.resource.core.leases.usage import Usage, image_key
from genaid_server.resource.core.leases.ways import ImageNeed, choose
from genaid_server.resource.core.store.model import Model
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.core.system.facts import Hardware
from genaid_server.resource.core.system.survey import Survey

MAX_TENANT: Final = 128
MAX_VARIANT: Final = 64

_NAMED: Final = 10
"""Models that an error names at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLeaseRequest(LeaseRequest):
    """What an image engine asks for: it will compute as `need` says, with a model whose files have `size_bytes`."""

    need: ImageNeed
    size_bytes: int


class ImageNeeds:
    """Makes requests for leases out of what image engines are to do, and learns what they took.

    `default_model` is the one that is meant where none is named.
    """

    def __init__(
        self, store: ModelStore, survey: Survey, budgets: Budgets, usage: Usage, default_model: str = ""
    ) -> None:
        self._store, self._survey, self._budgets, self._usage = store, survey, budgets, usage
        self._default_model = default_model
        self._shapes = Shapes()
        self._seen: tuple[Hardware, Capacity] | None = None

    async def request(self, tenant_id: str, need: ImageNeed, *, resident: bool = False) -> LeaseRequest:
        """What to ask for, so that the engine does this the fastest way that fits on the machine.

        One that is `resident` does it the way that `need` says already.
        Raises InvalidRequestError for what is out of range; ModelNotFoundError, also for a model that is no diffusion
        model, and where none is named and none or several could be meant; FileSystemError where a file of the model
        can't be read; ServerError where the service stops.
        """
        _check_tenant(tenant_id)
        _check_need(need)
        model = self._model(need.model_id)
        shape = await self._shapes.diffusion(model)
        whole = await self._whole()
        size = model.size_bytes

        def measured(way: ImageNeed) -> int | None:
            return self._usage.known(image_key(model.id, size, way))

        way = choose(shape, size, need, whole, self._budgets.vram, measured, as_asked=resident)
        return ImageLeaseRequest(
            tenant_id,
            Kind.IMAGE,
            model.id,
            way.amount,
            measured=way.measured,
            placement=way.placement,
            resident=resident,
            need=way.need,
            size_bytes=size,
        )

    def learn(self, lease: Lease, width: int, height: int, peak_ram_bytes: int) -> None:
        """Take in what the engine of a lease has taken at its peak with images of this size, in pixels; nothing where
        that is 0, or no image was made."""
        request = lease.request
        if isinstance(request, ImageLeaseRequest) and width and height:
            made = replace(request.need, width=width, height=height)
            self._usage.learn(image_key(request.model_id, request.size_bytes, made), peak_ram_bytes)

    async def _whole(self) -> Capacity:
        """All that genaid may use; as old as the detection of the hardware is."""
        hardware = await self._survey.lasting()
        if self._seen is None or self._seen[0] is not hardware:
            memory = await self._survey.memory()
            self._seen = hardware, capacity.total(hardware, memory.ram, self._budgets)
        return self._seen[1]

    def _model(self, model_id: str) -> Model:
        wanted = model_id or self._default_model
        if not wanted:
            return self._only_model()
        model = self._store.get(wanted)
        if model.type is not ModelType.DIFFUSION:
            raise ModelNotFoundError(
                f"Model {model.id!r} is no diffusion model, so it can't draw images.", modelId=model.id
            )
        return model

    def _only_model(self) -> Model:
        installed = self._store.list(ModelType.DIFFUSION)
        if not installed:
            raise ModelNotFoundError(
                "No diffusion model is installed. Import one with: genaid models import FILE --type diffusion"
            )
        if len(installed) > 1:
            names = ", ".join(model.id for model in installed[:_NAMED])
            raise ModelNotFoundError(f"Several diffusion models are installed ({names}). Name one of them.")
        return installed[0]


def _check_need(need: ImageNeed) -> None:
    check_size(need.width, need.height)
    if need.max_vram_bytes < 0:
        raise InvalidRequestError("max_vram_bytes must not be negative", field="max_vram_bytes")
    if not 0 < len(need.variant) <= MAX_VARIANT:
        raise InvalidRequestError(f"variant must be 1 to {MAX_VARIANT} characters long", field="variant")


def _check_tenant(tenant_id: str) -> None:
    if not 0 < len(tenant_id) <= MAX_TENANT or not tenant_id.isprintable() or tenant_id.strip() != tenant_id:
        raise InvalidRequestError(
            f"tenant_id must be 1 to {MAX_TENANT} printable characters without space around them", field="tenant_id"
        )
    if tenant_id == LLM_TENANT:
        raise InvalidRequestError(f"tenant_id {LLM_TENANT!r} is that of the LLM engine", field="tenant_id")
