"""Files over HTTP as origins really give them, with their faults."""

import asyncio
import hashlib
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import encode_basic_auth, web

from fakes.faulty_http import ServedFile
from fakes.hub_server import HubServer
from genaid_server.resource.config import DownloadsConfig
from genaid_server.resource.core.downloads.download import DownloadLimits
from genaid_server.resource.core.downloads.remote import Item, RangeError, RemoteError, Resolved
from genaid_server.resource.core.downloads.retry import Pauses
from genaid_server.resource.core.downloads.transfer import Transfer, Version
from genaid_server.resource.core.store.model import SourceType
from genaid_server.resource.remote.http import MAX_REDIRECTS
from genaid_server.resource.remote.refusals import LONGEST_WAIT
from genaid_server.resource.remote.sources import HttpRemote, open_remote

CONTENT: Final = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("HF_") or name.upper().endswith("_PROXY") or name.startswith("SSL_CERT"):
            monkeypatch.delenv(name)


@pytest.fixture
async def server() -> AsyncIterator[HubServer]:
    async with HubServer().serving() as server:
        yield server


@pytest.fixture
async def remote() -> AsyncIterator[HttpRemote]:
    async with open_remote(DownloadsConfig(hub_endpoint="http://hub.invalid")) as remote:
        yield remote


@pytest.fixture
def file(server: HubServer) -> ServedFile:
    return server.add_file("model.gguf", CONTENT)


