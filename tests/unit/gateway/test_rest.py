"""The JSON of the REST API, field by field and shape by shape."""

import base64
import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genaid_client import (
    Generation,
    GenerationFailure,
    GenerationSpec,
    GenerationState,
    ImageInfo,
    Progress,
    Sampler,
    Stage,
)
from genaid_server.gateway.http.errors import ApiError
from genaid_server.gateway.images import generation_request, rest

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
GOLDEN = Path(__file__).parent.parent.parent / "golden" / "rest"

PENDING = Generation(
    id="gen_1",
    state=GenerationState.PENDING,
    spec=GenerationSpec("a tree"),
    create_time=datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC),
    update_time=datetime(2026, 1, 2, 3, 4, 6, 999_999, tzinfo=UTC),
    expire_time=None,
    progress=None,
    images=(),
    error=None,
    duration_seconds=None,
    model_id="tiny",
    queue_position=0,
)
DIFFUSION = Progress(Stage.DIFFUSION, 15, 30, 57.298, 1, 1)
RUNNING = replace(PENDING, state=GenerationState.IN_PROGRESS, progress=DIFFUSION)
IMAGE = ImageInfo(index=0, seed=42, width=512, height=256, size_bytes=4, sha256="ab" * 32)
COMPLETE = replace(PENDING, state=GenerationState.COMPLETE, images=(IMAGE,), duration_seconds=12.3456)
BATCH = replace(COMPLETE, images=(IMAGE, replace(IMAGE, index=1, seed=43)))
FAILED = replace(
    PENDING,
    state=GenerationState.ERROR,
    error=GenerationFailure("BACKEND_ERROR", 'The engine said "server is busy".\nIt died.'),
)
REFUSED = replace(
    FAILED,
    error=GenerationFailure(
        "INSUFFICIENT_RESOURCES", "There is too little memory.", {"required": "2048", "available": "1024"}
    ),
)
CANCELLED = replace(PENDING, state=GenerationState.CANCELLED)


def golden(name: str) -> str:
    return (GOLDEN / name).read_text("utf-8")


def pretty(body: bytes) -> str:
    """As the golden files are written; the order of the fields counts."""
    return json.dumps(json.loads(body), indent=2, ensure_ascii=False) + "\n"


def read(body: Any) -> GenerationSpec:
    return generation_request.read_spec(json.dumps(body).encode())


def refusal(body: bytes) -> str:
    with pytest.raises(ApiError) as caught:
        generation_request.read_spec(body)
    assert (caught.value.status, caught.value.code) == (400, "INVALID_REQUEST")
    return caught.value.message


def field_refusal(name: str, value: Any) -> str:
    return refusal(json.dumps({"prompt": "a tree"} | {name: value}).encode())


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("created.json", rest.created(PENDING)),
        ("pending.json", rest.state(PENDING)),
        ("in_progress.json", rest.state(RUNNING)),
        (
            "in_progress_batch.json",
            rest.state(replace(RUNNING, progress=Progress(Stage.DECODING, 0, 0, 80.0, 2, 3))),
        ),
        ("complete.json", rest.complete(COMPLETE, [b"\x89PNG"])),
        ("complete_batch.json", rest.complete(BATCH, [b"\x89PNG", b"\x89PNG!"])),
        ("error.json", rest.state(FAILED)),
        ("error_details.json", rest.state(REFUSED)),
        ("cancelled.json", rest.state(CANCELLED)),
        ("delete.json", rest.cancelled("gen_1")),
        ("health.json", rest.health(busy=True)),
    ],
)
def test_documented_shape(name: str, body: bytes) -> None:
    assert pretty(body) == golden(name)


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("event_in_progress.txt", rest.event(RUNNING)),
        ("event_complete.txt", rest.event(BATCH)),
        ("event_error.txt", rest.event(FAILED)),
        ("event_error_details.txt", rest.event(REFUSED)),
        ("event_lost.txt", rest.error_event(ApiError(503, "SERVER_ERROR", "The image worker can't be reached."))),
    ],
)
def test_event_shape(name: str, event: bytes) -> None:
    assert event.decode() == golden(name)


