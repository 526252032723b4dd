"""What the projects declare and what is pinned: they agree, and nothing is bound to one registry or one system."""

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[3]
PINS: Final = (ROOT / "requirements.txt").read_text("utf-8")
SYSTEMS: Final = {
    "Linux": ("linux", "x86_64"),
    "Linux on ARM": ("linux", "aarch64"),
    "macOS": ("darwin", "arm64"),
    "macOS on Intel": ("darwin", "x86_64"),
    "Windows": ("win32", "AMD64"),
}


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))


SERVER, CLIENT = project(ROOT), project(ROOT / "clients" / "python")
DECLARED = [
    *SERVER["project"]["dependencies"],
    *SERVER["dependency-groups"]["dev"],
    *CLIENT["project"]["dependencies"],
]


def pinned() -> dict[str, Requirement]:
    found = [Requirement(line.removesuffix("\\")) for line in PINS.splitlines() if re.match(r"\w", line)]
    return {canonicalize_name(each.name): each for each in found}


def applies(requirement: Requirement, system: str) -> bool:
    platform, machine = SYSTEMS[system]
    marker = requirement.marker
    return marker is None or marker.evaluate({"sys_platform": platform, "platform_machine": machine})


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_declared_is_pinned(system: str) -> None:
    """Where this fails, `make lock` helps."""
    pins = pinned()
    wrong = []
    for wanted in map(Requirement, DECLARED):
        if wanted.name == "genaid-client" or not applies(wanted, system):
            continue
        pin = pins.get(canonicalize_name(wanted.name))
        if pin is None or not applies(pin, system) or not wanted.specifier.contains(str(pin.specifier).lstrip("=")):
            wrong.append(str(wanted))
    assert wrong == []


def test_every_pin_is_exact_and_has_its_hashes() -> None:
    blocks = re.split(r"\n(?=\w)", PINS)[1:]
    assert len(blocks) == len(pinned()) > 0
    assert [block for block in blocks if not re.match(r"\S+==[^ *]+ .*\\\n    --hash=sha256:[0-9a-f]{64}", block)] == []


def test_the_pins_name_no_address() -> None:
    assert "://" not in PINS
    assert not re.search(r"^-", PINS, re.MULTILINE)


@pytest.mark.parametrize(
    ("system", "engines"),
    [(system, {"xllamacpp"} if system == "Linux on ARM" else {"cyllama", "xllamacpp"}) for system in SYSTEMS],
)
def test_where_an_engine_has_no_wheel_genaid_does_without_it(system: str, engines: set[str]) -> None:
    declared = [each for each in map(Requirement, DECLARED) if each.name in {"cyllama", "xllamacpp"}]
    assert {each.name for each in declared if applies(each, system)} == engines
    assert {name for name in ("cyllama", "xllamacpp") if applies(pinned()[name], system)} == engines


def test_both_distributions_are_of_one_version() -> None:
    version = SERVER["project"]["version"]
    assert CLIENT["project"]["version"] == version
    assert f"genaid-client=={version}" in SERVER["project"]["dependencies"]
    for key in ("requires-python", "license"):
        assert CLIENT["project"][key] == SERVER["project"][key]
    assert CLIENT["build-system"] == SERVER["build-system"]


def test_what_both_declare_they_declare_alike() -> None:
    of_the_server = {Requirement(each).name: each for each in SERVER["project"]["dependencies"]}
    for each in CLIENT["project"]["dependencies"]:
        assert of_the_server.get(Requirement(each).name, each) == each


def test_the_client_is_small() -> None:
    allowed = {"grpcio", "protobuf", "googleapis-common-protos", "platformdirs"}
    assert {Requirement(each).name for each in CLIENT["project"]["dependencies"]} <= allowed


def test_both_have_the_same_license() -> None:
    assert (ROOT / "clients" / "python" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
