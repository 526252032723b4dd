"""Where models come from: the Hugging Face hub, and plain addresses over http and https."""

import re
import unicodedata
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import PurePosixPath
from typing import Final

from yarl import URL

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.config import DownloadsConfig
from genaid_server.resource.core.downloads.remote import HubFile, Item, RangeError, RemoteError, Resolved
from genaid_server.resource.core.formats.kinds import ModelFormat
from genaid_server.resource.core.store.model import ModelSource, SourceType
from genaid_server.resource.core.store.names import MAX_FILE_NAME, check_file_name, file_name_problem
from genaid_server.resource.remote.addresses import check_url, shown
from genaid_server.resource.remote.http import ByteRange, Credentials, HttpAnswer, HttpBody, HttpClient, open_client
from genaid_server.resource.remote.hub import Hub

_HEAD_REFUSED: Final = frozenset({400, 403, 405, 501})
"""Statuses of origins that answer GET only, those with signed addresses among them."""
_SUFFIXES: Final = tuple(f".{each.value}" for each in ModelFormat)


@dataclass(frozen=True, slots=True)
class _Found:
    """What an origin says about a file; `names` are what it could be called, the best first."""

    size: int | None
    etag: str
    names: Sequence[str]


class HttpRemote:
    """Implements `Remote`; made by `open_remote`."""

    def __init__(self, hub: Hub, client: HttpClient) -> None:
        self._hub, self._client = hub, client
        self._logins: dict[str, Credentials] = {}  # by address without the login, which is nowhere on the disk

    async def resolve(self, item: Item) -> Resolved:
        """See `Remote`. A user and password in an address are remembered here and are in nothing that is returned:
        after a restart such an address has to be resolved again before it can be opened.
        """
        if isinstance(item.source, HubFile):
            return await self._resolve_hub(item.source, item.checksum)
        return await self._resolve_url(check_url(item.source), item.checksum)

    @asynccontextmanager
    async def open(
        self, resolved: Resolved, start: int = 0, end: int | None = None, etag: str = ""
    ) -> AsyncIterator[HttpBody]:
        """See `Remote`."""
        url = check_url(resolved.url)
        async with self._client.read(url, ByteRange(start, end, etag), await self._credentials(url)) as body:
            yield body

    async def _resolve_hub(self, file: HubFile, checksum: str) -> Resolved:
        name = safe_name(file.file)
        found = await self._hub.find(file)
        source = ModelSource(
            SourceType.HUGGINGFACE,
            url=found.url,
            repo=file.repo,
            file=file.file,
            revision=found.revision,
            etag=found.etag,
            license=found.license,
        )
        return Resolved(found.url, name, found.size, found.etag, checksum.lower() or found.checksum, source)

    async def _resolve_url(self, address: URL, checksum: str) -> Resolved:
        url = address.with_user(None)
        if (login := Credentials.basic(address)) is not None:
            self._logins[str(url)] = login
        found = await self._probe(url, await self._credentials(url))
        if found.size == 0:
            raise RemoteError(f"{shown(url)} is an empty file.", permanent=True)
        named = [name for name in found.names if name.lower().endswith(_SUFFIXES)] or [*found.names, ""]
        name = safe_name(named[0])
        source = ModelSource(SourceType.URL, url=str(url), file=name, etag=found.etag)
        return Resolved(str(url), name, found.size, found.etag, checksum.lower(), source)

    async def _probe(self, url: URL, credentials: Credentials | None) -> _Found:
        """Ask with HEAD, and where that tells no size, with GET for the first byte."""
        async with self._client.request("HEAD", url, ByteRange(), credentials) as answer:
            if answer.response.status not in _HEAD_REFUSED:
                answer.check()
                if answer.response.content_length:
                    return _Found(answer.response.content_length, answer.etag, _names(url, answer))
        try:
            async with self._client.read(url, ByteRange(0, 1), credentials) as body:
                return _Found(body.total, body.etag, _names(url, body.answer))
        except RangeError:
            return _Found(0, "", [])

    async def _credentials(self, url: URL) -> Credentials | None:
        """What opens an address: its own login, else the hub's token if it is the hub's."""
        if (login := self._logins.get(str(url))) is not None:
            return login
        if not self._hub.owns(url):
            return None
        token = await self._hub.token()
        return Credentials.bearer(url, token) if token else None


@asynccontextmanager
async def open_remote(settings: DownloadsConfig) -> AsyncIterator[HttpRemote]:
    """A remote whose connections are closed when the block ends; every body should be closed by then."""
    hub = Hub(settings.hub_endpoint, settings.hub_token)
    async with open_client() as client:
        try:
            yield HttpRemote(hub, client)
        finally:
            await hub.close()


def safe_name(text: str) -> str:
    """The name of a model's file out of what a stranger calls it: without folders and what a name can't contain.

    Raises RemoteError for a format that isn't read, such as a pickled one.
    """
    base = re.split(r"[/\\]", text)[-1]
    base = "".join("_" if _unfit(character) else character for character in base).strip(" .")
    suffix = PurePosixPath(base).suffix
    stem = base.removesuffix(suffix).encode()[: MAX_FILE_NAME - len(suffix)].decode(errors="ignore").rstrip(" .")
    name = stem + suffix
    if file_name_problem(name):
        name = f"model-{name}"
    try:
        check_file_name(name)
    except InvalidRequestError as error:
        raise RemoteError(f"{name!r} can't be used as a model: {error.message}", permanent=True) from error
    return name


def _unfit(character: str) -> bool:
    """Control characters, those that reorder text, halves of pairs, and what Windows has for drives and patterns."""
    return unicodedata.category(character).startswith("C") or character in '<>:"|?*'


def _names(url: URL, answer: HttpAnswer) -> list[str]:
    """What the file could be called: by the origin, by the address that was asked for, by that where it was found."""
    header = Message()
    given = answer.response.headers.get("Content-Disposition", "")
    header["Content-Disposition"] = given.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return [name for name in (header.get_filename(), url.name, answer.url.name) if name]