def test_created_at_is_the_same_in_post_and_get() -> None:
    post, get = json.loads(rest.created(PENDING)), json.loads(rest.state(RUNNING))
    assert post["createdAt"] == get["createdAt"] == 1767323045678


@unhurried
@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)))
def test_milliseconds_are_exact(naive: datetime) -> None:
    time = naive.replace(tzinfo=UTC)
    whole = rest.milliseconds(time)
    assert datetime.fromtimestamp(whole // 1000, UTC).replace(microsecond=whole % 1000 * 1000) == time.replace(
        microsecond=time.microsecond // 1000 * 1000
    )


@pytest.mark.parametrize(("percentage", "shown"), [(99.9999, 99.99), (100.0, 100.0), (0.0, 0.0), (33.333, 33.33)])
def test_percentage_is_cut_so_that_only_the_end_is_100(percentage: float, shown: float) -> None:
    state = rest.state(replace(RUNNING, progress=replace(DIFFUSION, percentage=percentage)))
    assert json.loads(state)["progress"]["percentage"] == shown


@pytest.mark.parametrize("progress", [None, replace(DIFFUSION, stage=None)])
def test_progress_always_has_a_documented_stage(progress: Progress | None) -> None:
    state = json.loads(rest.state(replace(RUNNING, progress=progress)))
    assert state["progress"]["stage"] == "loading"


@unhurried
@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_complete_is_what_a_json_encoder_would_write(pngs: list[bytes]) -> None:
    generation = replace(COMPLETE, images=tuple(replace(IMAGE, index=index) for index in range(len(pngs))))
    document = json.loads(rest.complete(generation, pngs))
    assert [base64.b64decode(image["image"], validate=True) for image in document["result"]["images"]] == pngs


@pytest.mark.parametrize("size", [rest.BASE64_CHUNK - 1, rest.BASE64_CHUNK, rest.BASE64_CHUNK + 1])
def test_images_longer_than_a_chunk(size: int) -> None:
    png = bytes(range(256)) * (size // 256) + bytes(size % 256)
    document = json.loads(rest.complete(COMPLETE, [png]))
    assert document["result"]["images"][0]["image"] == base64.b64encode(png).decode()


def test_all_fields() -> None:
    assert read(
        {
            "prompt": " ein Bäumchen 🌳\n--seed",
            "negativePrompt": "blurry",
            "width": 1024,
            "height": 768,
            "steps": 30,
            "cfgScale": 0,
            "seed": 0,
            "sampler": "dpm++2m",
            "count": 3,
        }
    ) == GenerationSpec(
        prompt=" ein Bäumchen 🌳\n--seed",
        negative_prompt="blurry",
        width=1024,
        height=768,
        steps=30,
        cfg_scale=0.0,
        seed=0,
        sampler=Sampler.DPMPP2M,
        count=3,
    )


@pytest.mark.parametrize("name", [name for name in generation_request.FIELDS if name != "prompt"])
def test_null_means_absent(name: str) -> None:
    assert read({"prompt": "a tree", name: None}) == read({"prompt": "a tree"}) == GenerationSpec("a tree")


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"prompt": ""}, {"prompt": " \t\r\n\u3000"}, {"width": 64}])
def test_missing_prompt(body: dict[str, Any]) -> None:
    assert refusal(json.dumps(body).encode()) == "Missing required field: prompt"


TEXT = "valid Unicode text of at most 32768 characters without NUL"
SIDE = "a whole number between 64 and 4096 and a multiple of 8"


