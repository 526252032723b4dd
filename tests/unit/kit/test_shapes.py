"""JSON that is read into dataclasses."""

from dataclasses import dataclass

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
        (b"", "JSON"),
        (b"[]", "object"),
        (b"{}", "^x: "),
        (b'{"x": "much"}', "^x: "),
        (b'{"x": 1, "tags": [1]}', r"^tags\.0: "),
    ],
)
def test_what_has_another_shape_is_refused(content: bytes, where: str) -> None:
    with pytest.raises(ShapeError, match=where) as refused:
        SHAPE.read(content)
    assert "much" not in str(refused.value)
