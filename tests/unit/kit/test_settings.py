"""Tables of settings: every kind of value, from code and from text, and what is wrong with it."""

from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta, field

from genaid_server.kit.address import Address
from genaid_server.kit.settings import Section, SettingsError, directory, read_section


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


class Inner(Section, frozen=True, kw_only=True):
    count: Annotated[int, Meta(ge=0, le=9)] = 1
    share: Annotated[float, Meta(gt=0)] = 0.5


class Table(Section, frozen=True, kw_only=True):
    inner: Inner = Inner()
    names: tuple[str, ...] = ()
    word: str = ""
    wanted: bool = False
    level: Level = Level.LOW
    place: Path = field(default_factory=lambda: directory("here"))
    listen: Address = Address("127.0.0.1", 80)


def test_without_anything_the_defaults_hold() -> None:
    table = read_section(Table, {})
    assert table == Table()
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
        ("inner", {"count": "3"}, Inner(count=3)),
        ("inner", {"count": 3.0}, Inner(count=3)),
        ("inner", {"share": "0.25"}, Inner(share=0.25)),
        ("inner", {"share": 2}, Inner(share=2.0)),
        ("place", "there", Path("there").absolute()),
        ("place", Path("there"), Path("there").absolute()),
        ("listen", "[::1]:9", Address("::1", 9)),
        ("listen", Address("::1", 9), Address("::1", 9)),
    ],
)
def test_a_value_is_read_as_its_kind(name: str, said: object, value: object) -> None:
    table = read_section(Table, {name: said})
    assert getattr(table, name) == value
    assert type(getattr(table, name)) is type(value)
    assert table.given == {name}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"inner": {"count": -1}}, "inner.count is -1: Expected `int` >= 0"),
        ({"inner": {"count": 10}}, "inner.count is 10: Expected `int` <= 9"),
        ({"inner": {"share": 0}}, "inner.share is 0: Expected `float` > 0.0"),
        ({"inner": {"count": True}}, "inner.count is True: Expected `int`, got `bool`"),
        ({"inner": {"count": 1.5}}, "inner.count is 1.5: Expected `int`, got `float`"),
        ({"inner": {"count": "one"}}, "inner.count is 'one': Expected `int`, got `str`"),
        ({"inner": {"count": None}}, "inner.count is None: Expected `int`, got `null`"),
        ({"inner": {"share": False}}, "inner.share is False: Expected `float`, got `bool`"),
        ({"inner": {"share": "inf"}}, "inner.share is 'inf': it must be a finite number"),
        ({"inner": {"share": "nan"}}, "inner.share is 'nan': Expected `float` > 0.0"),
        ({"inner": 1}, "inner is 1: it must be a table"),
        ({"names": 1}, "names is 1: Expected `array`, got `int`"),
        ({"names": ["a", 1]}, "names is ['a', 1]: Expected `str`, got `int` - at `$[1]`"),
        ({"names": "a"}, "names is 'a': it must be a list, which is written as JSON in the environment"),
        ({"names": '["a", 1]'}, "names is '[\"a\", 1]': Expected `str`, got `int` - at `$[1]`"),
        ({"word": 1}, "word is 1: Expected `str`, got `int`"),
        ({"wanted": "perhaps"}, "wanted is 'perhaps': Expected `bool`, got `str`, it must be true or false"),
        ({"wanted": 2}, "wanted is 2: Expected `bool`, got `int`, it must be true or false"),
        ({"level": "medium"}, "level is 'medium': Invalid enum value 'medium', it must be one of low, high"),
        ({"place": 1}, "place is 1: it must be a path"),
        ({"word": date(2026, 1, 2)}, "word is datetime.date(2026, 1, 2): Expected `str`, got `date`"),
        ({"listen": 1}, "listen is 1: it must be host:port"),
        ({"listen": {"host": "a.b", "port": 1}}, "listen is {'host': 'a.b', 'port': 1}: it must be host:port"),
        ({"other": 1}, "there is no key other"),
        ({"inner": {"other": 1}}, "there is no key inner.other"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read_section(Table, values)
    assert refused.value.problems == (problem,)


@pytest.mark.parametrize("key", ["wanted", "level", "names", "listen", "inner"])
def test_bytes_of_the_environment_that_are_no_text_are_wrong(key: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{key} is '\\udcff': "):
        read_section(Table, {key: "\udcff"})


def test_a_number_beyond_all_numbers_is_none() -> None:
    values: dict[str, Any] = {"inner": {"share": 10**400}}
    with pytest.raises(SettingsError, match=r"inner.share is 1000\d*\.\.\.\d*: Number out of range"):
        read_section(Table, values)


def test_all_that_is_wrong_is_named_as_it_was_said() -> None:
    values: dict[str, Any] = {"other": 1, "word": 1, "inner": {"count": "one", "more": 2}}
    with pytest.raises(SettingsError) as refused:
        read_section(Table, values)
    assert [problem.split(" is ")[0] for problem in refused.value.problems] == [
        "there",
        "word",
        "inner.count",
        "there",
    ]


def test_tables_are_values() -> None:
    table = Table(word="x", wanted=True)
    assert table == Table(wanted=True, word="x")
    assert hash(table) == hash(Table(wanted=True, word="x"))
    assert table != Table(word="x")
    other: object = "x"
    assert table != other
    assert "word='x'" in repr(table)
    with pytest.raises(AttributeError, match="immutable"):
        table.word = "y"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del table.word
