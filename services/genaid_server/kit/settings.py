"""Frozen tables of settings, and how one is made of what a file, the environment and flags say.

A table is a class whose keys are annotated, `threads: Annotated[int, Meta(ge=0, le=512)] = 0`. msgspec reads each
value by itself, so that all that is wrong is said at once; text is a number, a truth value or a JSON list where the
annotation says so, because the environment holds nothing but text.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
from platformdirs import user_data_path

from genaid_server.kit.address import Address

_SWITCHES: Final = {"yes": True, "on": True, "no": False, "off": False}
"""Truth values besides true, false, 1 and 0."""


class SettingsError(ValueError):
    """Values are wrong; `problems` names each, with what it should be."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class Section(msgspec.Struct, frozen=True, dict=True):
    """A table of settings. What code builds itself is not checked: its types are mypy's to check."""

    @cached_property
    def given(self) -> frozenset[str]:
        """The names of those that a source said; none in a table that code has built."""
        return frozenset()


def read_section[S: Section](kind: type[S], said: Mapping[str, Any]) -> S:
    """The table of what was said, with its defaults for the rest. Raises SettingsError."""
    problems: list[str] = []
    section = _section(kind, said, "", problems)
    if problems:
        raise SettingsError(problems)
    return section


def address(value: object) -> Address:
    """The address that a source says. Raises ValueError."""
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError("it must be host:port")
    return Address.parse(value)


def directory(value: object) -> Path:
    """The path, absolute; empty text is the platform's own place for user data. Raises ValueError."""
    if not isinstance(value, str | Path):
        raise ValueError("it must be a path")
    if value == "":
        return user_data_path("genaid", appauthor=False)
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:  # ~somebody who is not there
        raise ValueError(str(error)) from error


_READERS: Final[dict[Any, Callable[[object], Any]]] = {Address: address, Path: directory}
"""How values are read that msgspec would take unchecked or as they are."""


def _section[S: Section](kind: type[S], said: Mapping[str, Any], where: str, problems: list[str]) -> S:
    """What is wrong is added to `problems`; the default stands in its place."""
    kinds = {field.name: field.type for field in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name not in kinds:
            problems.append(f"there is no key {where}{name}")
            continue
        of = kinds[name]
        try:
            if isinstance(of, type) and issubclass(of, Section):
                values[name] = _section(of, _table(value), f"{where}{name}.", problems)
            else:
                values[name] = _READERS[of](value) if of in _READERS else _value(of, value)
        except ValueError as error:
            problems.append(f"{where}{name} is {reprlib.repr(value)}: {error}")
    section = kind(**values)
    vars(section)["given"] = frozenset(said)  # beside the fields: two tables with the same values are equal
    return section


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("it must be a table")
    return value


def _value(kind: Any, value: Any) -> Any:
    if isinstance(value, str) and kind == tuple[str, ...]:
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            raise ValueError("it must be a list, which is written as JSON in the environment") from None
    elif isinstance(value, str) and kind is bool:
        value = _SWITCHES.get(value.lower(), value)
    try:
        read = msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}{_choice(kind)}") from None
    if isinstance(read, float) and not math.isfinite(read):
        raise ValueError("it must be a finite number")
    return read


def _choice(kind: Any) -> str:
    """What msgspec leaves out where there are few values: which."""
    if kind is bool:
        return ", it must be true or false"
    return f", it must be one of {', '.join(kind)}" if isinstance(kind, type) and issubclass(kind, StrEnum) else ""
