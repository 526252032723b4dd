"""The OpenAPI 3.1 document of the gateway: what is sent and answered from its models, operations written here."""

import json
from functools import cache
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from genaid_server.gateway.images import answers
from genaid_server.gateway.images.generation_request import MAX_COUNT, GenerationRequest
from genaid_server.gateway.llm import openai, shapes

type Schema = dict[str, Any]

MODELS: Final[tuple[type[BaseModel], ...]] = (
    GenerationRequest,
    answers.Created,
    answers.Cancelled,
    answers.Generation,
    answers.GenerationEvent,
    answers.Health,
    answers.Error,
    shapes.OpenAiError,
    shapes.ChatCompletionRequest,
    shapes.CompletionRequest,
    shapes.EmbeddingRequest,
    shapes.ModelList,
)
"""What is sent and answered; what they are made of comes along."""

_SCHEMAS: Final = "#/components/schemas/"
_DESCRIPTION: Final = (
    "Images made on this machine. POST asks for a generation and returns its id at once; GET polls it, or `/events` "
    "streams it. Finished generations are kept for a few minutes.\n\n"
    "Language models in the dialect of the OpenAI API, below `/openai/v1`: requests are passed to the LLM engine and "
    "its answers come back as they are. While the engine is being loaded, or comes back, requests wait.\n\n"
    "Only this machine is answered: the Host header must be a loopback name, and pages need an Origin of this machine, "
    "of an application (`app://`, `file://`, `tauri://`, ...) or one that the configuration allows. A page that shows "
    'an image by its URL from another origin needs `crossorigin="anonymous"` on its `<img>`.\n\n'
    "Each answer carries the id of its request in `X-Request-Id`, under which the logs have it; a request may "
    "bring its own."
)


@cache
def document() -> bytes:
    """The document, as JSON."""
    return json.dumps(_document(), separators=(",", ":")).encode()


def _document() -> Schema:
    generation = "/v1/images/generations/{id}"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "genaid",
            "version": version("genaid"),
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/v1/images/generations": {"post": _create()},
            generation: {"parameters": [_id()], "get": _poll(), "delete": _cancel()},
            generation + "/images/{n}": {"parameters": [_id(), _index()], "get": _image()},
            generation + "/events": {"parameters": [_id()], "get": _events()},
            "/health": {"get": _health()},
            "/openapi.json": {"get": _describe()},
            **{openai.PREFIX + path: {"post": _pass_on(path)} for path in openai.POSTS},
            openai.PREFIX + openai.MODELS: {"get": _models()},
        },
        "components": {
            "schemas": _schemas(),
            "responses": _responses(),
            "headers": _headers(),
            "securitySchemes": _SCHEMES,
        },
    }


def _create() -> Schema:
    return {
        "operationId": "createGeneration",
        "summary": "Ask for images.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("GenerationRequest")}},
        },
        "responses": {
            "201": _json("Accepted.", "Created")
            | {"headers": {"Location": {"description": "Where to poll.", "schema": {"type": "string"}}}},
            **_errors(400, 403, 408, 413, 415, 500, 503),
        },
    }


def _poll() -> Schema:
    return {
        "operationId": "getGeneration",
        "summary": "The state of a generation, with its images once it is complete.",
        "responses": {"200": _json("The state.", "Generation"), **_errors(403, 404, 500, 503)},
    }


def _cancel() -> Schema:
    return {
        "operationId": "cancelGeneration",
        "summary": "Cancel a generation. Repeating it is no error.",
        "responses": {
            "200": _json("Nothing computes for it any more.", "Cancelled"),
            **_errors(403, 404, 409, 500, 503),
        },
    }


def _image() -> Schema:
    etag = {"description": "The SHA-256 of the PNG.", "schema": {"type": "string"}}
    return {
        "operationId": "getImage",
        "summary": "One image of a complete generation.",
        "parameters": [
            {
                "name": "If-None-Match",
                "in": "header",
                "description": "The ETag of the copy at hand.",
                "schema": {"type": "string"},
            }
        ],
        "responses": {
            "200": {
                "description": "The PNG.",
                "headers": {"ETag": etag},
                "content": {"image/png": {"schema": {"type": "string", "contentMediaType": "image/png"}}},
            },
            "304": {"description": "The copy at hand is the image.", "headers": {"ETag": etag}},
            **_errors(403, 404, 500, 503),
        },
    }


def _events() -> Schema:
    return {
        "operationId": "watchGeneration",
        "summary": "The state of a generation as it changes, as server-sent events.",
        "description": (
            "`state` events carry a GenerationEvent: the present state first, then each newer one. The stream ends "
            "after a terminal one. An `error` event carries an Error and ends the stream; connect again to go on. "
            "A comment line every 15 seconds shows that the connection is alive."
        ),
        "parameters": [
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "Sent by an EventSource that reconnects; after a terminal event there is no more.",
                "schema": {"type": "string"},
            }
        ],
        "responses": {
            "200": {
                "description": "The stream.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            "204": {"description": "The terminal state has been seen; an EventSource stops."},
            **_errors(403, 404, 500, 503),
        },
    }


