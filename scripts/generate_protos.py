"""Generate the Python code of the contracts, check that it is up to date, or accept a new baseline.

usage: generate_protos.py [--check | --baseline]

Generated code lies in clients/python/genaid, one package a proto directory, with type stubs. The baseline
(protos/baseline.binpb) is the descriptor set that a change of the contracts must not break.
"""

import argparse
import filecmp
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = ROOT / "clients" / "python" / "genaid"
BASELINE = PROTOS / "baseline.binpb"


def run_protoc(*flags: str) -> None:
    """Run protoc over every contract, or leave with its error."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    common = [f"--proto_path={PROTOS}", f"--proto_path={files('grpc_tools') / '_proto'}"]
    if protoc.main(["protoc", *common, *flags, *sources]) != 0:
        sys.exit("protoc failed")


def generate(into: Path) -> None:
    """Write the whole generated package below `into`/genaid."""
    outputs = ("python", "grpc_python", "mypy", "mypy_grpc")
    plugin = Path(sys.executable).parent
    run_protoc(
        *(f"--{output}_out={'quiet:' if output.startswith('mypy') else ''}{into}" for output in outputs),
        *(f"--plugin=protoc-gen-{name}={shutil.which(f'protoc-gen-{name}', path=str(plugin))}" for name in outputs[2:]),
    )
    package = into / "genaid"
    (package / "py.typed").touch()
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text('"""Generated from protos/; never edited."""\n')


def differences(left: Path, right: Path) -> list[str]:
    """Names of the files below the two folders that are not the same in both."""
    names = {
        path.relative_to(folder)
        for folder in (left, right)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(
        str(name)
        for name in names
        if not ((left / name).is_file() and (right / name).is_file() and filecmp.cmp(left / name, right / name, False))
    )


def main() -> None:
    """Do what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="fail where the committed code is not what protoc gives")
    mode.add_argument("--baseline", action="store_true", help="accept the present contracts as the baseline")
    args = parser.parse_args()
    if args.baseline:
        run_protoc(f"--descriptor_set_out={BASELINE}", "--include_imports")
        return
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        generate(fresh)
        if args.check:
            if stale := differences(fresh / "genaid", GENERATED):
                sys.exit("generated code is not up to date, run `make protos`:\n  " + "\n  ".join(stale))
            print("generated code is up to date")
            return
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh / "genaid", GENERATED)


if __name__ == "__main__":
    main()
