"""A Hugging Face hub for the real `huggingface_hub` client, and plain files over HTTP, on loopback.

usage: hub_server.py --root DIR [--port PORT]

As a program it prints its address in a line of its own when it answers. What lies in DIR is served twice: each file
at /files/PATH, and DIR/OWNER/NAME/FILE also as a file of the repository OWNER/NAME. Tests control it by

  POST /control/files/PATH          faults of a plain file, or with ?hub of a repository's, as JSON (`Faults`); its
                                    stalls end when `release` is true
  GET  /control/files/PATH          what was asked of it: requests, bytes_sent, gets, ranges
  POST /control/repos/OWNER/NAME    `private`, `gated`, `token`, `license` of a repository
"""

import argparse
import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from aiohttp import web

try:
    from fakes.faulty_http import Seen, ServedFile, listening
except ImportError:  # started as a program, when its own folder is where modules are looked for
    from faulty_http import Seen, ServedFile, listening  # type: ignore[import-not-found, no-redef]

SMALL: Final = 16
"""Files below this size are in git itself, larger ones in the large file storage, on an origin of its own."""


class HubFileServed(ServedFile):
    """A file of a repository; its faults are those of where its bytes are."""

    def __init__(self, content: bytes | Path, *, large: bool | None = None) -> None:
        super().__init__(content)
        self.large = self.size >= SMALL if large is None else large
        self.digest = self.sha256() if self.large else self._git_digest()
        if not self.large:
            self.etag = f'"{self.digest}"'
        self.head_status = 0
        """Status with which the hub itself refuses to say where the file is, the first `head_statuses` times."""
        self.head_statuses = 0
        self.head_headers: dict[str, str] = {}

    def _git_digest(self) -> str:
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


@dataclass
class Repo:
    """A repository: files by commit, and commits by the names of branches and tags."""

    id: str
    license: str = ""
    license_in_card: bool = True
    private: bool = False
    gated: bool = False
    token: str = "hf_right"
    """The token that opens it where it is private or gated."""
    info_status: int = 0
    """Error with which the question for its card is answered."""
    commit_header: bool = True
    commits: dict[str, dict[str, HubFileServed]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes | Path | HubFileServed], revision: str = "main") -> str:
        """Add a commit with these files to a branch; its hash."""
        served = {
            name: content if isinstance(content, HubFileServed) else HubFileServed(content)
            for name, content in files.items()
        }
        sha = hashlib.sha1(f"{self.id} {len(self.commits)}".encode()).hexdigest()  # noqa: S324
        self.commits[sha] = served
        self.revisions[revision] = sha
        return sha

    def find(self, revision: str) -> str:
        """The commit that a branch, tag or commit means; empty where there is none."""
        return revision if revision in self.commits else self.revisions.get(revision, "")

    def file(self, name: str, revision: str = "main") -> HubFileServed:
        return self.commits[self.find(revision)][name]


