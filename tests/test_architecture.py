"""The layers keep their order: who may import whom, how long a file is, which names are taken, and what every package
says of itself."""

import ast
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICES, CLIENTS = ROOT / "services", ROOT / "clients" / "python"
GENERATED = CLIENTS / "genaid"
MAX_LINES, MAX_TEST_LINES = 400, 800
GRPC = ("grpc", "grpc_health", "grpc_reflection", "grpc_status", "google")
WIRE = (*GRPC, "aiohttp", "genaid", "genaid_client")
COMMON = "genaid_server.common"
KIT, RPC, SUPERVISION = "genaid_server.kit", "genaid_server.kit.rpc", "genaid_server.supervision"
HOSTS = ("genaid_server.cli.commands.up",)
"""The modules of the command line that start services."""


@dataclass(frozen=True)
class Rule:
    """`where` (a pattern of modules) imports nothing of `never`, apart from what is in `but`.

    `{package}` in `never` and `but` is the module's own package, such as genaid_server.image.
    """

    why: str
    where: str
    never: tuple[str, ...]
    but: tuple[str, ...] = ()

    def refuses(self, module: str, imported: str) -> bool:
        if not re.fullmatch(self.where, module):
            return False
        own = ".".join(module.split(".")[:2])
        never, but = (tuple(name.format(package=own) for name in names) for names in (self.never, self.but))
        return _within(imported, never) and not _within(imported, but)


RULES = [
    Rule("a client knows nothing of the server", r"genaid_client(\..*)?", ("genaid_server", "aiohttp")),
    Rule("generated code knows nothing of ours", r"genaid(\..*)?", ("genaid_server", "genaid_client")),
    Rule(
        "the kit knows no service; of the client only what a request is called, which both have to agree on",
        r"genaid_server\.kit(\..*)?",
        ("genaid_server", "genaid", "genaid_client"),
        (KIT, "genaid_client.tracing"),
    ),
    Rule("in the kit, only rpc knows gRPC", r"genaid_server\.kit(?!\.rpc$)(\..*)?", (*GRPC, "aiohttp", RPC)),
    Rule("supervision knows no wire", r"genaid_server\.supervision(\..*)?", (*WIRE, RPC)),
    Rule("supervision rests on the kit", r"genaid_server\.supervision(\..*)?", ("genaid_server",), (KIT, SUPERVISION)),
    Rule(
        "what servicers have in common serves all of them, and knows none",
        r"genaid_server\.common(\..*)?",
        ("genaid_server", "genaid.image", "genaid.resource", "genaid_client", "aiohttp"),
        (KIT, SUPERVISION, COMMON),
    ),
    Rule("convert is below servicers", r"genaid_server\.common\.(convert|times)", (f"{COMMON}.logs",)),
    Rule("only main wires", r"genaid_server\.common(\..*)?", (RPC,)),
    Rule("a core knows no wire", r"genaid_server\.\w+\.core(\..*)?", (*WIRE, RPC)),
    Rule(
        "a core rests on the kit",
        r"genaid_server\.\w+\.core(\..*)?",
        ("genaid_server",),
        (KIT, SUPERVISION, "{package}.core"),
    ),
    Rule(
        "convert, servicers and main alone know both worlds",
        r"genaid_server\.(resource|image)(?!\.((convert|servicers)(\..*)?|main|manager|llm_http|remote(\..*)?)$)(\..*)?",
        WIRE,
    ),
    Rule(
        "services meet over the wire",
        r"genaid_server\.(resource|image)(\..*)?",
        ("genaid_server",),
        (KIT, SUPERVISION, COMMON, "{package}"),
    ),
    Rule(
        "convert is below servicers", r"genaid_server\.\w+\.convert(\..*)?", ("{package}.servicers", "{package}.main")
    ),
    Rule("only main wires", r"genaid_server\.\w+\.servicers(\..*)?", ("{package}.main", RPC)),
    Rule("a child is a program of its own", r"genaid_server\.(engines|probes)(\..*)?", (*WIRE, RPC)),
    Rule(
        "a child is a program of its own",
        r"genaid_server\.(engines|probes)(\..*)?",
        ("genaid_server",),
        (KIT, SUPERVISION, "{package}"),
    ),
    Rule(
        "the gateway is a client like any other",
        r"genaid_server\.gateway(\..*)?",
        (*GRPC, "genaid", "genaid_server"),
        (KIT, "genaid_server.gateway"),
    ),
    Rule(
        "the command line is a client like any other; only completions speaks to an engine, which has HTTP alone",
        r"genaid_server\.(?!cli\.(commands\.up|completions)$)(cli|demo)(\..*)?",
        (*GRPC, "aiohttp", "genaid", "genaid_server"),
        (KIT, "genaid_server.cli", "genaid_server.demo", "genaid_server.settings"),
    ),
    Rule(
        "completions knows the engine's HTTP and no service",
        r"genaid_server\.cli\.completions",
        (*GRPC, "genaid", "genaid_server"),
        (KIT, "genaid_server.cli"),
    ),
    Rule(
        "a host starts services by their main",
        "|".join(re.escape(host) for host in HOSTS),
        (*WIRE, "genaid_server"),
        (
            KIT,
            "genaid_server.cli",
            "genaid_server.gateway.main",
            "genaid_server.image.main",
            "genaid_server.resource.main",
            "genaid_server.resource.config",
            "genaid_server.settings",
        ),
    ),
    Rule(
        "settings puts sections together, and knows nothing else of the services",
        r"genaid_server\.settings",
        (*WIRE, "genaid_server"),
        (KIT, *(f"genaid_server.{service}.config" for service in ("gateway", "image", "resource"))),
    ),
    Rule(
        "a section knows the kit alone",
        r"genaid_server\.\w+\.config",
        (*WIRE, "genaid_server"),
        (KIT,),
    ),
]


