"""The documents for contributors: what they name is there, and the picture shows what the checker of imports allows."""

import re
from pathlib import Path
from typing import Final

import pytest

from test_architecture import CORE, RESOURCE_PACKAGES, problems

ROOT: Final = Path(__file__).parents[3]
DOCUMENTS: Final = ("CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "README.md")
NEW_DECISIONS: Final = "docs/decisions/0016-two-distributions-and-pins.md"
ARCHITECTURE: Final = (ROOT / "docs" / "architecture.md").read_text("utf-8")

PATH: Final = re.compile(r"(?<![\w`])`(\.?\w[\w.-]*(?:/[\w.-]+)+|[\w-]+\.(?:md|toml|txt|py))`")
LINK: Final = re.compile(r"\]\(([^):#]+)\)")
VERB: Final = re.compile(r"\bmake ([a-z][a-z-]*)\b")

PACKAGES: Final = {
    "up": "genaid_server.cli.commands.up",
    "cli": "genaid_server.cli.main",
    "gateway": "genaid_server.gateway.main",
    "image": "genaid_server.image.main",
    "resource": "genaid_server.resource.main",
    "engines": "genaid_server.engines.image",
    "probes": "genaid_server.probes.drm",
    "supervision": "genaid_server.supervision.child",
    "kit": "genaid_server.kit.config",
    "genaid_client": "genaid_client.errors",
    "genaid": "genaid.resource.v1.models_pb2",
}
"""The packages of the picture, each with a module of it."""


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def paths(text: str) -> set[str]:
    """The files and folders that a text names, in code or as the target of a link."""
    return {found[1] for pattern in (PATH, LINK) for found in pattern.finditer(text)}


@pytest.mark.parametrize("document", [*DOCUMENTS, NEW_DECISIONS])
def test_every_path_is_there(document: str) -> None:
    named = paths(read(document))
    assert named
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("document", [*DOCUMENTS, NEW_DECISIONS])
def test_every_verb_is_one_of_make(document: str) -> None:
    verbs = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    code = " ".join(re.findall(r"`[^`]+`|```.*?```", read(document), re.DOTALL))
    assert set(VERB.findall(code)) <= verbs


def test_what_is_named_is_found() -> None:
    text = "see `docs/no.md`, `Makefile`, [this](other/place.md), `.ci/run`, `a/b`, `x y/z`, `genaid up`, [web](https://x.y/z)"
    assert paths(text) == {"docs/no.md", "other/place.md", ".ci/run", "a/b"}


def arrows() -> set[tuple[str, str]]:
    return set(re.findall(r"^\s*(\w+) --> (\w+)$", ARCHITECTURE, re.MULTILINE))


def known(package: str) -> set[str]:
    """All packages below one of the core, by the picture."""
    below = {to for start, to in arrows() if start == package}
    return below.union(*(known(each) for each in below))


def test_there_is_one_picture() -> None:
    assert ARCHITECTURE.count("```mermaid") == 1
    assert {package for arrow in arrows() for package in arrow} == {*PACKAGES, *RESOURCE_PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_picture_shows_whom_a_package_may_import(package: str) -> None:
    others = {
        other: module for other, module in PACKAGES.items() if other != package and (package, other) != ("cli", "up")
    }
    allowed = {other for other, module in others.items() if not problems(PACKAGES[package], f"import {module}")}
    assert {to for start, to in arrows() if start == package} == allowed


@pytest.mark.parametrize("package", RESOURCE_PACKAGES)
def test_the_picture_shows_what_stands_below_a_package_of_the_core(package: str) -> None:
    assert known(package) == {*RESOURCE_PACKAGES[package]}
    for other in RESOURCE_PACKAGES:
        refused = bool(problems(f"{CORE}.{package}.some", f"import {CORE}.{other}.some"))
        assert refused is (other not in {package, *known(package)})
