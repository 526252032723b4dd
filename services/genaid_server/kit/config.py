"""How a configuration is read: defaults < TOML file < environment `GENAID_*` < flags; frozen.

A nested key is written with two underscores in the environment: `GENAID_IMAGE__QUEUE_DEPTH=2` is `queue_depth`
of the section `[image]`; a list is written as JSON; an empty variable counts as absent. Each service has its sections
in a module of its own; `settings` puts them together.
"""

import logging
import os
import tomllib
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.kit.settings import Section, SettingsError, read_section

PREFIX: Final = "GENAID_"


class LogLevel(StrEnum):
    """How grave a message must be to be logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """What logging calls it."""
        return logging.getLevelNamesMapping()[self.upper()]


class LogConfig(Section, frozen=True, kw_only=True):
    """What a service says of itself on stderr; on disk it is never less than info."""

    level: LogLevel = LogLevel.INFO
    """How grave a message of ours must be."""
    libraries: LogLevel = LogLevel.WARNING
    """How grave a message of a library must be."""


def read[C: Section](
    schema: type[C],
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    *,
    documented: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    others: Collection[str] = (),
) -> C:
    """Read a configuration.

    `flags` are nested like the file, without the keys that the user did not give. `documented` are variables without
    the prefix, each with the key that it sets; `others` have the prefix and are not for the configuration.
    Raises InvalidRequestError that names the key, its value and what it should be.
    """
    values: dict[str, Any] = {}
    for layer in (_file(file), _documented(os.environ, documented), _environment(os.environ, others), flags or {}):
        values = _merged(values, layer)
    try:
        return read_section(schema, values)
    except SettingsError as error:
        raise InvalidRequestError(f"The configuration is wrong: {error}.", field="config") from error


def _file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))  # editors on Windows like to put a mark in front
    except OSError as error:
        raise InvalidRequestError(f"Can't read the configuration {file}: {error.strerror}.", field="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"The configuration {file} is not TOML: {error}.", field="config") from error


def _documented(environment: Mapping[str, str], documented: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, keys in documented.items():
        if environment.get(name):
            values = _merged(values, _nested(keys, environment[name]))
    return values


def _environment(environment: Mapping[str, str], others: Collection[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in environment.items():
        if name.startswith(PREFIX) and name not in others and value:
            values = _merged(values, _nested(name.removeprefix(PREFIX).lower().split("__"), value))
    return values


def _nested(keys: Sequence[str], value: str) -> dict[str, Any]:
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    return dict(nested)


def _merged(lower: Mapping[str, Any], higher: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables in one; where both have a value, that of the higher."""
    merged = dict(lower)
    for key, value in higher.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