async def read(remote: HttpRemote, resolved: Resolved, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
    """Where a body starts, and all its bytes."""
    async with remote.open(resolved, *args, **kwargs) as body:
        return body.start, b"".join([chunk async for chunk in body.chunks()])


async def read_until_it_breaks(remote: HttpRemote, resolved: Resolved) -> tuple[bytes, RemoteError]:
    """The bytes that arrived, and what was raised."""
    received = b""
    async with remote.open(resolved) as body:
        try:
            async for chunk in body.chunks():
                received += chunk
        except RemoteError as error:
            return received, error
    raise AssertionError("it did not break")


async def resolve(remote: HttpRemote, url: str) -> Resolved:
    return await remote.resolve(Item(url))


# --- what all goes well


async def test_a_file_is_resolved_and_read_whole(server: HubServer, remote: HttpRemote, file: ServedFile) -> None:
    url = server.file_url("model.gguf")
    resolved = await remote.resolve(Item(url, checksum="SHA256:" + "AB" * 32))
    assert resolved.url == resolved.source.url == url
    assert (resolved.name, resolved.size, resolved.etag) == ("model.gguf", len(CONTENT), file.etag)
    assert resolved.checksum == "sha256:" + "ab" * 32
    assert (resolved.source.type, resolved.source.file) == (SourceType.URL, "model.gguf")
    async with remote.open(resolved) as body:
        assert (body.start, body.total, body.etag) == (0, len(CONTENT), file.etag)
        assert b"".join([chunk async for chunk in body.chunks()]) == CONTENT
    assert [seen.method for seen in file.seen] == ["HEAD", "GET"]
    assert {seen.headers["Accept-Encoding"] for seen in file.seen} == {"identity"}
    assert file.seen[1].headers["User-Agent"].startswith("genaid/")
    assert file.gets[0].range == ""


async def test_a_file_on_the_disk_of_the_origin_is_read(server: HubServer, remote: HttpRemote, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT * 3)
    served = server.add_file("model.gguf", path)
    resolved = await resolve(remote, server.file_url("model.gguf"))
    assert await read(remote, resolved) == (0, CONTENT * 3)
    assert await read(remote, resolved, 5_000_000, 5_000_010) == (5_000_000, (CONTENT * 3)[5_000_000:5_000_010])
    await served.idle.wait()
    assert served.bytes_sent == 3 * len(CONTENT) + 10


@pytest.mark.parametrize(
    ("start", "end", "asked"),
    [
        (0, 100, "bytes=0-99"),
        (100, None, "bytes=100-"),
        (100, 200, "bytes=100-199"),
        (len(CONTENT) - 1, None, f"bytes={len(CONTENT) - 1}-"),
    ],
)
async def test_a_part_is_read(
    server: HubServer, remote: HttpRemote, file: ServedFile, start: int, end: int | None, asked: str
) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    async with remote.open(resolved, start, end, file.etag) as body:
        assert (body.start, body.total, body.etag) == (start, len(CONTENT), file.etag)
        assert b"".join([chunk async for chunk in body.chunks()]) == CONTENT[start:end]
    assert (file.gets[0].range, file.gets[0].headers["If-Range"]) == (asked, file.etag)
    await file.idle.wait()
    assert file.bytes_sent == len(CONTENT[start:end])


async def test_a_body_may_be_left_before_its_end(server: HubServer, remote: HttpRemote, file: ServedFile) -> None:
    file.fail(stall_at=1_000_000)
    resolved = await resolve(remote, server.file_url("model.gguf"))
    async with remote.open(resolved) as body:
        assert CONTENT.startswith(await anext(aiter(body.chunks())))
    file.fail()
    assert await read(remote, resolved) == (0, CONTENT)


# --- parts that aren't what was asked for


@pytest.mark.parametrize(
    "faults",
    [{"ignore_range": True}, {"wrong_range": 7}, {"wrong_range": -7}],
    ids=["range ignored", "a later part", "an earlier part"],
)
async def test_the_whole_is_given_where_the_part_is_not(
    server: HubServer, remote: HttpRemote, file: ServedFile, faults: dict[str, Any]
) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(**faults)
    assert await read(remote, resolved, 1000, None, file.etag) == (0, CONTENT)


@pytest.mark.parametrize("ignore_if_range", [False, True])
async def test_the_whole_of_another_version_is_given(
    server: HubServer, remote: HttpRemote, file: ServedFile, ignore_if_range: bool
) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.content, file.etag = b"another" * 1000, '"another"'
    file.fail(ignore_if_range=ignore_if_range)
    async with remote.open(resolved, 1000, None, resolved.etag) as body:
        assert (body.start, body.total, body.etag) == (0, 7000, '"another"')
        assert b"".join([chunk async for chunk in body.chunks()]) == b"another" * 1000


async def test_a_part_of_another_version_whose_etag_is_not_told_is_not_appended(
    server: HubServer, remote: HttpRemote, file: ServedFile, tmp_path: Path
) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    path = tmp_path / "partial"
    path.write_bytes(CONTENT[:1000])
    another = b"another" * 1000
    file.content = another
    file.fail(ignore_if_range=True, no_etag=True)
    listener = Versions()
    transfer = Transfer(
        remote,
        replace(resolved, checksum=""),
        path,
        Version(len(CONTENT), resolved.etag),
        listener,
        DownloadLimits(reserve_bytes=0, first_delay=0.0),
        Pauses(),
    )
    assert await transfer.run() == f"sha256:{hashlib.sha256(another).hexdigest()}"
    assert path.read_bytes() == another
    assert [seen.range for seen in file.gets] == ["bytes=1000-", ""]
    assert listener.known == [Version(len(another), "")]


class Versions:
    """Remembers what a transfer tells of the file's version."""

    def __init__(self) -> None:
        self.known: list[Version] = []

    def on_bytes(self, count: int, length: int) -> None:
        pass

    def on_retry(self, problem: str) -> None:
        pass

    async def on_version(self, version: Version) -> None:
        self.known.append(version)


async def test_an_etag_that_changes_always_gives_the_whole(
    server: HubServer, remote: HttpRemote, file: ServedFile
) -> None:
    file.fail(changing_etag=True)
    resolved = await resolve(remote, server.file_url("model.gguf"))
    assert await read(remote, resolved, 1000, None, resolved.etag) == (0, CONTENT)


async def test_a_file_that_became_shorter_is_no_file_for_the_part(
    server: HubServer, remote: HttpRemote, file: ServedFile
) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    with pytest.raises(RangeError):
        await read(remote, resolved, len(CONTENT))


async def test_an_origin_without_etag_has_none(server: HubServer, remote: HttpRemote, file: ServedFile) -> None:
    file.fail(no_etag=True)
    resolved = await resolve(remote, server.file_url("model.gguf"))
    assert resolved.etag == resolved.source.etag == ""
    async with remote.open(resolved, 10, 20) as body:
        assert (body.start, body.etag) == (10, "")
    assert "If-Range" not in file.gets[0].headers


# --- lengths


async def test_a_file_of_unknown_size_is_read_to_its_end(
    server: HubServer, remote: HttpRemote, file: ServedFile
) -> None:
    file.fail(no_length=True, ignore_range=True)
    resolved = await resolve(remote, server.file_url("model.gguf"))
    assert resolved.size is None
    async with remote.open(resolved) as body:
        assert body.total is None
        assert b"".join([chunk async for chunk in body.chunks()]) == CONTENT


@pytest.mark.parametrize(
    "faults",
    [{"length_error": 5}, {"end_at": 2_000_000}, {"reset_at": 2_000_000}, {"end_at": 2_000_000, "no_length": True}],
    ids=["too long a length", "an early end", "a reset", "an early end of chunks"],
)
async def test_a_body_that_ends_early_is_a_passing_error(
    server: HubServer, remote: HttpRemote, file: ServedFile, faults: dict[str, Any]
) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(**faults)
    received, error = await read_until_it_breaks(remote, resolved)
    assert not error.permanent
    assert "broke" in error.message or "sent" in error.message
    assert CONTENT.startswith(received)
    assert received != CONTENT or faults == {"length_error": 5}


async def test_what_a_reset_interrupted_is_continued(server: HubServer, remote: HttpRemote, file: ServedFile) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(reset_at=2_000_000, resets=1)
    received, _ = await read_until_it_breaks(remote, resolved)
    start, rest = await read(remote, resolved, len(received), None, file.etag)
    assert start == len(received)
    assert received + rest == CONTENT


async def test_a_length_that_is_too_short_ends_the_body_there(
    server: HubServer, remote: HttpRemote, file: ServedFile
) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(length_error=-5)
    async with remote.open(resolved) as body:
        assert body.total == len(CONTENT) - 5
        assert b"".join([chunk async for chunk in body.chunks()]) == CONTENT[:-5]


async def test_a_part_whose_length_is_not_that_of_its_range_is_not_taken(
    server: HubServer, remote: HttpRemote, file: ServedFile
) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(length_error=-5)
    start, content = await read(remote, resolved, 1000)
    assert (start, content) == (0, CONTENT[:-5])


async def test_an_empty_file_is_refused(server: HubServer, remote: HttpRemote) -> None:
    server.add_file("empty.gguf", b"")
    with pytest.raises(RemoteError, match="empty file") as caught:
        await resolve(remote, server.file_url("empty.gguf"))
    assert caught.value.permanent


# --- time


async def test_a_stall_is_waited_out(server: HubServer, remote: HttpRemote, file: ServedFile) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(stall_at=2_000_000)
    received = b""
    async with remote.open(resolved) as body:
        chunks = aiter(body.chunks())
        while len(received) < 2_000_000:
            received += await anext(chunks)
        await file.stalled.wait()
        next_one = asyncio.ensure_future(anext(chunks))
        await asyncio.wait([next_one], timeout=0)
        assert not next_one.done()
        file.released.set()
        received += await next_one
        async for chunk in chunks:
            received += chunk
    assert received == CONTENT


async def test_a_stalled_body_can_be_given_up(server: HubServer, remote: HttpRemote, file: ServedFile) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(stall_at=0)
    async with remote.open(resolved) as body:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(aiter(body.chunks()))


async def test_a_slow_origin_is_listened_to(server: HubServer, remote: HttpRemote) -> None:
    slow = server.add_file("slow.gguf", CONTENT[:1000])
    slow.fail(bytes_per_second=50_000)
    resolved = await resolve(remote, server.file_url("slow.gguf"))
    async with remote.open(resolved) as body:
        chunks = [chunk async for chunk in body.chunks()]
    assert b"".join(chunks) == CONTENT[:1000]


# --- redirects


async def test_a_redirect_to_another_origin_is_followed_without_credentials(
    server: HubServer, remote: HttpRemote, file: ServedFile
) -> None:
    server.add_file("here.gguf", b"").fail(redirect=f"{server.elsewhere_url}/files/model.gguf")
    url = server.file_url("here.gguf")
    resolved = await resolve(remote, url.replace("http://", "http://user:s%40cret@"))
    assert (resolved.url, resolved.size) == (url, len(CONTENT))
    assert "cret" not in repr(resolved)
    assert await read(remote, resolved) == (0, CONTENT)
    login = encode_basic_auth("user", "s@cret")
    assert [seen.authorization for seen in server.files["here.gguf"].seen] == [login, login]
    assert [seen.authorization for seen in server.elsewhere_seen] == ["", ""]


async def test_credentials_stay_away_when_another_origin_sends_back(
    server: HubServer, remote: HttpRemote, file: ServedFile
) -> None:
    server.add_file("there.gguf", b"").fail(redirect=server.file_url("model.gguf"))
    server.add_file("here.gguf", b"").fail(redirect=f"{server.elsewhere_url}/files/there.gguf")
    resolved = await resolve(remote, server.file_url("here.gguf").replace("http://", "http://user:secret@"))
    assert await read(remote, resolved) == (0, CONTENT)
    assert {seen.authorization for seen in server.files["here.gguf"].seen} != {""}
    assert {seen.authorization for seen in file.seen} == {""}


async def test_a_redirect_on_the_same_origin_keeps_credentials(
    server: HubServer, remote: HttpRemote, file: ServedFile
) -> None:
    server.add_file("here.gguf", b"").fail(redirect="/files/model.gguf?signature=a%2Fb%2Bc")
    resolved = await resolve(remote, server.file_url("here.gguf").replace("http://", "http://user:secret@"))
    assert await read(remote, resolved, 10, 20) == (10, CONTENT[10:20])
    assert {seen.authorization for seen in file.seen} == {encode_basic_auth("user", "secret")}
    assert {seen.path for seen in file.seen} == {"/files/model.gguf?signature=a%2Fb%2Bc"}
    assert file.gets[0].range == "bytes=10-19"


async def test_the_login_of_a_redirect_is_not_used(server: HubServer, remote: HttpRemote, file: ServedFile) -> None:
    target = f"{server.elsewhere_url}/files/model.gguf".replace("http://", "http://user:secret@")
    server.add_file("here.gguf", b"").fail(redirect=target)
    await resolve(remote, server.file_url("here.gguf"))
    assert [seen.authorization for seen in file.seen] == [""]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("file:///etc/passwd", "redirects to file"),
        ("ftp://127.0.0.1/model.gguf", "redirects to ftp"),
        ("data:application/octet-stream,GGUF", "redirects to data"),
        ("http://[::1/model.gguf", "no address"),
        ("{url}", f"more than {MAX_REDIRECTS} times"),
    ],
)
async def test_a_redirect_that_must_not_be_followed_is_a_lasting_error(
    server: HubServer, remote: HttpRemote, file: ServedFile, target: str, message: str
) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.seen.clear()
    file.fail(redirect=target)
    with pytest.raises(RemoteError, match=message) as caught:
        await read(remote, resolved)
    assert caught.value.permanent
    assert len(file.seen) <= MAX_REDIRECTS + 1


