"""Generate the blocking face of the client from the asyncio one, or check that it is up to date.

usage: generate_sync.py [--check]

Each module of clients/python/genaid_client/aio has its counterpart of the same name in genaid_client/sync. The two
`connection.py` are written by hand: they hold all that differs beyond words, such as channels and cancellation.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "clients" / "python" / "genaid_client"
ASYNCIO, BLOCKING = CLIENT / "aio", CLIENT / "sync"
BY_HAND = {"connection.py"}

NOTICE = "# Generated from ../aio/{name} by scripts/generate_sync.py; edit that file, then run `make sync`.\n"
PHRASES = {
    "The asyncio face": "The blocking face",
    "genaid from asyncio. Make it while the event loop runs; ": "genaid. Threads may share it; ",
    "in an `async with`": "in a `with`",
}
"""What docstrings say of asyncio, and what they say instead."""

FIRST_PARTY = (
    "--config=lint.isort.known-first-party = ['genaid', 'genaid_client']"  # also modules that aren't there yet
)


def ruff(command: str, *options: str, text: str, path: Path) -> str:
    """The text of a file after a ruff command that mends it."""
    line = [sys.executable, "-m", "ruff", command, "--quiet", *options, "--stdin-filename", str(path), "-"]
    return subprocess.run(line, input=text, capture_output=True, encoding="utf-8", check=True, cwd=ROOT).stdout


def blocking(name: str, source: str, folder: Path) -> str:
    """The blocking counterpart of the module of this name. `folder` is for scratch files."""
    for asyncio_phrase, phrase in PHRASES.items():
        source = source.replace(asyncio_phrase, phrase)
    original = folder / "aio" / name
    original.write_text(source, encoding="utf-8")
    names = {found: found.removeprefix("Async") for found in re.findall(r"\bAsync[A-Z]\w*", source)}
    unasync.unasync_files(
        [str(original)], [unasync.Rule("/aio/", "/sync/", additional_replacements=names | {"aio": "sync"})]
    )
    text = (folder / "sync" / name).read_text(encoding="utf-8")
    text = re.sub(r"\bGenerator\[(.+), None\]", r"Generator[\1, None, None]", text)
    path = BLOCKING / name
    text = ruff("check", "--fix", "--select=I,RUF022", FIRST_PARTY, text=NOTICE.format(name=name) + text, path=path)
    return ruff("format", text=text, path=path)


def generate() -> dict[str, str]:
    """The text of each generated module, by its name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "aio").mkdir()
        sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(ASYNCIO.glob("*.py"))}
        return {name: blocking(name, source, folder) for name, source in sources.items() if name not in BY_HAND}


def main() -> None:
    """Do what the flag says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where the committed code is not what is generated")
    check = parser.parse_args().check
    fresh = generate()
    committed = {
        path.name: path.read_text(encoding="utf-8") for path in BLOCKING.glob("*.py") if path.name not in BY_HAND
    }
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    if not check:
        for name in stale:
            if name in fresh:
                (BLOCKING / name).write_text(fresh[name], encoding="utf-8")
            else:
                (BLOCKING / name).unlink()
    elif stale:
        sys.exit("the blocking client is not up to date, run `make sync`:\n  " + "\n  ".join(stale))
    else:
        print("the blocking client is up to date")


if __name__ == "__main__":
    main()