def _health() -> Schema:
    return {
        "operationId": "getHealth",
        "summary": "Whether images can be asked for.",
        "responses": {"200": _json("The image worker is there.", "Health"), **_errors(403, 500, 503)},
    }


def _describe() -> Schema:
    return {
        "operationId": "getOpenApi",
        "summary": "This document.",
        "responses": {
            "200": {
                "description": "The OpenAPI document.",
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            **_errors(403),
        },
    }


_LLM_CALLS: Final = {
    "/v1/chat/completions": ("createChatCompletion", "The next message of a chat.", "ChatCompletionRequest"),
    "/v1/completions": ("createCompletion", "How a text goes on.", "CompletionRequest"),
    "/v1/embeddings": ("createEmbedding", "Texts as vectors.", "EmbeddingRequest"),
}
_PASSED_ON: Final = "What the LLM engine answers, with its status: its errors, such as a 401 for a wrong key, as well."


def _pass_on(path: str) -> Schema:
    operation, summary, request = _LLM_CALLS[path]
    content: Schema = {"application/json": {"schema": _ANY}}
    if path != "/v1/embeddings":
        content["text/event-stream"] = {"schema": _TEXT}
    return {
        "operationId": operation,
        "summary": summary,
        "description": "Other fields are passed to the engine as they are.",
        "security": _KEY,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
        "responses": {
            "200": {"description": _PASSED_ON, "content": content},
            **_openai_errors(400, 403, 408, 413, 415, 500, 503),
        },
    }


def _models() -> Schema:
    return {
        "operationId": "listLlmModels",
        "summary": "The language model that is loaded; an empty list where none is.",
        "security": _KEY,
        "responses": {
            "200": {"description": _PASSED_ON, "content": {"application/json": {"schema": _ref("ModelList")}}},
            **_openai_errors(403, 500, 503),
        },
    }


_OPENAI_ERRORS: Final = {
    500: "BACKEND_ERROR: the engine died on this request, or answered nonsense; INTERNAL_ERROR.",
    503: "SERVER_BUSY: the engine did not come in time; try again after Retry-After. SERVER_ERROR: no engine runs and "
    "none is on its way, or the resource manager can't be reached; the message says what to do.",
}


def _openai_errors(*statuses: int) -> Schema:
    return {str(status): {"$ref": f"#/components/responses/openai-{status}"} for status in statuses}


_ERRORS: Final = {
    400: "INVALID_REQUEST: a field or the body is wrong; the message names it.",
    403: "INVALID_REQUEST: the Host or Origin may not call.",
    404: "NOT_FOUND: there is no such generation, or it has expired.",
    408: "INVALID_REQUEST: the body did not arrive in time.",
    409: "ALREADY_TERMINAL: the generation is complete or has failed.",
    413: "INVALID_REQUEST: the body is too large.",
    415: "INVALID_REQUEST: the body is not declared as application/json, or is compressed.",
    500: "Something failed on this side: BACKEND_ERROR, IO_ERROR or INTERNAL_ERROR.",
    503: "SERVER_BUSY: try again after Retry-After. SERVER_ERROR, MODEL_NOT_FOUND, INSUFFICIENT_RESOURCES or "
    "BINARY_ERROR: it can't be done as things are; the message says why.",
}


def _errors(*statuses: int) -> Schema:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _responses() -> Schema:
    # A 404 or 405 below /openai has its shape as well, but no operation answers with it.
    below_openai = {status: _ERRORS[status] for status in (400, 403, 408, 413, 415)} | _OPENAI_ERRORS
    responses = {str(status): _json(description, "Error") for status, description in _ERRORS.items()}
    responses |= {f"openai-{status}": _json(text, "OpenAiError") for status, text in below_openai.items()}
    for name in ("503", "openai-503"):
        responses[name]["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return responses


def _headers() -> Schema:
    return {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}


def _json(description: str, schema: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(name: str) -> Schema:
    return {"$ref": _SCHEMAS + name}


def _id() -> Schema:
    return {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}


def _index() -> Schema:
    return {
        "name": "n",
        "in": "path",
        "required": True,
        "description": "The image's place in the batch, from 0.",
        "schema": {"type": "integer", "minimum": 0, "maximum": MAX_COUNT - 1},
    }


class _Generator(GenerateJsonSchema):
    """Makes schemas without titles of fields, which only repeat the names, and without null as a default."""

    def field_title_should_be_set(self, _: Any) -> bool:
        """No."""
        return False

    def default_schema(self, schema: Any) -> Schema:
        """A field that is absent rather than null has no default."""
        absent = schema.get("default", ...) is None
        return self.generate_inner(schema["schema"]) if absent else super().default_schema(schema)


def _schemas() -> Schema:
    _, made = models_json_schema(
        [(model, "validation") for model in MODELS], ref_template=_SCHEMAS + "{model}", schema_generator=_Generator
    )
    schemas: Schema = made["$defs"]
    return schemas


_SCHEMES: Final = {
    "engineKey": {"type": "http", "scheme": "bearer", "description": "The LLM engine's key, where it has one."}
}
_KEY: Final[list[Schema]] = [{}, {"engineKey": []}]
_ANY: Final[Schema] = {}
_TEXT: Final[Schema] = {"type": "string"}