async def test_ten_redirects_are_followed(server: HubServer, remote: HttpRemote, file: ServedFile) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(redirect="{url}", redirects=MAX_REDIRECTS)
    assert await read(remote, resolved) == (0, CONTENT)


# --- refusals


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 418, 451, 204, 304])
async def test_a_refusal_is_a_lasting_error(
    server: HubServer, remote: HttpRemote, file: ServedFile, status: int
) -> None:
    url = server.file_url("model.gguf").replace("http://", "http://user:secret@") + "?key=secret"
    resolved = await resolve(remote, url)
    file.fail(status=status, retry_after="5")
    for attempt in (read(remote, resolved), resolve(remote, url)):
        with pytest.raises(RemoteError) as caught:
            await attempt
        assert caught.value.permanent
        assert caught.value.retry_after is None
        assert "secret" not in caught.value.message
        assert server.file_url("model.gguf") in caught.value.message


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_trouble_of_the_origin_is_a_passing_error(
    server: HubServer, remote: HttpRemote, file: ServedFile, status: int
) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(status=status, statuses=2, retry_after="7")
    for attempt in (read(remote, resolved), resolve(remote, resolved.url)):
        with pytest.raises(RemoteError) as caught:
            await attempt
        assert not caught.value.permanent
        assert caught.value.retry_after == 7
    assert await read(remote, resolved) == (0, CONTENT)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("0", 0, 0),
        ("100000", LONGEST_WAIT, LONGEST_WAIT),
        ("99999999999999999999999", LONGEST_WAIT, LONGEST_WAIT),
        (timedelta(days=1), LONGEST_WAIT, LONGEST_WAIT),
        (timedelta(days=-1), 0, 0),
        (timedelta(seconds=500), 300, 500),
        ("Wed, 21 Oct 2037 07:28:00", LONGEST_WAIT, LONGEST_WAIT),
    ],
)
async def test_retry_after_is_believed_up_to_ten_minutes(
    server: HubServer, remote: HttpRemote, file: ServedFile, header: str | timedelta, least: float, most: float
) -> None:
    if isinstance(header, timedelta):
        header = format_datetime(datetime.now(UTC) + header, usegmt=True)
    file.fail(status=503, retry_after=header)
    with pytest.raises(RemoteError) as caught:
        await resolve(remote, server.file_url("model.gguf"))
    assert caught.value.retry_after is not None
    assert least <= caught.value.retry_after <= most


