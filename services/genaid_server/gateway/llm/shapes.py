"""The OpenAI dialect as far as the gateway knows it, as models: `/openapi.json` is made from them.

Requests and answers pass through as they are; of fields that are not here only the engine knows.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from genaid_server.gateway.images.answers import Absent, Code


class _Object(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _OpenAiRequest(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    model: str | Absent = Field(None, description="Any text: the model that is loaded answers.")


class _Sampling(_OpenAiRequest):
    stream: bool = Field(False, description="Answer with server-sent events.")
    max_tokens: int | Absent = Field(None, description="Tokens to answer with at most.")
    temperature: Annotated[float, Field(ge=0)] | Absent = None
    top_p: Annotated[float, Field(ge=0, le=1)] | Absent = None
    seed: int | Absent = None
    stop: str | list[str] | Absent = None


class ChatMessage(_Object):
    """What somebody has said."""

    role: str
    content: Any = Field(description="Text, or a list of parts.")


class ChatCompletionRequest(_Sampling):
    """A chat that is to go on."""

    messages: list[ChatMessage]


class CompletionRequest(_Sampling):
    """A text that is to go on."""

    prompt: Any


class EmbeddingRequest(_OpenAiRequest):
    """Texts to be made vectors of."""

    input: Any


class ModelName(_Object):
    """A model."""

    id: str
    object: Literal["model"]


class ModelList(_Object):
    """The models that are loaded."""

    object: Literal["list"]
    data: list[ModelName]


class OpenAiErrorInfo(_Object):
    """What went wrong, as the OpenAI API says it."""

    message: str
    type: str
    param: None
    code: Code


class OpenAiError(_Object):
    """An answer that is an error, as the OpenAI API has them."""

    error: OpenAiErrorInfo
