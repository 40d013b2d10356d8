"""A hub on this machine: what huggingface_hub asks for when it lists and fetches files."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories served on loopback.

    Attributes:
        files: repository -> revision -> name -> the file.
        refused: repository -> status and headers that its files are answered with; where it has
            none in `files`, its listing, too.
        asked: methods and paths of the requests.
        address: for HF_ENDPOINT.
    """

    def __init__(self):
        self.files: dict[str, dict[str, dict[str, Path]]] = {}
        self.refused: dict[str, tuple[int, dict[str, str]]] = {}
        self.asked: list[str] = []
        self.address = ""

    def add(self, repository: str, *files: Path, revision: str = "main") -> None:
        self.files.setdefault(repository, {})[revision] = {file.name: file for file in files}


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Yields a hub that is there until the block ends."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            is_listing = parts[:2] == ["api", "models"]
            parts = parts[2:] if is_listing else parts
            repository, rest = "/".join(parts[:2]), parts[2:]
            if repository in hub.refused and not (is_listing and repository in hub.files):
                return self.fail(*hub.refused[repository])
            if repository not in hub.files:
                return self.fail(404, {"X-Error-Code": "RepoNotFound"})
            revisions = hub.files[repository]
            if rest == ["refs"]:
                names = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": COMMIT}
                         for n in revisions]  # fmt: skip
                return self.json({"branches": names, "tags": [], "converts": []}, body)
            revision = rest[1] if len(rest) > 1 else "main"
            if revision == COMMIT:
                revision = "main"
            if revision not in revisions:
                return self.fail(404, {"X-Error-Code": "RevisionNotFound"})
            found = revisions[revision]
            if is_listing:
                siblings = [{"rfilename": name} for name in found]
                return self.json({"id": repository, "sha": COMMIT, "siblings": siblings}, body)
            name = "/".join(rest[2:])
            if name not in found:
                return self.fail(404, {"X-Error-Code": "EntryNotFound"})
            return self.send(found[name].read_bytes(), body)

        def send(self, data: bytes, body: bool, kind: str = "application/octet-stream") -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def json(self, value: object, body: bool) -> None:
            self.send(json.dumps(value).encode(), body, "application/json")

        def fail(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(hub: Hub, cache: Path, monkeypatch, *, offline: bool = False) -> None:
    """Makes huggingface_hub, which reads its variables when it is imported, use a hub."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
