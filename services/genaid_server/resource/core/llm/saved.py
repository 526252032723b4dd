"""The LLM that is to run, as it is kept on disk: whoever is killed finds it again at the next start.

It is written once an engine serves and removed when somebody stops it, or the service ends in order. The file holds
the key of the engine's API, so only its owner may read it.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.kit.files import write_atomic
from genaid_server.kit.shapes import Shape, ShapeError
from genaid_server.resource.core.fitting.footprint import Amount
from genaid_server.resource.core.fitting.plan import LlmOptions
from genaid_server.resource.core.llm.config import LlmRequest, check_serving

log = logging.getLogger(__name__)

FILE: Final = "llm.json"
_MOST: Final = 2**53
"""No number of what runs is larger; the contract's hold it."""


@dataclass(frozen=True, slots=True)
class SavedLlm:
    """What was asked for and what it became.

    `port` is the one that it served on. `offloaded_at`, in seconds since the epoch, is None while it is to run now;
    `reason` says what it was offloaded for. `slots` are the tokens of each slot whose prompt cache was saved.
    `model_stamp` tells the model's files from others under its id; empty in what earlier versions wrote.
    """

    request: LlmRequest
    llm: LlmOptions
    reasons: dict[str, str]
    amount: Amount
    port: int
    offloaded_at: float | None = None
    reason: str = ""
    slots: dict[int, int] = field(default_factory=dict)
    model_stamp: str = ""


_SHAPE: Final = Shape(SavedLlm)


class SavedFile:
    """The file; what it holds is all lost or all there."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE

    def read(self) -> SavedLlm | None:
        """What was kept, None where there is nothing, or nothing that makes sense."""
        try:
            return _checked(_SHAPE.read(self._path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ShapeError, InvalidRequestError, RecursionError) as error:
            log.warning("the LLM that ran before can't be told from %s: %s", self._path.name, type(error).__name__)
            return None

    def keep(self, saved: SavedLlm | None) -> None:
        """Write it; None removes it. A disk that refuses costs no more than that it is not found after a crash."""
        try:
            if saved is None:
                self._path.unlink(missing_ok=True)
            else:
                write_atomic(self._path, _SHAPE.write(saved), durable=False)
        except OSError as error:
            doing = "removed" if saved is None else "written"
            log.warning(
                "%s, which says what LLM runs, can't be %s: %s", self._path.name, doing, error.strerror or error
            )


def _checked(saved: SavedLlm) -> SavedLlm:
    """What is on disk gets no further than what a caller asks for. Raises InvalidRequestError."""
    check_serving(saved.request.serving)
    check_serving(replace(saved.request.serving, port=saved.port))
    llm = saved.llm
    numbers = (llm.threads, llm.gpu_layers, llm.context_size, llm.parallel, saved.amount.ram, saved.amount.vram)
    if not all(0 <= number <= _MOST for number in (*numbers, *saved.slots, *saved.slots.values())):
        raise InvalidRequestError("A number is out of range.", field="llm")
    return saved
