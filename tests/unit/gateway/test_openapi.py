"""The OpenAPI document describes what the gateway really says."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from genaid_server.gateway.http.errors import ApiError
from genaid_server.gateway.images import answers, generation_request, openapi
from genaid_server.gateway.llm import shapes

GOLDEN = Path(__file__).parent.parent.parent / "golden" / "rest"
DOCUMENT: dict[str, Any] = json.loads(openapi.document())
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def resolve(reference: str) -> dict[str, Any]:
    node: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    assert isinstance(node, dict)
    return node


def matches(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is what a schema says; understands the keywords that the document uses."""
    if "$ref" in schema:
        return matches(value, resolve(schema["$ref"]))
    if "oneOf" in schema:
        return sum(matches(value, choice) for choice in schema["oneOf"]) == 1
    if "anyOf" in schema:
        return any(matches(value, choice) for choice in schema["anyOf"])
    if "const" in schema:
        return bool(value == schema["const"])
    if value not in schema.get("enum", [value]):
        return False
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        return False
    if isinstance(value, dict):
        return matches_object(value, schema)
    if isinstance(value, list):
        return all(matches(item, schema["items"]) for item in value)
    if isinstance(value, int | float):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    return True


def matches_object(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    # Stricter than the schema, which leaves room for the future: nothing undocumented is said today.
    if schema.keys() >= {"additionalProperties"} and "properties" not in schema:
        return all(matches(item, schema["additionalProperties"]) for item in value.values())
    properties = schema["properties"]
    return set(schema["required"]) <= set(value) <= set(properties) and all(
        matches(item, properties[name]) for name, item in value.items()
    )


def named(name: str) -> dict[str, Any]:
    return resolve(f"#/components/schemas/{name}")


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(child) for child in node.values()))
    if isinstance(node, list):
        return set().union(*(references(child) for child in node))
    return set()


def test_it_is_openapi_3_1() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    assert {"title", "version"} <= DOCUMENT["info"].keys()


def test_every_reference_leads_somewhere() -> None:
    assert references(DOCUMENT)
    for reference in references(DOCUMENT):
        assert resolve(reference)


def test_every_operation_has_an_id_of_its_own_and_a_success() -> None:
    operations = [
        operation for path in DOCUMENT["paths"].values() for method, operation in path.items() if method != "parameters"
    ]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids) == 11
    assert all(any(status.startswith("2") for status in operation["responses"]) for operation in operations)


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("created.json", "Created"),
        ("pending.json", "Generation"),
        ("in_progress.json", "Generation"),
        ("in_progress_batch.json", "Generation"),
        ("complete.json", "Generation"),
        ("complete_batch.json", "Generation"),
        ("error.json", "Generation"),
        ("error_details.json", "Generation"),
        ("cancelled.json", "Generation"),
        ("delete.json", "Cancelled"),
        ("health.json", "Health"),
    ],
)
def test_documented_shapes_match_their_schema(name: str, schema: str) -> None:
    document = json.loads((GOLDEN / name).read_text("utf-8"))
    assert matches(document, named(schema))
    assert not matches(document | {"surprise": 1}, named(schema))
    for field in document:
        assert not matches({key: value for key, value in document.items() if key != field}, named(schema))


@pytest.mark.parametrize(
    "name", ["event_in_progress.txt", "event_complete.txt", "event_error.txt", "event_error_details.txt"]
)
def test_events_match_their_schema(name: str) -> None:
    data = next(line for line in (GOLDEN / name).read_text("utf-8").splitlines() if line.startswith("data: "))
    assert matches(json.loads(data.removeprefix("data: ")), named("GenerationEvent"))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("created.json", answers.Created),
        ("pending.json", answers.Generation),
        ("in_progress.json", answers.Generation),
        ("in_progress_batch.json", answers.Generation),
        ("complete.json", answers.Generation),
        ("complete_batch.json", answers.Generation),
        ("error.json", answers.Generation),
        ("error_details.json", answers.Generation),
        ("cancelled.json", answers.Generation),
        ("delete.json", answers.Cancelled),
        ("health.json", answers.Health),
        ("event_in_progress.txt", answers.GenerationEvent),
        ("event_complete.txt", answers.GenerationEvent),
        ("event_error.txt", answers.GenerationEvent),
        ("event_error_details.txt", answers.GenerationEvent),
        ("event_lost.txt", answers.Error),
    ],
)
def test_a_documented_answer_is_what_its_model_says_and_no_more(name: str, model: type[BaseModel]) -> None:
    text = (GOLDEN / name).read_text("utf-8")
    if name.endswith(".txt"):
        text = next(line for line in text.splitlines() if line.startswith("data: ")).removeprefix("data: ")
    read = model.model_validate_json(text)
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == json.loads(text)


def test_an_answer_with_an_unknown_code_is_none_of_ours() -> None:
    with pytest.raises(ValidationError, match="no documented code"):
        answers.Error.model_validate_json('{"error": {"message": "x", "code": "WHATEVER"}}')


def test_errors_match_their_schema() -> None:
    error = ApiError(503, "SERVER_BUSY", "Busy", suggestion="Wait.")
    assert matches(json.loads(error.body()), named("Error"))


def test_errors_below_openai_match_theirs() -> None:
    error = ApiError(503, "SERVER_BUSY", "Busy", suggestion="Wait.")
    error.openai = True
    assert matches(json.loads(error.body()), named("OpenAiError"))
    assert shapes.OpenAiError.model_validate_json(error.body()).error.code == "SERVER_BUSY"


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a"},
        {"prompt": "a", "negativePrompt": None, "seed": None, "sampler": None, "count": None},
        {"prompt": "a", "width": 64, "height": 4096, "steps": 200, "cfgScale": 0, "seed": -1, "sampler": "lcm"},
        {"prompt": "a", "cfgScale": 7.5, "count": 5},
    ],
)
def test_the_request_schema_takes_what_the_gateway_takes(body: dict[str, Any]) -> None:
    assert generation_request.read_spec(json.dumps(body).encode())
    assert matches(body, named("GenerationRequest"))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": None},
        {"prompt": "a", "width": 0},
        {"prompt": "a", "height": 4104},
        {"prompt": "a", "steps": 201},
        {"prompt": "a", "cfgScale": 100.1},
        {"prompt": "a", "seed": 2**31},
        {"prompt": "a", "sampler": "nope"},
        {"prompt": "a", "count": 6},
        {"prompt": "a", "cfg_scale": 1},
    ],
)
def test_the_request_schema_refuses_what_the_gateway_refuses(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError):
        generation_request.read_spec(json.dumps(body).encode())
    assert not matches(body, named("GenerationRequest"))


def test_the_request_schema_tells_the_defaults() -> None:
    defaults = {name: field.get("default") for name, field in named("GenerationRequest")["properties"].items()}
    assert defaults == {
        "prompt": None,
        "negativePrompt": "",
        "width": 512,
        "height": 512,
        "steps": 20,
        "cfgScale": 7.5,
        "seed": None,
        "sampler": "euler_a",
        "count": 1,
    }
