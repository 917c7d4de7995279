"""A small Hub on this machine: what huggingface_hub asks to make, fill and read repositories of models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writer"
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Repository:
    """Its commits by their ids, the newest last."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str = "") -> str:
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        self.messages.append(message)
        return oid

    @property
    def newest(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.newest]


class Hub(ThreadingHTTPServer):
    """The repositories, what was asked, and what to answer instead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.instead: Answer | None = None  # of every other answer

    def add(self, name: str, **kind: Any) -> Repository:
        self.repositories[name] = Repository(**kind)
        self.repositories[name].commit({".gitattributes": b""})
        return self.repositories[name]


class Visit(BaseHTTPRequestHandler):
    """One request to the Hub."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def visit(self) -> None:
        body = self.body()
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        status, headers, content = self.server.instead or self.answer(path, body)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = visit

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, path: str, body: bytes) -> Answer:
        for pattern, method, writes in ROUTES:
            if match := re.fullmatch(pattern, path):
                if (
                    writes
                    and method is not Visit.store
                    and self.headers.get("Authorization") != f"Bearer {TOKEN}"
                ):
                    return told({"error": "read-only"}, 403)
                return method(self, *match.groups(), *([body] if writes else []))
        return told({}, 404)

    def seen(self, name: str, revision: str) -> Repository | Answer:
        """A repository with that revision, or why there is none for this visitor."""
        repository = self.server.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not allowed):
            return told({}, 404, {"X-Error-Code": "RepoNotFound"})
        if repository.gated:
            return told({}, 403, {"X-Error-Code": "GatedRepo"})
        if revision not in ("main", *repository.commits):
            return told({}, 404, {"X-Error-Code": "RevisionNotFound"})
        return repository

    def info(self, name: str, revision: str) -> Answer:
        found = self.seen(name, revision or "main")
        if not isinstance(found, Repository):
            return found
        oid = revision if revision in found.commits else found.newest
        return told({"id": name, "sha": oid, "siblings": [{"rfilename": x} for x in found.commits[oid]]})

    def tree(self, name: str, revision: str) -> Answer:
        found = self.seen(name, revision)
        if not isinstance(found, Repository):
            return found
        files = found.commits.get(revision, found.files).items()
        rows = [
            {"type": "file", "path": x, "size": len(content), "oid": oid_of(content)} for x, content in files
        ]
        return told(rows)

    def file(self, name: str, revision: str, path: str) -> Answer:
        found = self.seen(name, revision)
        if not isinstance(found, Repository):
            return found
        content = found.commits.get(revision, found.files)[path]
        return 200, {"ETag": f'"{oid_of(content)}"', "X-Repo-Commit": revision}, content

    def make(self, body: bytes) -> Answer:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            return told({"url": f"{self.server.url}/{name}"}, 409)
        self.server.add(name, private=asked.get("private", asked.get("visibility") == "private"))
        return told({"url": f"{self.server.url}/{name}", "name": name})

    def check_card(self, body: bytes) -> Answer:
        if "license: x" in json.loads(body)["content"]:
            return told({"errors": [{"message": '"license" must be one of\nthose'}], "warnings": []}, 400)
        return told({"errors": [], "warnings": []})

    def modes(self, name: str, body: bytes) -> Answer:
        files = [{**file, "shouldIgnore": False} for file in json.loads(body)["files"]]
        for file in files:
            file["uploadMode"] = "lfs" if file["path"].endswith(".safetensors") else "regular"
        return told({"files": files})

    def announce(self, name: str, body: bytes) -> Answer:
        asked = json.loads(body)["objects"]
        hrefs = ({"href": f"{self.server.url}/large/{file['oid']}"} for file in asked)
        objects = [{**file, "actions": {"upload": href}} for file, href in zip(asked, hrefs, strict=True)]
        return told({"objects": objects, "transfer": "basic"})

    def store(self, oid: str, body: bytes) -> Answer:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        return told({})

    def commit(self, name: str, body: bytes) -> Answer:
        repository, message = self.server.repositories[name], ""
        files = dict(repository.files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        oid = repository.commit(files, message)
        return told(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"}
        )


NAME = "([^/]+/[^/]+)"
ROUTES = (  # path, answer, whether it takes the right to write
    ("/api/repos/create", Visit.make, True),
    ("/api/validate-yaml", Visit.check_card, True),
    (f"/api/models/{NAME}/preupload/main", Visit.modes, True),
    (f"/{NAME}.git/info/lfs/objects/batch", Visit.announce, True),
    (f"/api/models/{NAME}/commit/main", Visit.commit, True),
    ("/large/(.+)", Visit.store, True),
    (f"/api/models/{NAME}(?:/revision/(.+))?", Visit.info, False),
    (f"/api/models/{NAME}/tree/([^/]+)", Visit.tree, False),
    (f"/{NAME}/resolve/([^/]+)/(.+)", Visit.file, False),
)


def told(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(content).encode()


def oid_of(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