@pytest.mark.parametrize(
    ("name", "rule", "values"),
    [
        ("prompt", TEXT, [0, False, 5, [], {}, ["a"], "a" * 32_769, "a\0b", "\ud800", "a\udfff"]),
        ("negativePrompt", TEXT, [5, True, {}, [], "a" * 32_769, "\0", "\udc00"]),
        ("width", SIDE, ["512", True, False, [], {}, 1.5, 0, -8, 56, 63, 65, 4097, 4104, 1e30, 10**400, -(10**400)]),
        ("height", SIDE, ["512", True, [], {}, 512.5, 0, -512, 63, 65, 100, 4097, 1e300]),
        ("steps", "a whole number between 1 and 200", ["4", True, [], {}, 4.5, 0, -1, 201, 2**63]),
        ("cfgScale", "a number between 0 and 100", ["7", True, [], {}, -0.001, 100.001, 10**400, -(10**400)]),
        (
            "seed",
            "a whole number up to 2147483647, or negative for a random one",
            ["1", True, [], {}, 0.5, -1.5, 2**31, 2**63, 10**400],
        ),
        ("count", "between 1 and 5", ["1", "abc", True, [], {}, 1.5, 0, 6, -1, 2**70]),
        ("sampler", f"one of {', '.join(Sampler)}", [1, True, [], {}, 0.5]),
    ],
)
def test_wrong_values(name: str, rule: str, values: list[Any]) -> None:
    assert {field_refusal(name, value) for value in values} == {f"{name} must be {rule}"}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("prompt", ["a", "a" * 32_768, "\U0010ffff" * 32_768, "{}", "--help", "server is busy", "a\u2028b"]),
        ("negativePrompt", ["", " ", "a" * 32_768]),
        ("width", [64, 4096, 512.0, 5.12e2]),
        ("height", [64, 4096, 1024.0]),
        ("steps", [1, 200, 20.0]),
        ("cfgScale", [0, 1, 100, 0.0, 7.5, 1e-9, -0.0]),
        ("seed", [0, 2**31 - 1, 42.0]),
        ("count", [1, 5, 2.0]),
        ("sampler", list(Sampler)),
    ],
)
def test_values_at_the_edge_of_what_is_allowed(name: str, values: list[Any]) -> None:
    attribute = {"negativePrompt": "negative_prompt", "cfgScale": "cfg_scale"}.get(name, name)
    body = {"prompt": "a tree", "width": 64, "height": 64}
    assert [getattr(read(body | {name: value}), attribute) for value in values] == values


def test_a_whole_number_written_with_a_point_becomes_an_integer() -> None:
    width = read({"prompt": "a tree", "width": 512.0}).width
    assert (width, type(width)) == (512, int)


@pytest.mark.parametrize("seed", [-1, -1.0, -(2**31), -(2**64), -(10**300), -0.9e300])
def test_any_negative_seed_is_a_random_one(seed: float) -> None:
    assert read({"prompt": "a tree", "seed": seed}).seed is None


@pytest.mark.parametrize(
    ("size", "allowed"),
    [
        ({"width": 2048, "height": 2048}, True),
        ({"width": 4096, "height": 1024}, True),
        ({"width": 4096}, True),
        ({"width": 2048, "height": 2056}, False),
        ({"width": 4096, "height": 4096}, False),
    ],
)
def test_area(size: dict[str, int], allowed: bool) -> None:
    body = {"prompt": "a tree", **size}
    if allowed:
        assert read(body).width == size["width"]
    else:
        assert refusal(json.dumps(body).encode()) == "width times height must be at most 4194304 pixels"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("promt", "prompt"),
        ("Prompt", "prompt"),
        ("negative_prompt", "negativePrompt"),
        ("cfg_scale", "cfgScale"),
        ("cfg", "cfgScale"),
        ("step", "steps"),
        ("hieght", "height"),
        ("sampler_name", "sampler"),
        ("counts", "count"),
    ],
)
def test_unknown_field_names_its_neighbour(name: str, nearest: str) -> None:
    assert field_refusal(name, 1) == f"Unknown field: {name}. Did you mean {nearest}?"


def test_unknown_field_without_a_neighbour_lists_what_is_known() -> None:
    assert field_refusal("zzz", 1) == f"Unknown field: zzz. Known are {', '.join(generation_request.FIELDS)}."


def test_unknown_field_comes_before_a_missing_prompt() -> None:
    assert refusal(b'{"promt": "a tree"}') == "Unknown field: promt. Did you mean prompt?"


def test_a_field_that_is_null_is_no_unknown_field() -> None:
    assert read({"prompt": "a tree", "future": None}) == GenerationSpec("a tree")


