"""A Hugging Face Hub on 127.0.0.1, small enough to read: what is needed to create, push to and pull from repositories.

`huggingface_hub` reads its endpoint once, when it is imported, so the code under test runs in a process of its own:

    with LocalHub() as hub:
        hub.run("print(1)", home=tmp_path)
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """Commits, each a whole tree (path -> content); the last one is "main"."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        content = repr(sorted((path, _oid(data)) for path, data in files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}{content}".encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return list(self.commits)[-1]
        return revision if revision in self.commits else None


class LocalHub:
    """The server, in a thread. `requests` logs "METHOD path"; `repositories` maps an id to a `Repository`.

    Repositories of datasets have "datasets/" before their id, as in addresses of files.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fault = ("", "")  # what requests meet ("cut", "stall", "html" or a status), and a part of their paths
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Switch the server off; calling it twice is fine."""
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.resolve(revision)]

    def environment(self, home: Path, offline: bool = False) -> dict[str, str]:
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_dummy",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "4",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "OMP_NUM_THREADS": "1",
        }
        if offline:
            settings["HF_HUB_OFFLINE"] = "1"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        return inherited | settings

    def run(self, code: str, home: Path, offline: bool = False) -> str:
        """Run Python code against this Hub in a new process; returns what it printed, raises if it fails."""
        root = Path(__file__).resolve().parent
        environment = self.environment(home, offline)
        environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root.parent), environment.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _file_info(path: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(files[path]), "oid": _oid(files[path])}


def _folder_info(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": _oid(path.encode())}


def _api_path(path: str) -> str:
    """/api/models/org/name/... -> org/name/..., and the same for datasets, which keep their prefix."""
    return path.removeprefix("/api/").removeprefix("models/")


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        kind, where = self.hub.fault
        if path.startswith("/fault/"):
            _, _, kind, where = path.split("/", 3)
            self.hub.fault = (kind, where)
            self._json({})
        elif kind and where in path:
            self._fail(kind)
        elif path == "/api/whoami-v2":
            self._json({"name": "tester", "type": "user", "orgs": []})
        elif path.startswith(("/api/models/", "/api/datasets/")):
            self._get_info(_api_path(path))
        elif "/resolve/" in path:
            self._get_file(path)
        else:
            self._error(404, "EntryNotFound")

    def _fail(self, kind: str) -> None:
        if kind == "html":  # a captive portal
            self._send(200, b"<html>Please log in</html>", "text/html", {})
        elif kind == "stall":  # the connection stands, and nothing comes
            self.rfile.read(1)  # until the caller has enough of it
            self.close_connection = True
        elif kind == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"{")
            self.close_connection = True
        else:
            self._send(int(kind), b"{}", "application/json", {})

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            # "regular": contents travel inside the commit. Shards of a dataset are gone by then: "lfs", ahead of it.
            answer = {"shouldIgnore": False, "oid": None}
            modes = ["lfs" if file["path"].endswith(".parquet") else "regular" for file in files]
            self._json({"files": [{**f, **answer, "uploadMode": m} for f, m in zip(files, modes, strict=True)]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}} for o in objects]
            listed = [{**o, "actions": a} for o, a in zip(objects, actions, strict=True)]
            self._json({"transfer": "basic", "objects": listed})
        elif "/commit/" in path:
            self._commit(_api_path(path).split("/commit/")[0], body)
        elif "/paths-info/" in path:
            self._paths_info(_api_path(path), body)
        else:
            self._error(404, "EntryNotFound")

    def do_PUT(self) -> None:
        self.hub.large[self._path().removeprefix("/lfs/")] = self._body()
        self._json({})

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _create(self, request: dict[str, Any]) -> None:
        kind = "datasets/" if request.get("type") == "dataset" else ""
        repo_id = f"{kind}{request.get('organization') or 'tester'}/{request['name']}"
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repositories:
            self._json({"error": "exists", **answer}, status=409)
            return
        repository = self.hub.repositories[repo_id] = Repository(private=bool(request.get("private")))
        repository.commit({".gitattributes": b""})
        self._json(answer)

    def _commit(self, repo_id: str, body: bytes) -> None:
        repository = self.hub.repositories[repo_id]
        files = dict(repository.commits[repository.resolve("main")])
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.hub.large[entry["value"]["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(entry["value"]["path"], None)
        sha = repository.commit(files)
        self._json({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True})

    def _get_info(self, path: str) -> None:
        tree = "/tree/" in path
        repo_id, _, revision = path.partition("/tree/" if tree else "/revision/")
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            self._error(404, "RepoNotFound")
            return
        sha = repository.resolve(revision.split("/")[0] or "main")
        if sha is None:
            self._error(404, "RevisionNotFound")
            return
        files = repository.commits[sha]
        if tree:
            self._tree(files, revision.partition("/")[2])
            return
        siblings = [{"rfilename": path} for path in files]
        about = {"id": repo_id.removeprefix("datasets/"), "sha": sha, "siblings": siblings}
        self._json({**about, "private": repository.private, "tags": []})

    def _tree(self, files: dict[str, bytes], folder: str) -> None:
        start = f"{folder}/" if folder else ""
        below = [path for path in files if path.startswith(start)]
        if not below:
            self._error(404, "EntryNotFound")
            return
        recursive = "true" in parse_qs(urlsplit(self.path).query).get("recursive", ["true"])[0].lower()
        folders = {start + path[len(start) :].split("/")[0] for path in below if "/" in path[len(start) :]}
        listed = [path for path in below if recursive or "/" not in path[len(start) :]]
        self._json([_file_info(path, files) for path in listed] + [_folder_info(path) for path in sorted(folders)])

    def _paths_info(self, path: str, body: bytes) -> None:
        repo_id, _, revision = path.partition("/paths-info/")
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            self._error(404, "RepoNotFound")
            return
        files = repository.commits[repository.resolve(revision)]
        wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
        folders = {name for name in wanted if any(path.startswith(f"{name}/") for path in files)}
        self._json([_file_info(path, files) for path in wanted if path in files]
                   + [_folder_info(path) for path in folders])

    def _get_file(self, path: str) -> None:
        repo_id, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            self._error(404, "RepoNotFound")
            return
        sha = repository.resolve(revision)
        if sha is None:
            self._error(404, "RevisionNotFound")
        elif name not in repository.commits[sha]:
            self._error(404, "EntryNotFound", sha)
        else:
            data = repository.commits[sha][name]
            headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": sha}
            first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            if first:
                end = min(int(last or len(data)) + 1, len(data))
                headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
                self._send(206, data[int(first) : end], "application/octet-stream", headers)
            else:
                self._send(200, data, "application/octet-stream", headers)

    def _error(self, status: int, code: str, sha: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} | ({"X-Repo-Commit": sha} if sha else {})
        self._send(status, json.dumps({"error": code}).encode(), "application/json", headers)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), "application/json", {})

    def _send(self, status: int, data: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
