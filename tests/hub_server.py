"""A small Hugging Face Hub on this machine: enough of its HTTP API for huggingface_hub and transformers as they are.

Repositories (data sets are found as models) with commits on branches. What the real Hub refuses, it refuses
by the same status; it takes all files without LFS. `requests` records what was asked. Paths and fields are those of
huggingface_hub's hf_api.py.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}
REPO = r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)"
API = rf"/api/(?:models|datasets)/{REPO}"
REVISION = r"(?P<revision>[^/]+)"


class Refusal(Exception):
    """An answer other than 200: its status, and the Hub's error code."""


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> path -> content
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class Hub:
    """The server, from `with` on, at `url`; everything it holds is in `repos`."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str, int]] = []  # method, path, status

    def __enter__(self) -> "Hub":
        handler = type("HubHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, token: str | None, home: Path) -> dict[str, str]:
        """Variables that lead huggingface_hub here, with a cache of its own in `home`. To be set before its import."""
        variables = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": token or "", "HF_HUB_OFFLINE": "0"}
        return variables | {
            "HF_HUB_DISABLE_XET": "1",
            "HUGGING_FACE_HUB_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> None:
        """Makes a repository with these files."""
        self.repos[name] = Repo(private)
        self.repos[name].commit("main", files, "add")

    def files(self, name: str) -> dict[str, bytes]:
        repo = self.repos[name]
        return repo.commits[repo.branches["main"]]


class Handler(BaseHTTPRequestHandler):
    """One request: finds its route, checks the token, answers JSON or a file (bytes)."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, status, self.sent = urlsplit(self.path).path, 200, {}
        try:
            content = self.answer(path)
        except Refusal as error:
            status, code = error.args
            content, self.sent = {"error": code}, {"X-Error-Code": code}
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            self.sent["Content-Type"] = "application/json"
        self.hub.requests.append((self.command, path, status))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | self.sent).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = handle_any

    def answer(self, path: str):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refusal(401, "")
        self.user = TOKENS.get(token)
        for methods, pattern, function in ROUTES:
            if self.command in methods.split() and (match := re.fullmatch(pattern, path)):
                return function(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
        raise Refusal(404, "")

    def find(self, repo: str, revision: str) -> tuple[Repo, str]:
        """A repository and a commit in it."""
        found = self.hub.repos.get(repo)
        if found is None:
            raise Refusal(404, "RepoNotFound")
        sha = found.branches.get(revision, revision)
        if sha not in found.commits:
            raise Refusal(404, "RevisionNotFound")
        return found, sha

    def check_right(self, owner: str) -> None:
        if owner != self.user:
            raise Refusal(403 if self.user else 401, "")

    # What can be asked; the arguments are the named groups of ROUTES

    def create_repo(self):
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.user
        self.check_right(owner)
        name = f"{owner}/{asked['name']}"
        if name not in self.hub.repos:
            self.hub.add(name, {}, asked.get("visibility") == "private" or asked.get("private", False))
        return {"url": f"{self.hub.url}/{name}", "name": name}

    def auth_check(self, repo: str):
        self.find(repo, "main")
        self.check_right(repo.split("/")[0])
        return {}

    def info(self, repo: str, revision: str):
        found, sha = self.find(repo, revision or "main")
        files = [{"rfilename": path} for path in found.commits[sha]]
        return {"_id": repo, "id": repo, "sha": sha, "private": found.private, "siblings": files, "tags": []}

    def tree(self, repo: str, revision: str, path: str):
        found, sha = self.find(repo, revision)
        files = found.commits[sha].items()
        return [{"type": "file", "path": n, "size": len(f), "oid": blob(f)} for n, f in files if n.startswith(path)]

    def preupload(self, repo: str, revision: str):
        files = json.loads(self.body)["files"]
        return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}

    def commit(self, repo: str, revision: str):
        """Lines of JSON: a header, then a file in each."""
        found, parent = self.find(repo, revision)
        header, *changes = (json.loads(line)["value"] for line in self.body.splitlines())
        files = {value["path"]: base64.b64decode(value["content"]) for value in changes}
        sha = found.commit(revision, found.commits[parent] | files, header["summary"])
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"}

    def download(self, repo: str, revision: str, path: str):
        found, sha = self.find(repo, revision)
        if path not in found.commits[sha]:
            raise Refusal(404, "EntryNotFound")
        content = found.commits[sha][path]
        self.sent = {"X-Repo-Commit": sha, "ETag": f'"{blob(content)}"', "Content-Type": "application/octet-stream"}
        return content


def blob(content: bytes) -> str:
    """Git's name for a file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


ROUTES = [
    ("POST", "/api/repos/create", Handler.create_repo),
    ("POST", "/api/validate-yaml", lambda handler: {"errors": [], "warnings": []}),
    ("GET", f"{API}/auth-check/write", Handler.auth_check),
    ("POST", f"{API}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"{API}/commit/{REVISION}", Handler.commit),
    ("GET", f"{API}/tree/{REVISION}(?:/(?P<path>.+))?", Handler.tree),
    ("GET", f"{API}(?:/revision/{REVISION})?", Handler.info),
    ("GET HEAD", f"/(?:datasets/)?{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.download),
]
