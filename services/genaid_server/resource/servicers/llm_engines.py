"""Which LLM engine a call means."""

from typing import Literal, Protocol

from genaid_server.kit.errors import ModelNotFoundError
from genaid_server.resource.core.llm.engine import LlmEngine
from genaid_server.resource.core.llm.info import LlmInfo


class AboutAnEngine(Protocol):
    """A request that may name the model whose engine it means."""

    model_id: str

    def HasField(self, field_name: Literal["model_id"], /) -> bool:  # noqa: N802 - as in every message
        """Whether it does."""


def engine_meant(llm: LlmEngine, request: AboutAnEngine) -> LlmEngine:
    """The engine that a request means: that of the model which it names, or the one that there is. While another model
    is about to take the place of one that runs, it is that other one's.

    Raises ModelNotFoundError where no engine has, or had last, that model.
    """
    known = llm.model_id
    if not request.HasField("model_id") or request.model_id == known:
        return llm
    if known is None:
        raise ModelNotFoundError(
            f"No LLM engine has the model {request.model_id!r}: none has been started.", modelId=request.model_id
        )
    raise ModelNotFoundError(
        f"No LLM engine has the model {request.model_id!r}: the one that there is has {known}.",
        modelId=request.model_id,
        engineModelId=known,
    )


def model_of(info: LlmInfo) -> str | None:
    """The model that an engine has, or had before it was stopped; None before its first start."""
    return info.life.config.model_id if info.life.config else None
