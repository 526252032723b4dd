"""Tables of settings: every kind of value, from code and from text, and what is wrong with it."""

from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from genaid_server.kit.settings import Section, SettingsError, setting


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


def absolute(value: object) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError("it must be a path")
    return Path(value).absolute()


class Inner(Section):
    count: int = setting(default=1, ge=0, le=9)
    share: float = setting(default=0.5, gt=0)


class Table(Section):
    inner: Inner = Inner()
    names: tuple[str, ...] = ()
    word: str = ""
    wanted: bool = False
    level: Level = Level.LOW
    place: Path = setting(default="here", read=absolute)


def test_without_anything_the_defaults_hold() -> None:
    table = Table()
    assert (table.inner.count, table.inner.share, table.names, table.word, table.wanted) == (1, 0.5, (), "", False)
    assert table.level is Level.LOW
    assert table.place == Path("here").absolute()
    assert table.given == frozenset()


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("names", ["a", "b"], ("a", "b")),
        ("names", '["a"]', ("a",)),
        ("word", "x", "x"),
        ("wanted", True, True),
        ("wanted", "yes", True),
        ("wanted", "OFF", False),
        ("wanted", 1, True),
        ("level", "high", Level.HIGH),
        ("level", Level.HIGH, Level.HIGH),
        ("inner", Inner(count=3), Inner(count=3)),
        ("inner", {"count": "3"}, Inner(count=3)),
        ("inner", {"count": 3.0}, Inner(count=3)),
        ("inner", {"share": "0.25"}, Inner(share=0.25)),
        ("inner", {"share": 2}, Inner(share=2.0)),
    ],
)
def test_a_value_is_read_as_its_kind(name: str, said: object, value: object) -> None:
    values: dict[str, Any] = {name: said}
    table = Table(**values)
    assert getattr(table, name) == value
    assert type(getattr(table, name)) is type(value)
    assert table.given == {name}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"inner": {"count": -1}}, "inner.count is -1: it must be at least 0"),
        ({"inner": {"count": 10}}, "inner.count is 10: it must be at most 9"),
        ({"inner": {"share": 0}}, "inner.share is 0: it must be more than 0"),
        ({"inner": {"count": True}}, "inner.count is True: it must be a whole number"),
        ({"inner": {"count": 1.5}}, "inner.count is 1.5: it must be a whole number"),
        ({"inner": {"count": "one"}}, "inner.count is 'one': it must be a whole number"),
        ({"inner": {"count": None}}, "inner.count is None: it must be a whole number"),
        ({"inner": {"share": False}}, "inner.share is False: it must be a number"),
        ({"inner": {"share": "inf"}}, "inner.share is 'inf': it must be a finite number"),
        ({"inner": 1}, "inner is 1: it must be a table"),
        ({"names": 1}, "names is 1: it must be a list of strings"),
        ({"names": ["a", 1]}, "names.1 is 1: it must be a string"),
        ({"names": "a"}, "names is 'a': a list is written as JSON in the environment"),
        ({"word": 1}, "word is 1: it must be a string"),
        ({"wanted": "perhaps"}, "wanted is 'perhaps': it must be true or false"),
        ({"wanted": 2}, "wanted is 2: it must be true or false"),
        ({"level": "medium"}, "level is 'medium': it must be one of low, high"),
        ({"place": 1}, "place is 1: it must be a path"),
        ({"other": 1}, "there is no key other"),
        ({"inner": {"other": 1}}, "there is no key inner.other"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Table(**values)
    assert refused.value.problems == (problem,)


def test_a_number_beyond_all_numbers_is_none() -> None:
    values: dict[str, Any] = {"inner": {"share": 10**400}}
    with pytest.raises(SettingsError, match=r"inner.share is 1000\d*\.\.\.\d*: it must be a number"):
        Table(**values)


def test_all_that_is_wrong_is_named_in_order() -> None:
    values: dict[str, Any] = {"other": 1, "word": 1, "inner": {"count": "one", "more": 2}}
    with pytest.raises(SettingsError) as refused:
        Table(**values)
    assert [problem.split(" is ")[0] for problem in refused.value.problems] == [
        "inner.count",
        "there",
        "word",
        "there",
    ]


def test_tables_are_values() -> None:
    table = Table(word="x", wanted=True)
    assert table == Table(wanted=True, word="x")
    assert hash(table) == hash(Table(wanted=True, word="x"))
    assert table != Table(word="x")
    assert table != "x"
    assert "word='x'" in repr(table)
    with pytest.raises(AttributeError, match="frozen"):
        table.word = "y"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen"):
        del table.word