@pytest.mark.parametrize("name", ["\ud800", "x" * 1_000_000, "\0", "</script>"])
def test_a_strange_field_name_can_be_answered(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        read({"prompt": "a tree", name: 1})
    answer = json.loads(caught.value.body())
    assert answer["error"]["message"].startswith("Unknown field: ")
    assert len(answer["error"]["message"]) < 300


@pytest.mark.parametrize(
    ("sampler", "hint"),
    [
        ("eular_a", "Did you mean euler_a?"),
        ("EULER_A", "Did you mean euler_a?"),
        ("DPM++2M", "Did you mean dpm++2m?"),
        ("nope", f"Known are {', '.join(Sampler)}."),
        ("", f"Known are {', '.join(Sampler)}."),
        ("x" * 1_000_000, f"Known are {', '.join(Sampler)}."),
    ],
)
def test_unknown_sampler_names_its_neighbour(sampler: str, hint: str) -> None:
    shown = sampler if len(sampler) <= 64 else sampler[:64] + "…"
    assert field_refusal("sampler", sampler) == f"Unknown sampler: {shown}. {hint}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Missing request body: send a JSON object with a prompt"),
        (b" \r\n", "Missing request body: send a JSON object with a prompt"),
        (b"null", "The body must be a JSON object"),
        (b"[]", "The body must be a JSON object"),
        (b'"prompt"', "The body must be a JSON object"),
        (b"1", "The body must be a JSON object"),
        (b"{", "Malformed JSON: Expecting property name enclosed in double quotes at line 1 column 2"),
        (b'{"prompt": "a"} x', "Malformed JSON: Extra data at line 1 column 17"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "Malformed JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at line 1"),
        (b'{"prompt": "\xff"}', "The body is not UTF-8: byte 12 is wrong"),
        ('{"prompt": "a"}'.encode("utf-16"), "The body is not UTF-8: byte 0 is wrong"),
        (b'{"prompt": "\xed\xa0\x80"}', "The body is not UTF-8: byte 12 is wrong"),
        (b"[" * 500_000, "Malformed JSON: nested too deeply"),
        (b'{"prompt":' * 100_000, "Malformed JSON: nested too deeply"),
        (b'{"prompt": "a", "prompt": "b"}', "Duplicate field: prompt"),
        (b'{"prompt": "a", "width": {"a": 1, "a": 2}}', "Duplicate field: a"),
        (b'{"prompt": "a", "cfgScale": NaN}', "Malformed JSON: NaN is not a JSON number"),
        (b'{"prompt": "a", "cfgScale": Infinity}', "Malformed JSON: Infinity is not a JSON number"),
        (b'{"prompt": "a", "seed": -Infinity}', "Malformed JSON: -Infinity is not a JSON number"),
        (b'{"prompt": "a", "cfgScale": 1e999}', "cfgScale must be a number between 0 and 100"),
        (b'{"prompt": "a", "width": 1e999}', f"width must be {SIDE}"),
        (b'{"prompt": "a", "width": ' + b"9" * 5000 + b"}", "Malformed JSON: a number is too long"),
    ],
)
def test_a_body_that_is_no_request(body: bytes, message: str) -> None:
    assert refusal(body).startswith(message)


@unhurried
@given(st.binary(max_size=200))
def test_no_body_is_more_than_refused(body: bytes) -> None:
    with suppress(ApiError):
        generation_request.read_spec(body)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@unhurried
@given(st.dictionaries(st.sampled_from(generation_request.FIELDS), JSON_VALUES))
def test_what_is_accepted_is_in_range(fields: dict[str, Any]) -> None:
    try:
        spec = read({"prompt": "a tree"} | fields)
    except ApiError:
        return
    assert spec.prompt.strip()
    for side in (spec.width, spec.height):
        assert side is None or (64 <= side <= 4096 and side % 8 == 0)
    assert spec.steps is None or 1 <= spec.steps <= 200
    assert spec.cfg_scale is None or 0 <= spec.cfg_scale <= 100
    assert spec.seed is None or 0 <= spec.seed < 2**31
    assert spec.count is None or 1 <= spec.count <= 5
