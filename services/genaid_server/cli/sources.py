"""How people name what to download: `hf:OWNER/REPO/FILE[@REVISION]`, links to files on the hub, and addresses."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

import typer

from genaid_client import Component, DownloadItem, HuggingFaceSource

HUB_HOSTS: Final = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
HUB_FILE_PAGES: Final = frozenset({"resolve", "blob", "raw"})
FORM: Final = "hf:OWNER/REPO/FILE or hf:OWNER/REPO/FILE@REVISION"
EXAMPLE: Final = "hf:TheBloke/Llama-2-7B-GGUF/llama-2-7b.Q4_K_M.gguf"

type Source = HuggingFaceSource | str


@dataclass(frozen=True)
class ComponentSource:
    """One file of a model of several, and what it is to the model."""

    component: Component
    source: Source


def parse_source(text: str) -> Source:
    """A file on the hub or an http(s) address; anything else is wrong usage."""
    text = text.strip()
    scheme, colon, rest = text.partition(":")
    if colon and scheme.lower() == "hf":
        return _parse_hub(text, rest)
    if colon and scheme.lower() in {"http", "https"}:
        return _parse_address(text)
    if Path(text).is_file():
        raise typer.BadParameter(f"{text!r} is a file of this machine; install it with: genaid models import FILE")
    raise typer.BadParameter(
        f"{text!r} names nothing to download. Give a file on the Hugging Face hub as {FORM}, such as {EXAMPLE}, "
        "or an http(s) address."
    )


def parse_component(text: str) -> ComponentSource:
    """Read `ROLE=SOURCE`; anything else is wrong usage."""
    role, equals, source = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not ROLE=SOURCE, such as vae=hf:OWNER/REPO/vae.safetensors")
    try:
        component = Component(role.strip().lower().replace("-", "_"))
    except ValueError:
        raise typer.BadParameter(f"{role!r} is not one of {', '.join(Component)}") from None
    return ComponentSource(component, parse_source(source))


def parse_checksum(text: str) -> str:
    """Read `sha256:` and 64 hexadecimal digits, of any letter case; anything else is wrong usage."""
    checksum = text.strip().lower()
    if re.fullmatch(r"sha256:[0-9a-f]{64}", checksum, re.ASCII) is None:
        raise typer.BadParameter(f"{text!r} is not sha256: and 64 hexadecimal digits")
    return checksum


def items(source: Source, components: list[ComponentSource], checksum: str) -> tuple[DownloadItem, ...]:
    """What to fetch. With components, the first source is the diffusion model; the checksum is of the first source.

    Raises BadParameter for a component that is given twice.
    """
    if not components:
        return (DownloadItem(source, checksum=checksum),)
    roles = [Component.DIFFUSION_MODEL, *(part.component for part in components)]
    for role in Component:
        if roles.count(role) > 1:
            known = "SOURCE itself is the diffusion model" if role is Component.DIFFUSION_MODEL else "once is enough"
            raise typer.BadParameter(f"{role} is given twice; {known}", param_hint="--component")
    first = DownloadItem(source, Component.DIFFUSION_MODEL, checksum)
    return (first, *(DownloadItem(part.source, part.component) for part in components))


def describe_source(source: Source | None) -> str:
    """A source as it is written on the command line."""
    match source:
        case HuggingFaceSource():
            return f"hf:{source.repo}/{source.file}" + (f"@{source.revision}" if source.revision else "")
        case None:
            return "a source that this version doesn't know"
        case _:
            return source


def _parse_hub(text: str, rest: str) -> HuggingFaceSource:
    path, at, revision = rest.lstrip("/").rpartition("@") if "@" in rest else (rest.lstrip("/"), "", "")
    if at and not revision:
        _not_a_hub_file(text, "the revision after @ is empty")
    owner, _, below = path.partition("/")
    name, _, file = below.partition("/")
    if not (owner and name):
        _not_a_hub_file(text, "it names no repository")
    if not file or file.endswith("/"):
        _not_a_hub_file(text, "it names no file in the repository")
    if any(part in {"", ".", ".."} for part in file.split("/")):
        _not_a_hub_file(text, "the path of its file has an empty or relative part")
    return HuggingFaceSource(f"{owner}/{name}", file, revision)


def _not_a_hub_file(text: str, why: str) -> NoReturn:
    raise typer.BadParameter(f"{text!r} is not {FORM}: {why}. For example: {EXAMPLE}")


def _parse_address(text: str) -> Source:
    try:
        address = urlsplit(text)
        host = address.hostname
    except ValueError:
        host = None
    if not host or re.search(r"\s", text):
        raise typer.BadParameter(f"{text!r} is no http(s) address")
    return _parse_hub_link(text, address) if host in HUB_HOSTS else text


def _parse_hub_link(text: str, address: SplitResult) -> HuggingFaceSource:
    """The file that a link to the hub leads to: so its checksum, license and commit are known, too."""
    parts = [unquote(part) for part in address.path.strip("/").split("/")]
    match parts:
        case [owner, name, kind, revision, *file] if kind in HUB_FILE_PAGES and all(file) and file:
            return HuggingFaceSource(f"{owner}/{name}", "/".join(file), revision)
    raise typer.BadParameter(
        f"{text!r} is a page of the hub, not a file. Copy the link of a file from its Files tab, or give {FORM}, "
        f"such as {EXAMPLE}."
    )