@pytest.mark.parametrize("header", ["", "soon", "-5", "1.5", "²", "Wed, 99 Oct 2037 07:28:00 GMT"])
async def test_retry_after_that_is_none_is_ignored(
    server: HubServer, remote: HttpRemote, file: ServedFile, header: str
) -> None:
    file.fail(status=503, retry_after=header)
    with pytest.raises(RemoteError) as caught:
        await resolve(remote, server.file_url("model.gguf"))
    assert caught.value.retry_after is None


async def test_a_compressed_file_is_refused(server: HubServer, remote: HttpRemote, file: ServedFile) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(gzip=True)
    with pytest.raises(RemoteError, match="compressed") as caught:
        await read(remote, resolved)
    assert caught.value.permanent


async def test_a_web_page_is_refused(server: HubServer, remote: HttpRemote, file: ServedFile) -> None:
    resolved = await resolve(remote, server.file_url("model.gguf"))
    file.fail(html=True)
    for attempt in (read(remote, resolved), resolve(remote, resolved.url)):
        with pytest.raises(RemoteError, match="is a web page, not a model") as caught:
            await attempt
        assert caught.value.permanent


async def test_the_page_about_a_file_is_refused_with_a_hint(server: HubServer, remote: HttpRemote) -> None:
    server.add_file("owner/name/blob/main/model.gguf", b"").fail(html=True)
    with pytest.raises(RemoteError, match="/resolve/ in place of /blob/"):
        await resolve(remote, server.file_url("owner/name/blob/main/model.gguf"))


