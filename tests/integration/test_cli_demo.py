"""`make demo`, and what it leaves behind: one picture."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support import ONE_THREAD, clean_environment, kill_tree

DEMO = (sys.executable, "-m", "genaid_server.demo")


def _environment(temporary: Path) -> dict[str, str]:
    temporary.mkdir()
    places = {name: str(temporary) for name in ("TMPDIR", "TEMP", "TMP")}
    return clean_environment({**ONE_THREAD, **places, "PYTHONUNBUFFERED": "1"})


def test_the_demo_leaves_a_picture_and_nothing_else(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    environment = _environment(tmp_path / "tmp")
    done = subprocess.run(DEMO, cwd=here, env=environment, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in here.iterdir()] == ["demo.png"]
    assert (here / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert b"random" in done.stdout
    assert b"genaid models import" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, name: str, status: int) -> None:
    here = tmp_path / "here"
    here.mkdir()
    environment = _environment(tmp_path / "tmp")
    with subprocess.Popen(DEMO, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith(b"POST ") for line in process.stdout)
            family = psutil.Process(process.pid).children(recursive=True)
            assert family
            process.send_signal(getattr(signal, name))
            _, complaint = process.communicate(timeout=30)
        finally:
            kill_tree(process)
    assert process.returncode == status
    assert b"Traceback" not in complaint
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    assert list(here.iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []
