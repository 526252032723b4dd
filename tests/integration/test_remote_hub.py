"""Files of a Hugging Face hub, asked for by the hub's real client."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import huggingface_hub.constants
import pytest

from fakes.hub_server import HubFileServed, HubServer, Repo
from genaid_server.resource.config import DownloadsConfig
from genaid_server.resource.core.downloads.remote import HubFile, Item, RemoteError, Resolved
from genaid_server.resource.core.store.model import ModelSource, SourceType
from genaid_server.resource.remote.sources import HttpRemote, open_remote
from support import clean_environment

CONTENT: Final = os.urandom(3_000_000)
REPO: Final = "owner/A-model.v1_GGUF"
NAME: Final = "sub folder/model.Q4.gguf"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("HF_") or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
async def server() -> AsyncIterator[HubServer]:
    async with HubServer().serving() as server:
        yield server


@pytest.fixture
def repo(server: HubServer) -> Repo:
    return server.add_repo(REPO, {NAME: CONTENT}, license="apache-2.0")


@pytest.fixture
async def remote(server: HubServer) -> AsyncIterator[HttpRemote]:
    async with open_remote(DownloadsConfig(hub_endpoint=server.url)) as remote:
        yield remote


@pytest.fixture
async def known(server: HubServer) -> AsyncIterator[HttpRemote]:
    """A remote with the right token."""
    async with open_remote(DownloadsConfig(hub_endpoint=server.url, hub_token=" hf_right\n")) as remote:
        yield remote


async def resolve(remote: HttpRemote, file: str = NAME, revision: str = "main", repo: str = REPO) -> Resolved:
    return await remote.resolve(Item(HubFile(repo, file, revision)))


async def refused(remote: HttpRemote, *args: Any, **kwargs: Any) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await resolve(remote, *args, **kwargs)
    return caught.value


async def read(remote: HttpRemote, resolved: Resolved, *args: Any) -> tuple[int, bytes]:
    async with remote.open(resolved, *args) as body:
        assert body.etag == resolved.etag
        return body.start, b"".join([chunk async for chunk in body.chunks()])


# --- files


async def test_a_large_file_is_resolved_with_all_that_the_hub_knows(
    server: HubServer, repo: Repo, remote: HttpRemote
) -> None:
    resolved = await resolve(remote)
    commit, digest = repo.revisions["main"], repo.file(NAME).sha256()
    url = f"{server.url}/{REPO}/resolve/{commit}/sub%20folder/model.Q4.gguf"
    assert resolved == Resolved(
        url=url,
        name="model.Q4.gguf",
        size=len(CONTENT),
        etag=f'"{digest}"',
        checksum=f"sha256:{digest}",
        source=ModelSource(
            SourceType.HUGGINGFACE,
            url=url,
            repo=REPO,
            file=NAME,
            revision=commit,
            etag=f'"{digest}"',
            license="apache-2.0",
        ),
    )
    assert all("genaid/" in seen.headers["User-Agent"] for seen in server.seen)
    assert server.cdn_seen == []


async def test_a_large_file_is_read_from_the_other_origin(server: HubServer, repo: Repo, remote: HttpRemote) -> None:
    resolved = await resolve(remote)
    assert await read(remote, resolved) == (0, CONTENT)
    assert await read(remote, resolved, 1000, 2000) == (1000, CONTENT[1000:2000])
    assert [seen.range for seen in server.cdn_seen] == ["", "bytes=1000-1999"]
    assert {seen.headers["Host"] for seen in server.cdn_seen} == {server.cdn_url.removeprefix("http://")}


async def test_a_part_is_continued_although_the_other_origin_has_an_etag_of_its_own(
    server: HubServer, repo: Repo, remote: HttpRemote
) -> None:
    resolved = await resolve(remote)
    assert repo.file(NAME).etag != resolved.etag
    assert await read(remote, resolved, 1000, None, resolved.etag) == (1000, CONTENT[1000:])
    assert "If-Range" not in server.cdn_seen[0].headers


async def test_a_part_of_another_version_is_not_continued(server: HubServer, repo: Repo, remote: HttpRemote) -> None:
    resolved = await resolve(remote)
    assert await read(remote, resolved, 1000, None, '"another"') == (0, CONTENT)
    assert server.cdn_seen[0].range == ""


async def test_a_small_file_is_in_git_and_has_no_checksum(server: HubServer, repo: Repo, remote: HttpRemote) -> None:
    repo.commit({"small.gguf": HubFileServed(b"GGUF and a little", large=False)})
    resolved = await resolve(remote, "small.gguf")
    assert (resolved.size, resolved.checksum) == (17, "")
    assert resolved.etag == repo.file("small.gguf").etag
    assert await read(remote, resolved) == (0, b"GGUF and a little")
    assert await read(remote, resolved, 5, None, resolved.etag) == (5, b"and a little")
    assert await read(remote, resolved, 5, None, '"another"') == (0, b"GGUF and a little")


async def test_the_checksum_that_was_asked_for_is_kept(repo: Repo, remote: HttpRemote) -> None:
    resolved = await remote.resolve(Item(HubFile(REPO, NAME), checksum="sha256:" + "AB" * 32))
    assert resolved.checksum == "sha256:" + "ab" * 32


# --- revisions


async def test_a_branch_is_pinned_to_its_commit(repo: Repo, remote: HttpRemote) -> None:
    resolved = await resolve(remote)
    repo.commit({NAME: b"a newer version of the file"})
    assert await read(remote, resolved) == (0, CONTENT)
    newer = await resolve(remote)
    assert newer.source.revision != resolved.source.revision
    assert await read(remote, newer) == (0, b"a newer version of the file")


async def test_tags_and_commits_are_revisions(repo: Repo, remote: HttpRemote) -> None:
    first = repo.revisions["main"]
    second = repo.commit({NAME: b"a newer version of the file"}, "refs/pr/1")
    assert (await resolve(remote, revision=first)).source.revision == first
    assert (await resolve(remote, revision="refs/pr/1")).source.revision == second
    assert (await resolve(remote, revision=second)).size == 27


async def test_a_mirror_that_tells_no_commit_is_used_as_it_is(repo: Repo, remote: HttpRemote) -> None:
    repo.commit_header = False
    resolved = await resolve(remote)
    assert resolved.source.revision == "main"
    assert "/resolve/main/" in resolved.url
    assert await read(remote, resolved) == (0, CONTENT)


# --- license


async def test_a_license_may_be_only_a_tag(repo: Repo, remote: HttpRemote) -> None:
    repo.license_in_card = False
    assert (await resolve(remote)).source.license == "apache-2.0"


async def test_a_license_may_be_missing(repo: Repo, remote: HttpRemote) -> None:
    repo.license = ""
    assert (await resolve(remote)).source.license == ""


@pytest.mark.parametrize("status", [404, 429, 500])
async def test_a_hub_that_does_not_tell_the_license_is_no_error(repo: Repo, remote: HttpRemote, status: int) -> None:
    repo.info_status = status
    resolved = await resolve(remote)
    assert (resolved.source.license, resolved.size) == ("", len(CONTENT))


# --- what isn't there


async def test_what_is_not_there_is_a_lasting_error_that_says_what_to_check(repo: Repo, remote: HttpRemote) -> None:
    errors = {
        "name of the repository": await refused(remote, repo="owner/other"),
        "check its name, folders": await refused(remote, file="other.gguf"),
        "check the branch, tag or commit": await refused(remote, revision="other"),
    }
    for message, error in errors.items():
        assert message in error.message
        assert error.permanent


@pytest.mark.parametrize(
    "file",
    [
        HubFile("", NAME),
        HubFile("name", NAME),
        HubFile("a/b/c", NAME),
        HubFile("../b", NAME),
        HubFile("a/..", NAME),
        HubFile("owner/na me", NAME),
        HubFile("owner/name?x=", NAME),
        HubFile(REPO, "../../api/whoami/model.gguf"),
        HubFile(REPO, "a/./model.gguf"),
        HubFile(REPO, "/model.gguf"),
        HubFile(REPO, "a\\model.gguf"),
        HubFile(REPO, "a\n/model.gguf"),
        HubFile(REPO, "x" * 2000 + "/model.gguf"),
        HubFile(REPO, NAME, ""),
        HubFile(REPO, NAME, ".."),
        HubFile(REPO, NAME, "x" * 500),
        HubFile(REPO, "model.ckpt"),
        HubFile(REPO, "pytorch_model.bin"),
        HubFile(REPO, "README.md"),
    ],
)
async def test_what_cannot_be_a_model_of_a_hub_is_not_asked_for(
    server: HubServer, repo: Repo, remote: HttpRemote, file: HubFile
) -> None:
    with pytest.raises(RemoteError) as caught:
        await remote.resolve(Item(file))
    assert caught.value.permanent
    assert server.seen == []


async def test_a_file_with_the_signs_of_addresses_in_its_name_is_found(
    server: HubServer, repo: Repo, remote: HttpRemote
) -> None:
    name = "a%2F..?x=#b/ü+&.gguf"
    repo.commit({name: CONTENT})
    resolved = await resolve(remote, name)
    assert await read(remote, resolved) == (0, CONTENT)


# --- tokens


async def test_a_private_repository_needs_a_token(server: HubServer, repo: Repo, remote: HttpRemote) -> None:
    repo.private = True
    error = await refused(remote)
    assert error.permanent
    assert "HF_TOKEN" in error.message


async def test_the_token_goes_to_the_hub_and_nowhere_else(server: HubServer, repo: Repo, known: HttpRemote) -> None:
    repo.private = True
    resolved = await resolve(known)
    assert resolved.source.license == "apache-2.0"
    assert await read(known, resolved) == (0, CONTENT)
    assert await read(known, resolved, 1000) == (1000, CONTENT[1000:])
    assert {seen.authorization for seen in server.seen} == {"Bearer hf_right"}
    assert [seen.authorization for seen in server.cdn_seen] == ["", ""]
    assert "hf_right" not in repr(resolved)


async def test_the_token_does_not_go_to_plain_addresses(server: HubServer, repo: Repo, known: HttpRemote) -> None:
    server.add_file("model.gguf", CONTENT)
    await known.resolve(Item(f"{server.elsewhere_url}/files/model.gguf"))
    assert [seen.authorization for seen in server.elsewhere_seen] == [""]


async def test_a_plain_address_at_the_hub_is_opened_with_the_token(
    server: HubServer, repo: Repo, known: HttpRemote
) -> None:
    repo.private = True
    resolved = await known.resolve(Item(f"{server.url}/{REPO}/resolve/main/{NAME}"))
    assert resolved.source.type is SourceType.URL
    assert await read(known, resolved, 1000, None, resolved.etag) == (1000, CONTENT[1000:])
    assert {seen.authorization for seen in server.cdn_seen} == {""}


async def test_the_token_may_be_in_the_environment(
    server: HubServer, repo: Repo, remote: HttpRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.private = True
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert await read(remote, await resolve(remote)) == (0, CONTENT)


async def test_the_token_may_be_that_of_a_login(
    server: HubServer, repo: Repo, remote: HttpRemote, tmp_path: Path
) -> None:
    repo.private = True
    (tmp_path / "token").write_text("hf_right\n", "utf-8")
    assert await read(remote, await resolve(remote)) == (0, CONTENT)


async def test_a_wrong_token_is_a_lasting_error(server: HubServer, repo: Repo) -> None:
    async with open_remote(DownloadsConfig(hub_endpoint=server.url, hub_token="hf_wrong")) as remote:
        error = await refused(remote)
    assert error.permanent
    assert "check them" in error.message
    assert "hf_wrong" not in error.message


async def test_a_token_that_can_be_none_is_not_sent(server: HubServer, repo: Repo) -> None:
    async with open_remote(DownloadsConfig(hub_endpoint=server.url, hub_token="a\r\nX-Evil: b")) as remote:
        error = await refused(remote)
    assert error.permanent
    assert server.seen == []


async def test_a_gated_repository_says_to_accept_its_license(server: HubServer, repo: Repo, remote: HttpRemote) -> None:
    repo.gated = True
    error = await refused(remote)
    assert error.permanent
    assert "accept its license" in error.message
    assert "HF_TOKEN" in error.message


async def test_a_gated_repository_opens_to_its_token(server: HubServer, repo: Repo, known: HttpRemote) -> None:
    repo.gated = True
    assert await read(known, await resolve(known)) == (0, CONTENT)


async def test_a_repository_that_closes_after_it_was_resolved_says_why(
    server: HubServer, repo: Repo, remote: HttpRemote
) -> None:
    resolved = await resolve(remote)
    repo.gated = True
    with pytest.raises(RemoteError, match="accept its license") as caught:
        await read(remote, resolved)
    assert caught.value.permanent


# --- trouble


async def test_a_busy_hub_is_a_passing_error(server: HubServer, repo: Repo, remote: HttpRemote) -> None:
    file = repo.file(NAME)
    file.head_status, file.head_statuses, file.head_headers = 503, 1, {"Retry-After": "12"}
    error = await refused(remote)
    assert (error.permanent, error.retry_after) == (False, 12)
    file.head_status, file.head_statuses, file.head_headers = 429, 1, {"RateLimit": '"resolvers";r=0;t=55'}
    error = await refused(remote)
    assert (error.permanent, error.retry_after) == (False, 55)
    assert (await resolve(remote)).size == len(CONTENT)


async def test_trouble_where_the_bytes_are_is_a_passing_error(repo: Repo, remote: HttpRemote) -> None:
    resolved = await resolve(remote)
    repo.file(NAME).fail(status=503, statuses=1, retry_after="3")
    with pytest.raises(RemoteError) as caught:
        await read(remote, resolved)
    assert (caught.value.permanent, caught.value.retry_after) == (False, 3)
    assert await read(remote, resolved) == (0, CONTENT)


async def test_a_hub_that_does_not_answer_is_a_passing_error() -> None:
    async with HubServer().serving() as gone:
        url = gone.url
    async with open_remote(DownloadsConfig(hub_endpoint=url)) as remote:
        error = await refused(remote)
    assert not error.permanent
    assert "can't be reached" in error.message


@pytest.mark.parametrize("endpoint", ["file:///etc", "http://me:secret@hub.invalid", "http://hub.invalid?x=secret"])
async def test_an_endpoint_that_is_no_address_is_a_lasting_error(server: HubServer, endpoint: str) -> None:
    server.add_file("model.gguf", CONTENT)
    async with open_remote(DownloadsConfig(hub_endpoint=endpoint)) as remote:
        error = await refused(remote)
        resolved = await remote.resolve(Item(server.file_url("model.gguf")))
        assert await read(remote, resolved) == (0, CONTENT)
    assert error.permanent
    assert "endpoint" in error.message
    assert "secret" not in error.message


async def test_the_endpoint_may_be_in_the_environment(
    server: HubServer, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    async with open_remote(DownloadsConfig()) as remote:
        resolved = await resolve(remote)
        assert await read(remote, resolved) == (0, CONTENT)
    assert resolved.url.startswith(f"{server.url}/{REPO}/")


async def test_a_client_that_is_set_to_work_offline_says_so(
    repo: Repo, remote: HttpRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    error = await refused(remote)
    assert error.permanent
    assert "HF_HUB_OFFLINE" in error.message


async def test_a_hub_on_loopback_is_asked_without_the_proxy(
    server: HubServer, repo: Repo, remote: HttpRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.elsewhere_url)
    huggingface_hub.close_session()  # which reads the environment when it is opened
    assert await read(remote, await resolve(remote)) == (0, CONTENT)
    assert server.elsewhere_seen == []


async def test_many_files_are_resolved_at_once(server: HubServer, repo: Repo, remote: HttpRemote) -> None:
    names = [f"model-{number:05}-of-00008.gguf" for number in range(1, 9)]
    repo.commit({name: name.encode() * 10 for name in names})
    found = await asyncio.gather(*(resolve(remote, name) for name in names))
    assert [resolved.name for resolved in found] == names


def test_who_downloads_nothing_does_not_import_the_hubs_client() -> None:
    program = (
        "import sys; import genaid_server.resource.remote.sources; "
        "print({'huggingface_hub', 'httpx2'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