# --- connections


async def test_a_reset_before_the_answer_is_a_passing_error(
    server: HubServer, remote: HttpRemote, file: ServedFile
) -> None:
    file.fail(reset_at=-1)
    with pytest.raises(RemoteError, match="can't be reached") as caught:
        await resolve(remote, server.file_url("model.gguf"))
    assert not caught.value.permanent


async def test_who_does_not_listen_is_a_passing_error(remote: HttpRemote) -> None:
    async with HubServer().serving() as gone:
        url = gone.file_url("model.gguf")
    with pytest.raises(RemoteError, match="can't be reached") as caught:
        await resolve(remote, url)
    assert not caught.value.permanent


async def test_an_origin_that_does_not_speak_tls_is_a_passing_error(server: HubServer, remote: HttpRemote) -> None:
    with pytest.raises(RemoteError, match="can't be reached") as caught:
        await resolve(remote, server.file_url("model.gguf").replace("http://", "https://"))
    assert not caught.value.permanent


async def test_loopback_is_asked_without_the_proxy(
    server: HubServer, remote: HttpRemote, file: ServedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.elsewhere_url)
    resolved = await resolve(remote, server.file_url("model.gguf"))
    assert await read(remote, resolved) == (0, CONTENT)
    assert server.elsewhere_seen == []