RESOURCE_PACKAGES = {
    "formats": (),
    "system": (),
    "store": ("formats",),
    "downloads": ("formats", "store"),
    "fitting": ("formats", "store", "system"),
    "leases": ("formats", "store", "system", "fitting"),
    "llm": ("formats", "store", "system", "fitting", "leases"),
}
"""The packages of the resource manager's core, each with those below it that it may know."""
CORE = "genaid_server.resource.core"
RULES += [
    Rule(
        f"{package} knows only what stands below it",
        rf"genaid_server\.resource\.core\.{package}(\..*)?",
        (CORE,),
        tuple(f"{CORE}.{known}" for known in (package, *below)),
    )
    for package, below in RESOURCE_PACKAGES.items()
]


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports(module: str, source: str, *, package: bool = False) -> set[str]:
    """The full names of all that a module imports, at the top, in functions and for types alike."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + package] if node.level else []
            found |= {".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names}
    return found


def problems(module: str, source: str, *, package: bool = False) -> list[str]:
    """What is wrong with the imports of a module."""
    return [
        f"{module} imports {imported}: {rule.why}"
        for imported in sorted(imports(module, source, package=package))
        for rule in RULES
        if rule.refuses(module, imported)
    ]


def leftovers(source: str) -> list[str]:
    """The comments that promise what isn't there."""
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    comments = (token.string for token in tokens if token.type == tokenize.COMMENT)
    return [comment for comment in comments if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", comment)]


def files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(folder.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def longest(path: Path) -> int:
    """How many lines a file may have."""
    ours = SERVICES in path.parents or CLIENTS in path.parents
    return MAX_LINES if ours else MAX_TEST_LINES


SAME_NAME = {
    "Lease": "the contract's lease: as the resource manager grants it, and as the image worker holds it",
    "LeaseState": "the state of that lease, on both sides",
    "ImagePlacement": "the contract's ImagePlacement: the manager decides it, the worker follows it",
    "Generation": "a generation: of the image worker, and as the REST API shows it",
    "Progress": "the progress of a generation: of the image worker, and as the REST API shows it",
    "Failure": "why a generation failed: of the image worker, and as the REST API shows it",
}
"""Names of classes that stand twice in the services: each is one thing of a contract on two sides of a wire."""


def classes(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Where the classes of modules are defined, by their names."""
    found: dict[str, list[str]] = {}
    for where, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(where)
    return found


OURS = [path for path in files(SERVICES, CLIENTS) if GENERATED not in path.parents]
EVERYTHING = [*OURS, *files(ROOT / "tests", ROOT / "scripts", ROOT / "bench")]
PACKAGES = sorted({path.parent for path in OURS} - {CLIENTS})


@pytest.mark.parametrize("path", list(files(SERVICES, CLIENTS)), ids=name)
def test_imports_go_one_way(path: Path) -> None:
    base = SERVICES if SERVICES in path.parents else CLIENTS
    parts = path.relative_to(base).with_suffix("").parts
    package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if package else parts)
    assert problems(module, path.read_text("utf-8"), package=package) == []


@pytest.mark.parametrize("path", EVERYTHING, ids=name)
def test_a_file_can_be_read_at_a_sitting_and_promises_nothing(path: Path) -> None:
    source = path.read_text("utf-8")
    assert len(source.splitlines()) <= longest(path)
    assert leftovers(source) == []


@pytest.mark.parametrize("folder", PACKAGES, ids=name)
def test_every_package_says_what_it_is(folder: Path) -> None:
    marker = folder / "__init__.py"
    assert marker.exists()
    assert ast.get_docstring(ast.parse(marker.read_text("utf-8")))


def test_every_package_of_the_resource_manager_has_its_place() -> None:
    folder = SERVICES / "genaid_server" / "resource" / "core"
    assert {path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        *RESOURCE_PACKAGES
    }
    assert {path.name for path in folder.glob("*.py")} == {"__init__.py"}


def test_no_two_classes_share_a_name() -> None:
    places = classes({name(path): path.read_text("utf-8") for path in files(SERVICES)})
    twice = {taken: where for taken, where in places.items() if len(where) > 1}
    assert {taken: where for taken, where in twice.items() if taken not in SAME_NAME} == {}
    assert {*SAME_NAME} == {*twice}  # a reason without two classes is out of date
    for where in twice.values():
        services = [Path(path).parts[2] for path in where]
        assert len({*services}) == len(services), where  # two sides of a wire are in two services


def test_a_class_that_stands_twice_is_found() -> None:
    sources = {"a.py": "class Lease: ...", "b.py": "def f():\n    class Lease: ...", "c.py": "class Lessor: ..."}
    assert classes(sources) == {"Lease": ["a.py", "b.py"], "Lessor": ["c.py"]}


def test_there_is_something_to_check() -> None:
    modules = {name(path) for path in OURS}
    assert {
        "services/genaid_server/kit/rpc.py",
        "services/genaid_server/image/core/engine.py",
        "services/genaid_server/cli/commands/up.py",
        "clients/python/genaid_client/__init__.py",
    } <= modules
    assert {host.replace(".", "/") for host in HOSTS} <= {module[9:-3] for module in modules}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("genaid_server.image.core.engine", "import grpc"),
        ("genaid_server.image.core.engine", "import grpc.aio as aio"),
        ("genaid_server.image.core.engine", "from aiohttp import web"),
        ("genaid_server.image.core.engine", "from google.protobuf import any_pb2"),
        ("genaid_server.image.core.engine", "from genaid.image.v1 import engine_pb2"),
        ("genaid_server.image.core.engine", "from genaid_client import Model"),
        ("genaid_server.image.core.engine", "from genaid_server.kit import rpc"),
        ("genaid_server.image.core.engine", "from genaid_server.image import convert"),
        ("genaid_server.image.core.engine", "from genaid_server.image.servicers import EngineServicer"),
        ("genaid_server.image.core.engine", "from genaid_server.resource.core import models"),
        ("genaid_server.image.core.engine", "from .. import convert"),
        ("genaid_server.image.core.engine", "from genaid_server.common.times import time_to_pb"),
        ("genaid_server.common.logs", "from genaid_server.image.core.engine import Engine"),
        ("genaid_server.common.logs", "from genaid.resource.v1 import llm_pb2"),
        ("genaid_server.common.logs", "from genaid_server.kit.rpc import serve"),
        ("genaid_server.common.convert", "from genaid_server.common.logs import LogServicer"),
        ("genaid_server.supervision.child", "from genaid_server.common import convert"),
        ("genaid_server.image.core.engine", "def late():\n    import grpc"),
        ("genaid_server.image.core.engine", "if TYPE_CHECKING:\n    import grpc"),
        ("genaid_server.resource.core.formats.headers", "from genaid_server.resource.core.store.model import Model"),
        ("genaid_server.resource.core.store.store", "from genaid_server.resource.core.downloads import journal"),
        ("genaid_server.resource.core.fitting.check", "from genaid_server.resource.core.leases.plan import plan"),
        ("genaid_server.resource.core.leases.plan", "from genaid_server.resource.core.llm import slots"),
        ("genaid_server.resource.core.system.cpu", "from genaid_server.resource.core.formats import gguf"),
        ("genaid_server.resource.core.system.cpu", "from genaid_server.resource import core"),
        ("genaid_server.image.helpers", "import grpc"),
        ("genaid_server.image.convert", "from genaid_server.image.servicers import EngineServicer"),
        ("genaid_server.resource.convert.system", "from genaid_server.resource.servicers.system import SystemServicer"),
        ("genaid_server.resource.servicers.system", "from genaid_server.resource.main import serve"),
        ("genaid_server.resource.convertible", "import grpc"),
        ("genaid_server.probes.nvidia", "from genaid_server.engines.image import Engine"),
        ("genaid_server.probes.nvidia", "import grpc"),
        ("genaid_server.image.servicers", "from genaid_server.image.main import serve"),
        ("genaid_server.image.main", "from genaid_server.resource.main import serve"),
        ("genaid_server.image.main", "from genaid_server.resource.core.store.store import ModelStore"),
        ("genaid_server.supervision.child", "import grpc"),
        ("genaid_server.supervision.child", "from genaid_server.kit.rpc import serve"),
        ("genaid_server.supervision.child", "from genaid_server.image.core import engine"),
        ("genaid_server.kit.rpc", "from genaid.image.v1 import engine_pb2"),
        ("genaid_server.kit.rpc", "import genaid_server"),
        ("genaid_server.kit", "from genaid_client import Model"),
        ("genaid_client.aio", "from genaid_server.kit.errors import DomainError"),
        ("genaid_client.aio", "import aiohttp"),
        ("genaid_server.gateway.http.app", "import grpc"),
        ("genaid_server.gateway.http.app", "from genaid.image.v1 import engine_pb2"),
        ("genaid_server.gateway.http.app", "from genaid_server.image.core.spec import GenerationSpec"),
        ("genaid_server.gateway.main", "from genaid_server.image import main"),
        ("genaid_server.cli.commands.generate", "from genaid_server.image.core.spec import GenerationSpec"),
        ("genaid_server.cli.commands.generate", "from genaid_server.image import main"),
        ("genaid_server.cli.commands.generate", "import grpc"),
        ("genaid_server.cli.commands.chat", "import aiohttp"),
        ("genaid_server.settings", "from genaid_server.gateway.main import serve"),
        ("genaid_server.settings", "from genaid_server.resource import core"),
        ("genaid_server.image.main", "from genaid_server.settings import load"),
        ("genaid_server.gateway.http.app", "from genaid_server import settings"),
        ("genaid_server.kit.config", "from genaid_server.image.config import ImageConfig"),
        ("genaid_server.resource.config", "from genaid_server.resource.core.store.model import Model"),
        ("genaid_server.cli.completions", "import grpc"),
        ("genaid_server.cli.completions", "from genaid_server.resource import llm_http"),
        ("genaid_server.cli.commands.up", "from genaid_server.image.core.engine import Engine"),
        ("genaid_server.cli.commands.up", "import grpc"),
        ("genaid_server.engines.image", "from genaid_server.image.core.spec import Sampler"),
        ("genaid_server.engines.image", "import genaid_client"),
    ],
)
def test_the_checker_finds_what_is_wrong(module: str, source: str) -> None:
    assert len(problems(module, source)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("genaid_server.image.core.engine", "import asyncio, psutil\nfrom genaid_server.kit.errors import ServerError"),
        ("genaid_server.image.core.engine", "from genaid_server.image.core.spec import Sampler"),
        ("genaid_server.image.core.engine", "from . import spec"),
        ("genaid_server.image.core.engine", "import grpcio_like, genaid_other"),
        ("genaid_server.image.servicers", "import grpc.aio\nfrom genaid_server.image import convert"),
        (
            "genaid_server.image.main",
            "from genaid_client import AsyncClient\nfrom genaid_server.kit import rpc",
        ),
        ("genaid_server.image.servicers", "from genaid_server.common.logs import LogServicer"),
        ("genaid_server.common.convert", "from genaid.common.v1 import logs_pb2\nfrom . import times"),
        ("genaid_server.kit.rpc", "import grpc\nfrom google.rpc import status_pb2\nfrom .errors import DomainError"),
        ("genaid_client.aio", "import grpc.aio\nfrom genaid.image.v1 import engine_pb2"),
        ("genaid_server.gateway.http.app", "from aiohttp import web\nfrom genaid_client import AsyncClient"),
        (
            "genaid_server.cli.commands.up",
            "from genaid_server.image import main as image\nfrom genaid_server.cli import host",
        ),
        ("genaid_server.cli.completions", "import aiohttp\nfrom genaid_client import GenaidError"),
        ("genaid_server.settings", "from genaid_server.image.config import ImageConfig"),
        ("genaid_server.cli.connect", "from genaid_server.settings import load"),
        ("genaid_server.engines.image", "from genaid_server.kit import frames"),
        ("genaid_server.probes.nvidia", "from genaid_server.supervision.lifeline import take_pipes"),
        (
            "genaid_server.resource.servicers.models",
            "import grpc.aio\nfrom genaid_server.resource.convert import models",
        ),
    ],
)
def test_the_checker_allows_what_is_right(module: str, source: str) -> None:
    assert problems(module, source) == []


def test_relative_imports_are_followed_from_modules_and_packages() -> None:
    assert imports("a.b.c", "from . import d\nfrom .e import f\nfrom .. import g") == {"a.b.d", "a.b.e.f", "a.g"}
    assert imports("a.b", "from . import c\nfrom ..d import e", package=True) == {"a.b.c", "a.d.e"}


def test_the_checker_finds_promises_in_comments_only() -> None:
    promise = "# TO" + "DO: later"
    assert leftovers(f"x = 1  {promise}\n") == [promise]
    assert leftovers(f"x = {promise!r}  # a mastodon\n") == []
