"""What the images API answers, as models: `/openapi.json` is made from them, and tests hold the answers to them.

The answers themselves are written in `rest`, by hand: a poll has no time for models.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel
from pydantic.alias_generators import to_camel
from pydantic.json_schema import SkipJsonSchema

from genaid_client import Stage
from genaid_server.gateway.http.errors import CODES
from genaid_server.gateway.images.generation_request import MAX_COUNT


class ResponseModel(BaseModel):
    """An object of an answer.

    Open to further properties: a client that was generated today must understand the gateway of tomorrow.
    """

    model_config = ConfigDict(strict=True, frozen=True, alias_generator=to_camel)


Absent = SkipJsonSchema[None]
"""Of a field that may be missing, and is never null."""


def _known(code: str) -> str:
    if code not in CODES:
        raise ValueError(f"{code} is no documented code")
    return code


Code = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(CODES)})]
Time = Annotated[int, Field(description="Milliseconds since the epoch.")]
Count = Annotated[int, Field(ge=0)]
BatchCount = Annotated[int, Field(ge=1, le=MAX_COUNT)]


def _plain(description: str, **schema: Any) -> Any:
    return Field(description=description, json_schema_extra=schema or None)


class Created(ResponseModel):
    """A generation that was accepted."""

    id: str
    status: Literal["pending"]
    created_at: Time


class Cancelled(ResponseModel):
    """A generation for which nothing computes any more."""

    id: str
    status: Literal["cancelled"]


class Health(ResponseModel):
    """A worker that is there."""

    status: Literal["ok"]
    busy: bool


class Progress(ResponseModel):
    """How far a generation is."""

    current_step: Count
    total_steps: Count = Field(description="0 where the number is not known.")
    stage: Stage
    percentage: float = Field(ge=0, le=100, description="Of the whole generation; never falls.")
    current_image: BatchCount | Absent = Field(None, description="From 1; only where there are several.")
    total_images: BatchCount | Absent = Field(None, description="Only where there are several.")


class Image(ResponseModel):
    """An image, included."""

    image: str = Field(json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})
    seed: int
    width: int
    height: int


class ImageLink(ResponseModel):
    """An image, named by its address."""

    url: str = _plain("Where the PNG is.", format="uri-reference")
    seed: int
    width: int
    height: int


class Result(ResponseModel):
    """What a generation has made."""

    images: list[Image]
    format: Literal["png"]
    time_taken: Count = Field(description="Milliseconds.")


class EventResult(ResponseModel):
    """What a generation has made, in an event."""

    images: list[ImageLink]
    format: Literal["png"]
    time_taken: Count = Field(description="Milliseconds.")


class Failure(ResponseModel):
    """Why a generation failed."""

    message: str = Field(description="For people.")
    code: str
    details: dict[str, str] | Absent = Field(
        None, description="Facts for programs, such as `required` and `available`; only where there are some."
    )


class _State(ResponseModel):
    id: str
    created_at: Time
    updated_at: Time


class PendingGeneration(_State):
    """A generation that waits."""

    status: Literal["pending"]


class RunningGeneration(_State):
    """A generation that is being made."""

    status: Literal["in_progress"]
    progress: Progress


class CompleteGeneration(_State):
    """A generation with its images."""

    status: Literal["complete"]
    result: Result


class CompleteGenerationEvent(_State):
    """A generation with the addresses of its images."""

    status: Literal["complete"]
    result: EventResult


class FailedGeneration(_State):
    """A generation that failed."""

    status: Literal["error"]
    error: Failure


class CancelledGeneration(_State):
    """A generation that was cancelled."""

    status: Literal["cancelled"]


class Generation(
    RootModel[
        Annotated[
            PendingGeneration | RunningGeneration | CompleteGeneration | FailedGeneration | CancelledGeneration,
            Field(discriminator="status"),
        ]
    ]
):
    """The state of a generation."""


class GenerationEvent(
    RootModel[
        Annotated[
            PendingGeneration | RunningGeneration | CompleteGenerationEvent | FailedGeneration | CancelledGeneration,
            Field(discriminator="status"),
        ]
    ]
):
    """The state of a generation, as an event tells it."""


class ErrorInfo(ResponseModel):
    """What went wrong."""

    message: str = Field(description="For people.")
    code: Code
    suggestion: str | Absent = Field(None, description="What to do; only where there is something.")


class Error(ResponseModel):
    """An answer that is an error."""

    error: ErrorInfo
