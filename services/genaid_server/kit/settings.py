"""Frozen tables of settings whose values are checked and named: what `kit/config.py` is made of.

A table is a class, `class ImageConfig(Section): threads: int = setting(default=0, ge=0, le=512)`. Text is read as a
number, a truth value or a JSON list where the annotation says so, because the environment holds nothing but text.

Our own code, because every command reads the configuration, and pydantic would cost it 0.1 s and 10 MB (decision 0021).
"""

import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, ClassVar, Final, NamedTuple, Self, dataclass_transform

_TRUTH: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class SettingsError(ValueError):
    """Values are wrong; `problems` names each, with what it should be."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class _Setting(NamedTuple):
    default: Any
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    read: Callable[[Any], Any] | None = None

    def checked(self, value: Any) -> Any:
        """The value, within the bounds. Raises ValueError."""
        if self.ge is not None and value < self.ge:
            raise ValueError(f"it must be at least {self.ge}")
        if self.gt is not None and value <= self.gt:
            raise ValueError(f"it must be more than {self.gt}")
        if self.le is not None and value > self.le:
            raise ValueError(f"it must be at most {self.le}")
        return value


def setting(
    *,
    default: Any,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    read: Callable[[Any], Any] | None = None,
) -> Any:
    """A key of a section: its default, what a number is at least, more than or at most, and how it is read.

    `read` makes the value of what a source says, and of the default, where the annotation alone doesn't tell how, and
    raises ValueError.
    """
    return _Setting(default, ge, gt, le, read)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
class Section:
    """A table of settings: made of keywords, and frozen. Unknown keys are refused. Raises SettingsError."""

    _settings: ClassVar[Mapping[str, tuple[Any, _Setting]]] = {}

    def __init_subclass__(cls) -> None:
        kinds = {name: kind for name, kind in cls.__annotations__.items() if not name.startswith("_")}
        cls._settings = {name: (kind, _as_setting(getattr(cls, name))) for name, kind in kinds.items()}

    def __init__(self, **values: Any) -> None:
        problems: list[str] = []
        self._fill(values, "", problems)
        if problems:
            raise SettingsError(problems)

    def _fill(self, values: Mapping[str, Any], where: str, problems: list[str]) -> None:
        """Take over the values and the defaults of the others; what is wrong is added to `problems`."""
        for name, (kind, known) in self._settings.items():
            if name in values:
                value = _value(kind, known, values[name], where + name, problems)
            else:
                value = known.default if known.read is None else known.read(known.default)
            self.__dict__[name] = value
        problems += [f"there is no key {where}{name}" for name in values if name not in self._settings]
        self.__dict__["_given"] = frozenset(values)

    @classmethod
    def kinds(cls) -> Iterator[tuple[str, Any]]:
        """The names of the settings and their annotations."""
        return ((name, kind) for name, (kind, _) in cls._settings.items())

    @property
    def given(self) -> frozenset[str]:
        """The names of those that were said; the others have their defaults."""
        names: frozenset[str] = self.__dict__["_given"]
        return names

    def _said(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self._settings}

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to {name!r}: settings are frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete {name!r}: settings are frozen")

    def __eq__(self, other: object) -> bool:
        return self._said() == other._said() if isinstance(other, Section) and type(other) is type(self) else False

    def __hash__(self) -> int:
        return hash(tuple(self._said().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._said().items())})"

    @classmethod
    def _nested(cls, value: Any, where: str, problems: list[str]) -> Self:
        section = cls.__new__(cls)
        section._fill(value, f"{where}.", problems)
        return section


def _as_setting(default: Any) -> _Setting:
    return default if isinstance(default, _Setting) else _Setting(default)


def _value(kind: Any, known: _Setting, value: Any, where: str, problems: list[str]) -> Any:
    """What a source says of a setting, as its kind; something in its place where that is wrong."""
    if isinstance(kind, type) and issubclass(kind, Section):
        if isinstance(value, kind):
            return value
        if isinstance(value, Mapping):
            return kind._nested(value, where, problems)
        problems.append(_problem(where, value, "it must be a table"))
        return known.default
    try:
        if known.read is not None:
            return known.read(value)
        if kind == tuple[str, ...]:
            return _strings(value, where, problems)
        return known.checked(_READERS[kind](value) if kind in _READERS else _member(kind, value))
    except ValueError as error:
        problems.append(_problem(where, value, str(error)))
        return known.default


def _problem(where: str, value: object, message: str) -> str:
    return f"{where} is {reprlib.repr(value)}: {message}"


def _strings(value: object, where: str, problems: list[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("a list is written as JSON in the environment") from None
    if not isinstance(value, list | tuple):
        raise ValueError("it must be a list of strings")
    wrong = [(place, entry) for place, entry in enumerate(value) if not isinstance(entry, str)]
    problems += [_problem(f"{where}.{place}", entry, "it must be a string") for place, entry in wrong]
    return tuple(value)


def _integer(value: object) -> int:
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int | str) or whole):
        raise ValueError("it must be a whole number")
    try:
        return int(value)  # type: ignore[call-overload, no-any-return] # a number or text, as was just seen
    except ValueError:
        raise ValueError("it must be a whole number") from None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("it must be a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("it must be a number") from None
    if not math.isfinite(number):
        raise ValueError("it must be a finite number")
    return number


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("it must be a string")
    return str(value)


def _truth(value: object) -> bool:
    known = value if isinstance(value, bool) else _TRUTH.get(str(value).lower())
    if known is None:
        raise ValueError("it must be true or false")
    return known


def _member(kind: type[StrEnum], value: object) -> StrEnum:
    try:
        return kind(str(value))
    except ValueError:
        raise ValueError(f"it must be one of {', '.join(kind)}") from None


_READERS: Final[dict[Any, Callable[[object], Any]]] = {int: _integer, float: _number, str: _text, bool: _truth}
