"""The verbs of make, and continuous integration, which runs the same ones everywhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[3]
WORKFLOWS: Final = sorted((ROOT / ".github" / "workflows").iterdir())
VERBS: Final = {"check", "test", "test-long"}


def load(path: Path) -> dict[Any, Any]:
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(workflow, dict)
    return workflow


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def verbs(text: str) -> list[str]:
    return re.findall(r"^make ([a-z-]+)$", text, re.MULTILINE)


def test_the_script_runs_each_verb_once() -> None:
    assert verbs((ROOT / ".ci" / "run").read_text("utf-8")) == ["check", "test", "test-long"]


def test_the_workflow_runs_the_same_verbs_on_each_system() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "check.yml")
    (job,) = workflow["jobs"].values()
    matrix = job["strategy"]["matrix"]
    assert matrix["system"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["python"] == ["3.12", "3.13"]
    assert job["runs-on"] == "${{ matrix.system }}"
    run = [verb for step in job["steps"] for verb in verbs(step.get("run", ""))]
    assert run == ["setup", "check", "test", "test-long"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_well_formed(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["defaults"]["run"]["shell"] == "bash"  # on Windows, too
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML 1.1 takes `on` for a truth
    assert steps(workflow)
    for step in steps(workflow):
        assert ("run" in step) is not ("uses" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_verb_says_what_it_does(verb: str) -> None:
    assert re.search(rf"^{verb}:.*## \w", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_daily_and_long_tests_are_all_tests() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    assert re.findall(r"pytest .*-m (.+)$", text, re.MULTILINE) == ['"not long"', "long"]


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("make"), reason="it needs make, and links to programs")
def test_without_npm_the_check_fails_and_says_what_to_install(tmp_path: Path) -> None:
    make, sh = shutil.which("make"), shutil.which("sh")
    assert make is not None
    assert sh is not None
    (tmp_path / "sh").symlink_to(sh)
    checked = subprocess.run(
        [make, "--assume-old", ".venv/.ready", "check-protos", "BUF=.tools/none"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert checked.returncode == 2
    assert "npm is not on the PATH. Install Node.js" in checked.stderr
    assert checked.stdout == ""
