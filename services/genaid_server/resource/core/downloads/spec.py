"""What is asked for, checked, and spelled out file by file."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.core.downloads.download import DownloadSpec
from genaid_server.resource.core.downloads.remote import HubFile, Item
from genaid_server.resource.core.formats.kinds import ModelType
from genaid_server.resource.core.formats.shards import shard_name
from genaid_server.resource.core.store.model import Component
from genaid_server.resource.core.store.names import PICKLED, check_file_name, check_id, check_name, unprintable

MAX_ITEMS: Final = 64
"""Items of one request."""
MAX_FILES: Final = 1000
"""Files of one model, shards included."""
MAX_SOURCE: Final = 2048
"""Characters of a URL, or of a file's path in a repository."""

_CHECKSUM: Final = re.compile(r"sha256:[0-9a-f]{64}")
_REPO: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REVISION: Final = re.compile(r"[\w][\w./+-]{0,254}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file to fetch; `shard` is its number from 1, 0 where the model isn't sharded."""

    item: Item
    shard: int = 0


def checked(spec: DownloadSpec) -> DownloadSpec:
    """The same in one spelling. Raises InvalidRequestError for what can't be right."""
    if not 1 <= len(spec.items) <= MAX_ITEMS:
        raise InvalidRequestError(f"items must be 1 to {MAX_ITEMS} files, not {len(spec.items)}", field="items")
    if spec.model_id:
        check_id(spec.model_id)
    items = tuple(_checked_item(item, f"items[{index}]") for index, item in enumerate(spec.items))
    _check_components(items, spec.model_type)
    return replace(spec, items=items, name=check_name(spec.name))


def plan_files(items: Sequence[Item]) -> tuple[PlannedFile, ...]:
    """The files behind checked items, the primary one first: all shards of a sharded one, and each once.

    Raises InvalidRequestError where they are those of more than one model.
    """
    asked = {(item.source, item.component): item for item in items}
    shards = [_shards(item) for item in items]
    models = {tuple(file.item.source for file in each) for each in shards if each[0].item.component is Component.MODEL}
    if len(models) > 1:
        raise InvalidRequestError(
            "items must be the files of one model: one file, shards of one model, or one file a component. "
            "Start a download for each model.",
            field="items",
        )
    planned = {(file.item.source, file.item.component): file for each in shards for file in each}
    # A checksum is only known for a shard that was asked for by its own name.
    wanted = [replace(file, item=asked.get(key, file.item)) for key, file in planned.items()]
    if len(wanted) > MAX_FILES:
        raise InvalidRequestError(f"items must be at most {MAX_FILES} files", field="items")
    return tuple(sorted(wanted, key=lambda file: (not _is_primary(file.item.component), file.shard)))


def source_name(item: Item) -> str:
    """The name that a file has at its source, without folders; empty where a URL names none."""
    path = item.source.file if isinstance(item.source, HubFile) else unquote(urlsplit(item.source).path)
    return path.rsplit("/", 1)[-1]


def normal_checksum(checksum: str, field: str) -> str:
    """A checksum in lower case; an empty one stays so. Raises InvalidRequestError for another form."""
    normal = checksum.strip().lower()
    if normal and not _CHECKSUM.fullmatch(normal):
        raise InvalidRequestError("checksum must be sha256: and 64 hexadecimal digits", field=field)
    return normal


# --- items


def _checked_item(item: Item, where: str) -> Item:
    if isinstance(item.source, HubFile):
        _check_hub(item.source, f"{where}.source")
    else:
        _check_url(item.source, f"{where}.source")
    name = source_name(item)
    # A URL may leave the name to the server's answer; that is checked when it is there.
    if isinstance(item.source, HubFile) or PurePosixPath(name).suffix.lower() in PICKLED:
        check_file_name(name, f"{where}.source")
    return replace(item, checksum=normal_checksum(item.checksum, f"{where}.checksum"))


def _check_hub(source: HubFile, field: str) -> None:
    if not _REPO.fullmatch(source.repo):
        raise InvalidRequestError("the repository must be OWNER/NAME, as on the hub", field=field)
    if not _REVISION.fullmatch(source.revision) or ".." in source.revision:
        raise InvalidRequestError("the revision must be a branch, a tag or a commit", field=field)
    parts = source.file.split("/")
    if len(source.file) > MAX_SOURCE or unprintable(source.file) or {"", ".", ".."} & set(parts):
        raise InvalidRequestError("the file must be a path inside the repository, such as model.gguf", field=field)


def _check_url(url: str, field: str) -> None:
    parts = _split(url)
    if parts is None or parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise InvalidRequestError("the source must be an http or https URL, or a file of the hub", field=field)
    if parts.username is not None or parts.password is not None:
        raise InvalidRequestError("the URL must not contain a user name or password", field=field)
    if len(url) > MAX_SOURCE:
        raise InvalidRequestError(f"the URL must be at most {MAX_SOURCE} characters", field=field)


def _split(url: str) -> SplitResult | None:
    if unprintable(url) or any(character.isspace() for character in url):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is only looked at, and refused, when it is asked for
    except ValueError:
        return None
    return parts


# --- components


def _is_primary(component: Component) -> bool:
    return component in (Component.MODEL, Component.DIFFUSION_MODEL)


def _check_components(items: Sequence[Item], model_type: ModelType | None) -> None:
    counts = Counter(item.component for item in items)
    parts = set(counts) - {Component.MODEL}
    if not parts:
        return
    if counts[Component.MODEL] or not counts[Component.DIFFUSION_MODEL]:
        raise InvalidRequestError(
            "a model of components has a diffusion_model among them, and no file that is the whole model",
            field="items",
        )
    if twice := [component.value for component, count in counts.items() if count > 1]:
        raise InvalidRequestError(f"items has the component {twice[0]} more than once", field="items")
    if model_type is ModelType.LLM:
        raise InvalidRequestError("only a diffusion model has components", field="type")


# --- shards


def _shards(item: Item) -> list[PlannedFile]:
    """All shards of the model that the item is a shard of; else the item itself."""
    own = shard_name(source_name(item))
    if own is None or own.total == 1:
        return [PlannedFile(item)]
    return [PlannedFile(_renamed(item, str(own), str(each)), each.number) for each in own.siblings()]


def _renamed(item: Item, own: str, other: str) -> Item:
    """The file beside an item's; the item itself where it has that name."""
    if own == other:
        return item
    if isinstance(item.source, HubFile):
        return Item(replace(item.source, file=item.source.file.removesuffix(own) + other), item.component)
    parts = urlsplit(item.source)
    folder, _, _ = parts.path.rpartition("/")
    return Item(parts._replace(path=f"{folder}/{quote(other)}").geturl(), item.component)
