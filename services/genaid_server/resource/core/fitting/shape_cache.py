"""The shapes of installed models, read from their files' headers when they are first asked for."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.fitting.model_shape import DiffusionShape, LlmShape
from genaid_server.resource.core.formats import gguf, safetensors
from genaid_server.resource.core.formats.kinds import ModelFormat
from genaid_server.resource.core.store.files import on_disk
from genaid_server.resource.core.store.model import Model, ModelFile

if TYPE_CHECKING:
    from genaid_server.resource.core.fitting.diffusion_shape import TensorPart

REMEMBERED: Final = 64
"""How many shapes are remembered; one takes a few kilobytes."""


_lock = threading.Lock()  # headers are read in threads


@dataclass(frozen=True, slots=True)
class _Version:
    """Which content of which files a shape was read from."""

    files: tuple[tuple[str, int, int], ...]


class Shapes:
    """Reads headers in a thread and remembers what they said for as long as the files stay as they are."""

    def __init__(self) -> None:
        self._llms: OrderedDict[_Version, LlmShape | None] = OrderedDict()
        self._diffusions: OrderedDict[_Version, DiffusionShape | None] = OrderedDict()

    async def llm(self, model: Model) -> LlmShape | None:
        """The shape of a language model, None where its header doesn't say enough.

        Raises FileSystemError where a file can't be read.
        """
        return await asyncio.to_thread(_remembered, self._llms, model, _read_llm)

    async def diffusion(self, model: Model) -> DiffusionShape | None:
        """The shape of a diffusion model, None where its headers don't say enough.

        Raises FileSystemError where a file can't be read.
        """
        return await asyncio.to_thread(_remembered, self._diffusions, model, _read_diffusion)


def _remembered[Shape](
    known: "OrderedDict[_Version, Shape | None]", model: Model, read: Callable[[Model], Shape | None]
) -> Shape | None:
    with on_disk("read", model.primary.name):
        version = _Version(tuple(_stamp(file) for file in model.files))
        with _lock:
            if version in known:
                return known[version]
        shape = _read_or_none(model, read)
        with _lock:
            known[version] = shape
            if len(known) > REMEMBERED:
                known.popitem(last=False)
        return shape


def _stamp(file: ModelFile) -> tuple[str, int, int]:
    found = file.path.stat()
    return str(file.path), found.st_size, found.st_mtime_ns


def _read_or_none[Shape](model: Model, read: Callable[[Model], Shape | None]) -> Shape | None:
    try:
        return read(model)
    except InvalidRequestError:  # damaged since it was installed: its size is still known
        return None


# What makes shapes of headers is imported in the thread that reads the first one: no start has to wait for it.
def _read_llm(model: Model) -> LlmShape | None:
    from genaid_server.resource.core.fitting import llm_shape

    if model.format is not ModelFormat.GGUF:
        return None
    return llm_shape.shape_of([gguf.read_header(file.path) for file in model.files])


def _read_diffusion(model: Model) -> DiffusionShape | None:
    from genaid_server.resource.core.fitting import diffusion_shape

    return diffusion_shape.shape_of([_part(file) for file in model.files])


def _part(file: ModelFile) -> "TensorPart":
    from genaid_server.resource.core.fitting.diffusion_shape import TensorPart

    if file.path.suffix.lower() == f".{ModelFormat.SAFETENSORS}":
        return TensorPart.from_safetensors(safetensors.read_header(file.path), file.component)
    return TensorPart.from_gguf(gguf.read_header(file.path), file.component)