async def test_other_hosts_are_asked_through_the_proxy(
    server: HubServer, remote: HttpRemote, file: ServedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.elsewhere_url.replace("http://", "http://me:pass@"))
    resolved = await resolve(remote, "http://models.invalid/files/model.gguf")
    assert await read(remote, resolved) == (0, CONTENT)
    login = encode_basic_auth("me", "pass")
    assert [seen.headers["Proxy-Authorization"] for seen in server.elsewhere_seen] == [login, login]
    assert {seen.headers["Host"] for seen in server.elsewhere_seen} == {"models.invalid"}
    monkeypatch.setenv("no_proxy", "models.invalid")
    with pytest.raises(RemoteError, match="can't be reached"):
        await resolve(remote, "http://models.invalid/files/model.gguf")


async def test_logins_in_netrc_are_nobodys_business(
    server: HubServer, remote: HttpRemote, file: ServedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n", "utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    await resolve(remote, server.file_url("model.gguf"))
    assert [seen.authorization for seen in file.seen] == [""]


# --- https


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for 127.0.0.1 and its key, which nobody trusts."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("there is no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = path.with_name("key.pem")
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(path)]
    subprocess.run([openssl, "req", *options, *subject], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


@pytest.fixture
async def secure(certificate: Path) -> AsyncIterator[str]:
    """An https origin with /model.gguf, and with /down, which leads to http."""

    async def model(_: web.Request) -> web.Response:
        return web.Response(body=CONTENT)

    async def down(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"http://{request.host}/model.gguf"})

    app = web.Application()
    app.router.add_get("/model.gguf", model)
    app.router.add_get("/down", down)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_https_is_read_where_the_certificate_is_trusted(
    secure: str, certificate: Path, remote: HttpRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    resolved = await resolve(remote, f"{secure}/model.gguf")
    assert await read(remote, resolved) == (0, CONTENT)


async def test_a_certificate_that_nobody_trusts_is_a_lasting_error(secure: str, remote: HttpRemote) -> None:
    with pytest.raises(RemoteError, match=r"certificate .* can't be trusted") as caught:
        await resolve(remote, f"{secure}/model.gguf")
    assert caught.value.permanent


async def test_a_redirect_from_https_to_http_is_not_followed(
    secure: str, certificate: Path, remote: HttpRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(RemoteError, match="from https to http") as caught:
        await resolve(remote, f"{secure}/down")
    assert caught.value.permanent
