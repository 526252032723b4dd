"""Which Python `make setup` takes, and what it says where there is none: with stand-ins on a PATH of their own."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are shell scripts")

ROOT: Final = Path(__file__).parents[3]
TOOLS: Final = ("awk", "cat", "chmod", "cp", "dirname", "mkdir", "mktemp", "rm", "sh")
# A Python of some version, as far as the script asks: is it good, is it at least 3.8, has it pip, and install.
PYTHON: Final = """#!/bin/sh
case "$*" in
  *"(3, 12)"*) exit {too_old} ;;
  *"(3, 8)"*) exit 0 ;;
  "-m pip --version") exit {no_pip} ;;
  "-m venv "*) exit 1 ;;
  "-m pip install "*)
    while [ "$1" != --target ]; do shift; done
    cat "$4" >"$LOG"
    [ -n "$UV" ] || exit 1
    mkdir -p "$2/bin" && cp "$UV" "$2/bin/uv" ;;
esac
"""
UV: Final = """#!/bin/sh
case "$*" in
  --version) exit 0 ;;
  "python find "*) exit 2 ;;
  "python install "*)
    echo "$*" >>"$LOG"
    [ -n "$PYTHON_TO_FETCH" ] || { echo "error: the network is unreachable" >&2; exit 1; }
    mkdir -p "$UV_PYTHON_INSTALL_DIR/cpython-3.13-here/bin"
    cp "$PYTHON_TO_FETCH" "$UV_PYTHON_INSTALL_DIR/cpython-3.13-here/bin/python3" ;;
