"""What a generation may ask for."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.image.core.spec import MAX_PROMPT, MAX_SEED, GenerationSpec, Sampler, choose_seed
from genaid_server.kit.errors import InvalidRequestError


def test_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(GenerationSpec("a cat")) == {
        "prompt": "a cat",
        "negative_prompt": "",
        "width": 512,
        "height": 512,
        "steps": 20,
        "cfg_scale": 7.5,
        "seed": 0,
        "sampler": Sampler.EULER_A,
        "count": 1,
    }


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("prompt", "", "Missing required field: prompt"),
        ("prompt", " \n\t", "Missing required field: prompt"),
        ("prompt", "a\0b", "NUL"),
        ("prompt", "a" * (MAX_PROMPT + 1), "at most 32768 characters"),
        ("negative_prompt", "\0", "NUL"),
        ("negative_prompt", "a" * (MAX_PROMPT + 1), "at most"),
        ("width", 0, "between 64 and 4096"),
        ("width", -512, "between 64 and 4096"),
        ("width", 4104, "between 64 and 4096"),
        ("width", 100, "multiple of 8, such as 96"),
        ("height", 63, "between 64 and 4096"),
        ("height", 65, "multiple of 8, such as 64"),
        ("steps", 0, "between 1 and 200"),
        ("steps", 201, "between 1 and 200"),
        ("cfg_scale", -0.1, "between 0 and 100"),
        ("cfg_scale", 100.1, "between 0 and 100"),
        ("cfg_scale", float("nan"), "finite"),
        ("cfg_scale", float("inf"), "finite"),
        ("count", 0, "between 1 and 5"),
        ("count", 6, "between 1 and 5"),
        ("seed", -1, "between 0"),
        ("seed", MAX_SEED + 1, "2147483647"),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object, words: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        dataclasses.replace(GenerationSpec("a cat"), **{field: value})  # type: ignore[arg-type]
    assert refused.value.facts["field"] == field
    assert words in refused.value.message


def test_an_image_has_a_bounded_number_of_pixels() -> None:
    GenerationSpec("a cat", width=4096, height=1024)
    with pytest.raises(InvalidRequestError, match="at most 4194304 pixels"):
        GenerationSpec("a cat", width=4096, height=1032)


@pytest.mark.parametrize("prompt", ["--help", "-p x; rm -rf /", "server is busy", "🐱" * 100, "a" * MAX_PROMPT, "«é»"])
def test_any_text_is_a_prompt(prompt: str) -> None:
    assert GenerationSpec(prompt).prompt == prompt


@given(st.one_of(st.none(), st.integers(max_value=-1)), st.integers(1, 5))
def test_a_random_seed_leaves_room_for_every_image(wanted: int | None, count: int) -> None:
    seed = choose_seed(wanted, count)
    assert 0 <= seed <= MAX_SEED - (count - 1)


def test_random_seeds_differ_and_a_given_one_is_kept() -> None:
    assert len({choose_seed(None) for _ in range(8)}) > 1
    assert choose_seed(42) == 42
    assert choose_seed(0) == 0
