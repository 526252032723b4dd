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
from genaid_server.resource.core.leases.plan import TenantKind
from genaid_server.resource.core.leases.usage import Usage, image_key
from genaid_server.resource.core.leases.ways import ImageNeed, choose
from genaid_server.resource.core.store.model import Model
from genaid_server.resource.core.store.store import ModelStore
from genaid_server.resource.core.system.facts import Hardware
from genaid_server.resource.core.system.survey import Survey

MAX_TENANT: Final = 128
MAX_VARIANT: Final = 64

SOMEBODY: Final = "image"
"""Who would hold the lease of a plan, where no image engine holds one."""
_NAMED: Final = 10
"""Models that an error names at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLeaseRequest(LeaseRequest):
    """What an image engine asks for: it will compute with this model, as `need` says."""

    need: ImageNeed
    model: Model


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which model an image worker was told to draw with; the default one where `model_id` is empty."""

    tenant_id: str
    model_id: str


class ImageNeeds:
    """Says which model is meant, makes requests for leases out of what image engines are to do, and learns what they
    took.

    `default_model` is the configured one, empty where none is.
    """

    def __init__(
        self, store: ModelStore, survey: Survey, budgets: Budgets, usage: Usage, default_model: str = ""
    ) -> None:
        self._store, self._survey, self._budgets, self._usage = store, survey, budgets, usage
        self._default_model = default_model
        self._choice: _Choice | None = None
        self._shapes = Shapes()
        self._seen: tuple[Hardware, Capacity] | None = None

    def model(self, model_id: str) -> Model:
        """The model that is meant by an id, as it is in the store now: the default one where that is empty.

        Raises ModelNotFoundError, also for a model that is no diffusion model, and where none is named and none or
        several could be meant.
        """
        wanted = model_id or self._default_model
        if not wanted:
            return self._only_model()
        model = self._store.get(wanted)
        if model.type is not ModelType.DIFFUSION:
            raise ModelNotFoundError(
                f"Model {model.id!r} is no diffusion model, so it can't draw images.", modelId=model.id
            )
        return model

    def chosen(self, tenant_id: str, model_id: str) -> None:
        """An image worker draws with this model from now on, with the default one where it is empty; what workers said
        before is forgotten. Raises InvalidRequestError for what is no name of a tenant."""
        _check_tenant(tenant_id)
        self._choice = _Choice(tenant_id, model_id)

    async def next_image(self, need: ImageNeed) -> ImageLeaseRequest:
        """What would be asked for if an image were made now; where no model is named, with the one that the image
        worker was told to draw with. Raises what `request` raises."""
        chosen = self._choice.model_id if self._choice else ""
        if not any(model.id == chosen for model in self._store.list(ModelType.DIFFUSION)):
            chosen = ""  # a choice ends with the model that was chosen
        return await self.request(SOMEBODY, replace(need, model_id=need.model_id or chosen))

    async def request(self, tenant_id: str, need: ImageNeed, *, resident: bool = False) -> ImageLeaseRequest:
        """What to ask for, so that the engine does this the fastest way that fits on the machine.

        One that is `resident` does it the way that `need` says already.
        Raises InvalidRequestError for what is out of range; ModelNotFoundError, also for a model that is no diffusion
        model, and where none is named and none or several could be meant; FileSystemError where a file of the model
        can't be read; ServerError where the service stops.
        """
        _check_tenant(tenant_id)
        _check_need(need)
        model = self.model(need.model_id)
        shape = await self._shapes.diffusion(model)
        whole = await self._whole()
        size = model.size_bytes

        def measured(way: ImageNeed) -> int | None:
            return self._usage.known(image_key(model.id, size, way))

        way = choose(shape, size, need, whole, self._budgets.vram, measured, as_asked=resident)
        return ImageLeaseRequest(
            tenant_id,
            TenantKind.IMAGE,
            model.id,
            way.amount,
            measured=way.measured,
            placement=way.placement,
            resident=resident,
            need=way.need,
            model=model,
        )

    def learn(self, lease: Lease, width: int, height: int, peak_ram_bytes: int) -> None:
        """Take in what the engine of a lease has taken at its peak with images of this size, in pixels; nothing where
        that is 0, or no image was made."""
        request = lease.request
        if isinstance(request, ImageLeaseRequest) and width and height:
            made = replace(request.need, width=width, height=height)
            self._usage.learn(image_key(request.model_id, request.model.size_bytes, made), peak_ram_bytes)

    async def _whole(self) -> Capacity:
        """All that genaid may use; as old as the detection of the hardware is."""
        hardware = await self._survey.lasting()
        if self._seen is None or self._seen[0] is not hardware:
            memory = await self._survey.memory()
            self._seen = hardware, capacity.total(hardware, memory.ram, self._budgets)
        return self._seen[1]

    def _only_model(self) -> Model:
        installed = self._store.list(ModelType.DIFFUSION)
        if not installed:
            raise ModelNotFoundError(
                "No diffusion model is installed. Import one with: genaid models import FILE --type diffusion"
            )
        if len(installed) > 1:
            names = ", ".join(model.id for model in installed[:_NAMED])
            raise ModelNotFoundError(
                f"Several diffusion models are installed ({names}). Choose one of them: "
                "genaid engine start --model ID, or genaid up --image-model ID"
            )
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