esac
"""


@dataclass
class Machine:
    """A machine with a PATH, a home and a checkout of its own."""

    folder: Path
    system: tuple[str, str] = ("debian", "12")

    def __post_init__(self) -> None:
        for name in ("bin", "home", "tmp", "checkout/scripts", "elsewhere"):
            (self.folder / name).mkdir(parents=True)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.folder / "bin" / tool).symlink_to(found)
        self.write("bin/uname", "#!/bin/sh\necho Linux\n")
        shutil.copy(ROOT / "scripts" / "find_python.sh", self.folder / "checkout" / "scripts")
        self.write(
            "checkout/requirements.txt", "# pins\nurllib3==1 \\\n    --hash=a\nuv==2 \\\n    --hash=b\nyarl==3\n"
        )

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        path.chmod(0o755)
        return path

    def python(self, name: str, *, good: bool, pip: bool = True) -> Path:
        return self.write(name, PYTHON.format(too_old=int(not good), no_pip=int(not pip)))

    def find(self, *named: str, **env: str) -> "subprocess.CompletedProcess[str]":
        self.write("os-release", 'ID={}\nVERSION_ID="{}"\n'.format(*self.system))
        environment = {
            "PATH": str(self.folder / "bin"),
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "OS_RELEASE": str(self.folder / "os-release"),
            "LOG": str(self.folder / "log"),
            "UV": "",
            "PYTHON_TO_FETCH": "",
        }
        script = str(self.folder / "checkout" / "scripts" / "find_python.sh")
        sh = shutil.which("dash") or "/bin/sh"
        return subprocess.run(
            [sh, script, *named],
            env=environment | env,
            cwd=os.sep,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    @property
    def log(self) -> str:
        """What the stand-ins were told."""
        return (self.folder / "log").read_text("utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "a machine")


def test_the_first_good_one_on_the_path(machine: Machine) -> None:
    machine.python("bin/python3.13", good=False)
    expected = machine.python("bin/python3.12", good=True)
    machine.python("bin/python3", good=True)
    found = machine.find()
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{expected}\n", "")


@pytest.mark.parametrize("version", ["3.12.7", "3.14.0", "3.15.2"])
def test_one_of_pyenv(machine: Machine, version: str) -> None:
    machine.python("bin/python3", good=False)
    machine.python("home/.pyenv/versions/3.11.9/bin/python", good=False)
    expected = machine.python(f"home/.pyenv/versions/{version}/bin/python", good=True)
    assert machine.find().stdout == f"{expected}\n"


def test_a_pyenv_elsewhere(machine: Machine) -> None:
    expected = machine.python("elsewhere/versions/3.12.1/bin/python", good=True)
    assert machine.find(PYENV_ROOT=str(machine.folder / "elsewhere")).stdout == f"{expected}\n"


def test_the_one_that_is_named(machine: Machine) -> None:
    machine.python("bin/python3.13", good=True)
    expected = machine.python("elsewhere/python", good=True)
    assert machine.find(str(expected)).stdout == f"{expected}\n"
    assert machine.find("").stdout == f"{machine.folder / 'bin' / 'python3.13'}\n"


@pytest.mark.parametrize("named", ["python3.11", "nothing-of-this-name"])
def test_one_that_is_named_and_will_not_do(machine: Machine, named: str) -> None:
    machine.python("bin/python3.13", good=True)
    machine.python("bin/python3.11", good=False)
    found = machine.find(named)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == f"setup: {named} is not a CPython >= 3.12 with venv that runs here\n"


def test_the_uv_of_the_path_fetches_one_and_says_so(machine: Machine) -> None:
    machine.write("bin/uv", UV)
    found = machine.find(PYTHON_TO_FETCH=str(machine.python("elsewhere/fetched", good=True)))
    expected = machine.folder / "checkout/.tools/python/cpython-3.13-here/bin/python3"
    assert (found.returncode, found.stdout) == (0, f"{expected}\n")
    assert "uv fetches Python 3.13" in found.stderr
    assert machine.log == "python install 3.13\n"
    again = machine.find()
    assert (again.stdout, again.stderr) == (found.stdout, "")


def test_an_old_python_installs_a_uv_of_the_pinned_version_that_fetches_one(machine: Machine) -> None:
    machine.python("bin/python3", good=False)
    uv = machine.write("elsewhere/uv", UV)
    fetched = machine.python("elsewhere/fetched", good=True)
    found = machine.find(UV=str(uv), PYTHON_TO_FETCH=str(fetched))
    assert found.stdout.endswith("/.tools/python/cpython-3.13-here/bin/python3\n")
    assert "installs uv for this once" in found.stderr
    assert machine.log == "uv==2 \\\n    --hash=b\npython install 3.13\n"
    assert list((machine.folder / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("uv", "python", "cause"),
    [
        (True, True, "the network is unreachable"),
        (False, True, "uv could not be installed"),
        (False, None, "has neither pip nor venv"),
        (False, False, "neither is a Python that could install it"),
    ],
)
def test_where_none_can_be_fetched_it_says_why_and_what_to_type(
    machine: Machine, uv: bool, python: bool | None, cause: str
) -> None:
    if uv:
        machine.write("bin/uv", UV)
    if python is not False:
        machine.python("bin/python3", good=False, pip=python is True)
    found = machine.find()
    assert (found.returncode, found.stdout) == (1, "")
    assert cause in found.stderr
    assert "Debian 12 has no package of it" in found.stderr
    assert list((machine.folder / "tmp").iterdir()) == []


def test_what_uv_fetched_and_does_not_run_is_not_believed(machine: Machine) -> None:
    machine.write("bin/uv", UV)
    found = machine.find(PYTHON_TO_FETCH=str(machine.python("elsewhere/fetched", good=False)))
    assert (found.returncode, found.stdout) == (1, "")
    assert "does not run here" in found.stderr


@pytest.mark.parametrize(
    ("system", "version", "said", "unsaid"),
    [
        ("debian", "12", ("pipx install uv", "pyenv install"), ("python3-venv", "deadsnakes")),
        ("debian", "13", ("apt install python3 python3-venv",), ("python3.12", "pipx")),
        ("debian", "", ("apt install python3 python3-venv",), ("pipx",)),
        ("ubuntu", "22.04", ("deadsnakes", "python3.12-venv", "pipx install uv"), ()),
        ("ubuntu", "20.04", ("pipx install uv", "pyenv"), ("deadsnakes", "python3.12")),
        ("ubuntu", "24.04", ("apt install python3 python3-venv",), ("deadsnakes", "pipx")),
        ("fedora", "42", ("dnf install python3.12",), ("apt",)),
        ("arch", "", ("pacman -S python",), ("apt", "dnf")),
        ("another", "1", ("uv python install", "pyenv install"), ("apt", "dnf")),
    ],
)
def test_the_advice_is_true_of_the_system(
    machine: Machine, system: str, version: str, said: tuple[str, ...], unsaid: tuple[str, ...]
) -> None:
    machine.system = (system, version)
    advice = machine.find().stderr.rpartition("run make again:\n")[2]
    assert [each for each in said if each not in advice] == []
    assert [each for each in unsaid if each in advice] == []


@pytest.mark.parametrize(("kernel", "said"), [("Darwin", "brew install"), ("MINGW64_NT-10.0", "winget install")])
def test_the_advice_of_other_kernels(machine: Machine, kernel: str, said: str) -> None:
    machine.write("bin/uname", f"#!/bin/sh\necho {kernel}\n")
    advice = machine.find().stderr.rpartition("run make again:\n")[2]
    assert said in advice
    assert "apt" not in advice


def test_a_real_one_is_believed(machine: Machine) -> None:
    expected = machine.write("bin/python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    assert machine.find().stdout == f"{expected}\n"
