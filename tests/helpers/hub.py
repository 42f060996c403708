"""A stand-in for the Hugging Face hub: a server on this machine with one dataset."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATASET = "org/corpus"


@contextmanager
def serve_dataset(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve the files of DATASET at COMMIT; yields the address, for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            path, content, headers = self.path.partition("?")[0], None, {}
            if path in (f"/api/datasets/{DATASET}/revision/{name}" for name in ("main", COMMIT)):
                siblings = [{"rfilename": name} for name in files]
                content = json.dumps({"id": DATASET, "sha": COMMIT, "siblings": siblings}).encode()
            elif path == f"/api/datasets/{DATASET}/tree/{COMMIT}":
                tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": name} for name in files]
                content = json.dumps(tree).encode()
            elif path.startswith(f"/datasets/{DATASET}/resolve/{COMMIT}/"):
                content = files.get(path.rpartition(f"/{COMMIT}/")[2])
            if content is None:
                self.send_response(404)
                headers = {"X-Error-Code": "RepoNotFound", "Content-Length": "0"}
            else:
                self.send_response(200)
                etag = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if body and content:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