class HubServer:
    """The hub at `url`, the large file storage at `cdn_url` (another origin), and plain files at `url`/files/NAME.

    `elsewhere_url` is a third origin that serves the same plain files, for redirects.
    """

    def __init__(self) -> None:
        self.url = self.cdn_url = self.elsewhere_url = ""
        self.repos: dict[str, Repo] = {}
        self.files: dict[str, ServedFile] = {}
        self.seen: list[Seen] = []
        """Requests to the hub's own origin for repositories."""
        self.cdn_seen: list[Seen] = []
        self.elsewhere_seen: list[Seen] = []

    def add_file(self, name: str, content: bytes | Path, etag: str | None = None) -> ServedFile:
        self.files[name] = ServedFile(content, etag)
        return self.files[name]

    def add_repo(self, repo_id: str, files: Mapping[str, bytes | Path | HubFileServed], **more: Any) -> Repo:
        self.repos[repo_id] = repo = Repo(repo_id, **more)
        repo.commit(files)
        return repo

    def file_url(self, name: str) -> str:
        return f"{self.url}/files/{quote(name)}"

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator["HubServer"]:
        async with (
            listening(self._cdn_app()) as self.cdn_url,
            listening(self._elsewhere_app()) as self.elsewhere_url,
            listening(self._app(), port) as self.url,
        ):
            yield self

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/files/{name:.+}", self._plain)
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}", self._info)
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}/revision/{revision}", self._info)
        app.router.add_get("/api/resolve-cache/models/{repo:[^/]+/[^/]+}/{revision}/{file:.+}", self._small)
        app.router.add_get("/{repo:[^/]+/[^/]+}/resolve/{revision}/{file:.+}", self._resolve)
        app.router.add_post("/control/files/{name:.+}", self._set_faults)
        app.router.add_get("/control/files/{name:.+}", self._counts)
        app.router.add_post("/control/repos/{repo:[^/]+/[^/]+}", self._set_repo)
        return app

    def _cdn_app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/lfs/{digest}", self._large)
        return app

    def _elsewhere_app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/files/{name:.+}", self._plain_elsewhere)
        return app

    # --- plain files

    async def _plain(self, request: web.Request) -> web.StreamResponse:
        file = self.files.get(request.match_info["name"])
        return web.Response(status=404) if file is None else await file.answer(request)

    async def _plain_elsewhere(self, request: web.Request) -> web.StreamResponse:
        self.elsewhere_seen.append(Seen(request.method, request.path_qs, request.headers.copy()))
        return await self._plain(request)

    # --- the hub

    def _allowed(self, repo: Repo | None, request: web.Request) -> web.Response | None:
        """None, or the refusal that the hub gives."""
        self.seen.append(Seen(request.method, request.path_qs, request.headers.copy()))
        given = request.headers.get("Authorization", "")
        if repo is None or (repo.private and given != f"Bearer {repo.token}"):
            return _refuse(404 if given else 401, "RepoNotFound", "Repository not found")
        if given and given != f"Bearer {repo.token}":
            return _refuse(401, "", "Invalid credentials in Authorization header")
        if repo.gated and not given and "/resolve" in request.path:
            return _refuse(401, "GatedRepo", f"Access to model {repo.id} is restricted.")
        return None

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        repo = self.repos.get(request.match_info["repo"])
        if (refusal := self._allowed(repo, request)) is not None:
            return refusal
        assert repo is not None
        sha = repo.find(unquote(request.match_info["revision"]))
        if not sha:
            return _refuse(404, "RevisionNotFound", "Invalid rev id")
        name = request.match_info["file"]
        if (file := repo.commits[sha].get(name)) is None:
            return _refuse(404, "EntryNotFound", "Entry not found")
        if file.head_statuses:
            file.head_statuses -= 1
            return web.Response(status=file.head_status, headers=file.head_headers)
        headers = {"X-Repo-Commit": sha} if repo.commit_header else {}
        if not file.large:
            location = f"/api/resolve-cache/models/{repo.id}/{sha}/{quote(name)}"
            return web.Response(status=307, headers=headers | {"Location": location, "ETag": file.etag})
        headers |= {
            "X-Linked-Etag": f'"{file.digest}"',
            "X-Linked-Size": str(file.size),
            "X-Xet-Hash": file.digest,
            "Link": f'<{self.url}/api/models/{repo.id}/xet-read-token/{sha}>; rel="xet-auth"',
            "Location": f"{self.cdn_url}/lfs/{file.digest}?signature={len(self.seen)}%2Fx",
        }
        return web.Response(status=302, headers=headers, text="Found")

    async def _small(self, request: web.Request) -> web.StreamResponse:
        repo = self.repos.get(request.match_info["repo"])
        if (refusal := self._allowed(repo, request)) is not None:
            return refusal
        assert repo is not None
        return await repo.commits[request.match_info["revision"]][request.match_info["file"]].answer(request)

    async def _large(self, request: web.Request) -> web.StreamResponse:
        self.cdn_seen.append(Seen(request.method, request.path_qs, request.headers.copy()))
        digest = request.match_info["digest"]
        everything = (
            file for repo in self.repos.values() for files in repo.commits.values() for file in files.values()
        )
        file = next((file for file in everything if file.digest == digest), None)
        if file is None or not request.raw_path.endswith("%2Fx"):  # a signature has to arrive as it was given
            return web.Response(status=403)
        return await file.answer(request)

    async def _info(self, request: web.Request) -> web.StreamResponse:
        repo = self.repos.get(request.match_info["repo"])
        if (refusal := self._allowed(repo, request)) is not None:
            return refusal
        assert repo is not None
        if repo.info_status:
            return web.Response(status=repo.info_status)
        sha = repo.find(unquote(request.match_info.get("revision", "main")))
        if not sha:
            return _refuse(404, "RevisionNotFound", "Invalid rev id")
        answer: dict[str, Any] = {
            "_id": "0" * 24,
            "id": repo.id,
            "modelId": repo.id,
            "sha": sha,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "tags": ["gguf", *([f"license:{repo.license}"] if repo.license else [])],
            "siblings": [{"rfilename": name} for name in repo.commits[sha]],
        }
        if repo.license and repo.license_in_card:
            answer["cardData"] = {"license": repo.license}
        return web.json_response(answer)

    # --- control

    def _controlled(self, request: web.Request) -> ServedFile:
        name = request.match_info["name"]
        if "hub" not in request.query:
            return self.files[name]
        owner, repo, file = name.split("/", 2)
        return self.repos[f"{owner}/{repo}"].file(file)

    async def _set_faults(self, request: web.Request) -> web.StreamResponse:
        file, values = self._controlled(request), await request.json()
        if values.pop("release", False):
            file.released.set()
        else:
            file.released.clear()
            file.stalled.clear()
            file.fail(**values)
        return web.json_response({})

    async def _counts(self, request: web.Request) -> web.StreamResponse:
        file = self._controlled(request)
        return web.json_response(
            {
                "requests": len(file.seen),
                "bytes_sent": file.bytes_sent,
                "gets": len(file.gets),
                "ranges": [seen.range for seen in file.gets],
                "stalled": file.stalled.is_set(),
            }
        )

    async def _set_repo(self, request: web.Request) -> web.StreamResponse:
        repo = self.repos[request.match_info["repo"]]
        for name, value in (await request.json()).items():
            assert hasattr(repo, name), name
            setattr(repo, name, value)
        return web.json_response({})


def _refuse(status: int, code: str, message: str) -> web.Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return web.json_response({"error": message}, status=status, headers=headers)


def from_folder(root: Path) -> HubServer:
    """A server of all files below a folder."""
    server = HubServer()
    repos: dict[str, dict[str, Path]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        server.add_file(name, path)
        if name.count("/") >= 2:
            owner, repo, file = name.split("/", 2)
            repos.setdefault(f"{owner}/{repo}", {})[file] = path
    for repo_id, files in repos.items():
        server.add_repo(repo_id, files)
    return server


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    async with from_folder(options.root).serving(options.port) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
