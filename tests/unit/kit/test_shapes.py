"""JSON that is read into dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import pytest

from genaid_server.kit.shapes import Shape, ShapeError


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    tags: tuple[str, ...] = ()


SHAPE = Shape(Point)


def test_what_was_written_is_read() -> None:
    point = Point(3, ("a", "b"))
    assert SHAPE.write(point) == b'{"x":3,"tags":["a","b"]}'
    assert SHAPE.read(SHAPE.write(point)) == point
    assert SHAPE.read(SHAPE.write(point, indent=2)) == point
    assert b"\n" in SHAPE.write(point, indent=2)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"", "^Input data was truncated$"),
        (b"[]", "^Expected `object`, got `array`$"),
        (b"{}", "required field `x`$"),
        (b'{"x": "much"}', r"at `\$\.x`$"),
        (b'{"x": 1.5}', r"at `\$\.x`$"),
        (b'{"x": 1, "tags": [1]}', r"at `\$\.tags\[0\]`$"),
        (b'{"x": 1} {}', "JSON is malformed"),
        (b'{"x": 1, "tags": ["\xff"]}', "UTF-8"),
        ("\udcff", "utf-8"),
        (b'{"y": ' + b"[" * 100_000, "nested"),
    ],
)
def test_what_has_another_shape_is_refused(content: bytes | str, where: str) -> None:
    with pytest.raises(ShapeError, match=where) as refused:
        SHAPE.read(content)
    assert "much" not in str(refused.value)


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Drawing:
    source: Point | str
    names: Mapping[str, str]
    counts: dict[int, int]
    colour: Colour | None = None
    began: float = 0.0


def test_every_kind_of_value_is_written_and_read() -> None:
    shape = Shape(Drawing)
    for drawing in (
        Drawing(Point(10**30), {"a": "ä"}, {-1: 2**64}, Colour.RED, 1.5),
        Drawing("a", {}, {}),
    ):
        assert shape.read(shape.write(drawing)) == drawing
    assert shape.write(drawing) == b'{"source":"a","names":{},"counts":{},"colour":null,"began":0.0}'


def test_keys_of_a_later_version_are_passed_over() -> None:
    assert SHAPE.read(b'{"x": 1, "later": [{"y": 1}]}') == Point(1)
    assert Shape(Drawing).read(b'{"source": {"x": 1, "later": 2}, "names": {}, "counts": {}}').source == Point(1)


def test_a_whole_number_is_a_number() -> None:
    assert Shape(Drawing).read(b'{"source": "", "names": {}, "counts": {"7": 1}, "began": 3}').began == 3.0
