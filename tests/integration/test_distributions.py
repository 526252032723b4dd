"""Both distributions are built and installed into empty environments, and work there with nothing else."""

import csv
import io
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support import clean_environment, running_genaid

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

ROOT: Final = Path(__file__).parents[2]
PROJECTS: Final = {"genaid": ROOT, "genaid_client": ROOT / "clients" / "python"}
OF_THE_CLIENT: Final = {"genaid-client", "googleapis-common-protos", "grpcio", "platformdirs", "protobuf"}
"""All that may be in an environment of the client, but for what these need themselves."""
OF_ITS_DEPENDENCIES: Final = {"typing-extensions"}
# Nothing of this machine's settings decides what is installed, and no registry is asked.
ISOLATED: Final = clean_environment(
    {"PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
)
QUIETLY: Final = ("--isolated", "--disable-pip-version-check")
CALL: Final = """
import sys
import genaid.resource.v1.models_pb2
from genaid_client import Client, ModelNotFoundError

with Client(resource=sys.argv[1]) as client:
    assert client.models.list() == []
    try:
        client.models.get("nobody")
    except ModelNotFoundError as error:
        print(error.reason, error.metadata)
"""


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, env=ISOLATED, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(project: Path, into: Path, *flags: str) -> None:
    run(sys.executable, "-m", "hatchling", "build", "--directory", into, *flags, cwd=project)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both distributions, as source and as wheel."""
    folder = tmp_path_factory.mktemp("dist")
    for project in PROJECTS.values():
        build(project, folder)
    return folder


def needed(names: Iterable[str]) -> dict[str, Distribution]:
    """What is installed here of these distributions and of all that they need, by name; ours left out."""
    found: dict[str, Distribution] = {}
    names = [*names]
    while names:
        name = canonicalize_name(names.pop())
        if name not in found:
            found[name] = distribution(name)
            requirements = map(Requirement, found[name].requires or ())
            names += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return {name: each for name, each in found.items() if not name.startswith("genaid")}


def repack(installed: Distribution, folder: Path) -> None:
    """Make a wheel of what is installed here."""
    tags = [line[5:] for line in (installed.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: ")]
    tag = "-".join(".".join(sorted(set(part))) for part in zip(*(each.split("-") for each in tags), strict=True))
    name = f"{canonicalize_name(installed.name).replace('-', '_')}-{installed.version}"
    left_out = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    record, text = "", io.StringIO()
    with zipfile.ZipFile(folder / f"{name}-{tag}.whl", "w") as wheel:
        for file in installed.files or ():
            if file.name == "RECORD":
                record = file.as_posix()
            if ".." not in file.parts and file.suffix != ".pyc" and file.name not in left_out:
                wheel.write(str(file.locate()), file.as_posix())
                csv.writer(text).writerow((file.as_posix(), "", ""))
        wheel.writestr(record, text.getvalue())


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that serves as registry, with what the distributions need."""
    folder = tmp_path_factory.mktemp("wheels")
    for installed in needed(PROJECTS).values():
        repack(installed, folder)
    return folder


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory, dist: Path, wheels: Path) -> dict[str, Path]:
    """An environment for each distribution, with that and what it declares."""
    folder = tmp_path_factory.mktemp("environments")
    for name in PROJECTS:
        run(sys.executable, "-m", "venv", "--without-pip", folder / name)
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--python",
            python(folder / name),
            "--isolated",
            "--disable-pip-version-check",
        )
        run(*pip, "install", "--no-index", "--find-links", wheels, "--find-links", dist, name)
        run(*pip, "check")
    return {name: folder / name for name in PROJECTS}


def python(environment: Path) -> Path:
    return program(environment, "python")


def program(environment: Path, name: str) -> Path:
    scripts = sysconfig.get_path("scripts", "venv", vars={"base": str(environment)})
    return Path(scripts) / (name + (".exe" if sys.platform == "win32" else ""))


def installed_in(environment: Path) -> set[str]:
    library = sysconfig.get_path("purelib", "venv", vars={"base": str(environment)})
    return {canonicalize_name(each.name) for each in distributions(path=[library])}


def test_the_wheel_of_the_client_holds_the_contracts_and_types(dist: Path) -> None:
    (wheel,) = dist.glob("genaid_client-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    contracts = {path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos").rglob("*.proto")}
    assert contracts
    assert contracts <= names
    assert {"genaid/py.typed", "genaid_client/py.typed"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"genaid", "genaid_client"}


def test_the_wheel_of_the_server_holds_nothing_of_the_client(dist: Path) -> None:
    (wheel,) = dist.glob("genaid-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"genaid_server", "genaid"}
    assert not [name for name in names if name.startswith(("genaid/", "genaid_client/"))]


@pytest.mark.parametrize("name", PROJECTS)
def test_a_source_distribution_makes_the_same_wheel(tmp_path: Path, dist: Path, name: str) -> None:
    (source,) = dist.glob(f"{name}-*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    build(unpacked, tmp_path, "--target", "wheel")
    (made,), (given,) = tmp_path.glob("*.whl"), dist.glob(f"{name}-*.whl")
    assert sorted(zipfile.ZipFile(made).namelist()) == sorted(zipfile.ZipFile(given).namelist())


def test_the_client_works_with_its_own_dependencies_alone(tmp_path: Path, environments: dict[str, Path]) -> None:
    """Against the server of the other environment."""
    alone = environments["genaid_client"]
    assert installed_in(alone) <= OF_THE_CLIENT | OF_ITS_DEPENDENCIES
    command = (str(program(environments["genaid"], "genaid")),)
    with running_genaid(tmp_path / "data", command=command, env={"PYTHONPATH": ""}) as running:
        said = run(python(alone), "-I", "-c", CALL, running.ready["resource"])
    assert said.strip() == "MODEL_NOT_FOUND {'modelId': 'nobody'}"


def test_the_command_of_the_server(environments: dict[str, Path]) -> None:
    genaid = program(environments["genaid"], "genaid")
    assert run(genaid, "--version").strip() == f"genaid {distribution('genaid').version}"
    assert "generate" in run(genaid, "--help")
