"""What the processes of all engines have in common."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from genaid_server.supervision.process import MAX_REASON, SPINS, engine_environment, with_last_lines


def test_threads_that_wait_soon_sleep() -> None:
    assert engine_environment({"PATH": "/bin"}) == {
        "PATH": "/bin",
        "GOMP_SPINCOUNT": SPINS,
        "GGML_NO_BACKTRACE": "1",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.mark.parametrize(
    ("name", "value"), [("GOMP_SPINCOUNT", "77"), ("GGML_NO_BACKTRACE", "0"), ("PYTHONUNBUFFERED", "")]
)
def test_what_the_user_has_set_stays(name: str, value: str) -> None:
    assert engine_environment({name: value})[name] == value


@pytest.mark.parametrize("policy", ["active", "passive"])
def test_how_threads_wait_is_the_users_choice(policy: str) -> None:
    environment = engine_environment({"OMP_WAIT_POLICY": policy})
    assert "GOMP_SPINCOUNT" not in environment  # it would go before the policy
    assert environment["OMP_WAIT_POLICY"] == policy


@pytest.mark.skipif(sys.platform != "linux", reason="the wheels for other systems have other threads")
@pytest.mark.parametrize("library", ["cyllama.sd", "xllamacpp"])
def test_the_wheels_load_the_openmp_whose_setting_this_is(library: str) -> None:
    program = f"import {library}; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    runtimes = {Path(path).name for path in re.findall(r"/\S*(?:libgomp|libomp|libiomp)\S*", maps)}
    assert runtimes
    assert all(name.startswith("libgomp") for name in runtimes)


def test_why_a_process_ended_goes_with_the_last_lines_of_its_log() -> None:
    assert with_last_lines("It crashed", []) == "It crashed"
    assert with_last_lines("It crashed", ["a", "b"]) == "It crashed. Last lines of its log:\na\nb"
    assert len(with_last_lines("It crashed", ["x" * MAX_REASON])) == MAX_REASON
