"""What a Hugging Face hub knows about its files, by the hub's own client.

The client is imported when it is first needed, and works in threads: it is large, and blocks. It is asked for
metadata only; bytes are fetched over plain HTTP, whatever storage the hub has for them.
"""

import asyncio
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from yarl import URL

from genaid_server.resource.core.downloads.remote import HubFile, RemoteError
from genaid_server.resource.core.store.names import readable, unprintable
from genaid_server.resource.remote.addresses import check_url, origin
from genaid_server.resource.remote.http import MAX_ETAG
from genaid_server.resource.remote.refusals import refusal

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
TIMEOUT: Final = 15.0
"""Seconds without a byte after which the hub counts as unreachable."""
LIBRARY: Final = "genaid"
MAX_FILE: Final = 1000
MAX_REVISION: Final = 250
_REPO: Final = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_LOOPBACK: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")
_PREPARING: Final = threading.Lock()
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubMetadata:
    """What the hub says about one file.

    `url` is pinned to the commit `revision`, or to the revision that was asked for where the hub told no commit.
    `size` is in bytes, None where it isn't told; `etag` is quoted, as in HTTP; `checksum` is `sha256:…`, or empty
    for a file that is in git itself.
    """

    url: str
    revision: str
    size: int | None
    etag: str
    checksum: str
    license: str


class Hub:
    """The hub at one endpoint."""

    def __init__(self, endpoint: str = "", token: str = "") -> None:
        """Empty: HF_ENDPOINT or the hub itself, and the token that the hub's client finds (HF_TOKEN, a login)."""
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self._token = token.strip()
        self._used = False

    def owns(self, url: URL) -> bool:
        """Whether an address is at the hub's own origin, the only one that may see the token."""
        try:
            return origin(url) == origin(self._address())
        except RemoteError:
            return False

    def _address(self) -> URL:
        try:
            url = check_url(self.endpoint)
        except RemoteError as error:
            raise RemoteError(f"The endpoint of the hub is wrong. {error.message}", permanent=True) from error
        if url.user is not None or url.query_string:
            raise RemoteError("The endpoint of the hub is wrong. It has no user and no query.", permanent=True)
        return url

    async def token(self) -> str:
        """The token, or an empty text. Raises RemoteError."""
        return await asyncio.to_thread(self._asked, f"The hub at {self.endpoint}", self._find_token)

    async def find(self, file: HubFile) -> HubMetadata:
        """Ask for the metadata of a file. Raises RemoteError."""
        check_file(file)
        self._address()
        where = f"{file.file} of {file.repo} (revision {file.revision}, at {self.endpoint})"
        return await asyncio.to_thread(self._asked, where, partial(self._find, file))

    async def close(self) -> None:
        """Close the connections of the hub's client, if it was used."""
        if self._used:
            from huggingface_hub import close_session

            await asyncio.to_thread(close_session)

    # --- in threads

    def _asked[T](self, where: str, question: Callable[[], T]) -> T:
        """The answer to a question; what the hub's client raises becomes a RemoteError."""
        import httpx2
        from huggingface_hub import errors

        self._used = True
        try:
            _go_direct_to_loopback()
            return question()
        except errors.OfflineModeIsEnabled as error:
            raise RemoteError(
                "The hub's client is set to work offline: unset HF_HUB_OFFLINE.", permanent=True
            ) from error
        except errors.HfHubHTTPError as error:
            raise refusal(error.response.status_code, error.response.headers, where) from error
        except (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol, httpx2.InvalidURL, ValueError) as error:
            raise RemoteError(f"{where} can't be asked for: {error}", permanent=True) from error
        except (httpx2.HTTPError, OSError) as error:
            raise RemoteError(f"{where} can't be reached: {error or type(error).__name__}", permanent=False) from error

    def _find_token(self) -> str:
        from huggingface_hub import get_token

        token = self._token or get_token() or ""
        if not (token.isascii() and token.isprintable()):
            raise RemoteError("The token for the hub has characters that no token has.", permanent=True)
        return token

    def _find(self, file: HubFile) -> HubMetadata:
        from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

        token = self._find_token() or False
        api = HfApi(self.endpoint, token=token, library_name=LIBRARY, library_version=version(LIBRARY))
        found = get_hf_file_metadata(
            hf_hub_url(file.repo, file.file, revision=file.revision, endpoint=self.endpoint),
            token=token,
            timeout=TIMEOUT,
            library_name=LIBRARY,
            library_version=version(LIBRARY),
            endpoint=self.endpoint,
        )
        revision = found.commit_hash if _COMMIT.fullmatch(found.commit_hash or "") else None
        etag = found.etag if found.etag and len(found.etag) <= MAX_ETAG and not unprintable(found.etag) else ""
        return HubMetadata(
            url=hf_hub_url(file.repo, file.file, revision=revision or file.revision, endpoint=self.endpoint),
            revision=revision or file.revision,
            size=found.size if found.size is not None and found.size >= 0 else None,
            etag=f'"{etag}"' if etag else "",
            checksum=f"sha256:{etag}" if _SHA256.fullmatch(etag) else "",
            license=_license(api, file.repo, revision or file.revision),
        )


def check_file(file: HubFile) -> None:
    """Raises RemoteError for what can't be a file of a hub, or would lead elsewhere in its address."""
    if not _REPO.fullmatch(file.repo) or ".." in file.repo:
        raise RemoteError("A repository of the hub is named as OWNER/NAME.", permanent=True)
    parts = file.file.split("/")
    if len(file.file) > MAX_FILE or unprintable(file.file) or "\\" in file.file or {"", ".", ".."} & set(parts):
        raise RemoteError("A file of the hub is a path inside the repository, with / between folders.", permanent=True)
    if not file.revision or len(file.revision) > MAX_REVISION or unprintable(file.revision) or ".." in file.revision:
        raise RemoteError("A revision at the hub is a branch, a tag or a commit.", permanent=True)


def _go_direct_to_loopback() -> None:
    """Make the hub's client ask this machine itself without a proxy, which could not reach it for us."""
    with _PREPARING:
        _set_client()


@cache
def _set_client() -> None:
    import httpx2
    from huggingface_hub import get_session, set_client_factory

    hooks = get_session().event_hooks

    def client() -> httpx2.Client:
        return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=TIMEOUT, mounts=dict.fromkeys(_LOOPBACK))

    set_client_factory(client)


def _license(api: "HfApi", repo: str, revision: str) -> str:
    """The license tag of a repository; empty where it has none or the hub doesn't say: no reason not to download."""
    import httpx2

    try:
        info = api.model_info(repo, revision=revision, timeout=TIMEOUT)
    except (httpx2.HTTPError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return ""
    card = info.card_data.get("license") if info.card_data is not None else None
    if isinstance(card, str):
        return readable(card)
    tags = [tag.removeprefix("license:") for tag in info.tags or [] if str(tag).startswith("license:")]
    return readable(tags[0]) if tags else ""
