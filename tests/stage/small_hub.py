"""A hub on loopback that has one model: what huggingface_hub asks for, from a folder."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def small_hub(folder: Path, name: str) -> Iterator[str]:
    """Serve `folder` as the model `name`; the hub's address."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{name}/tree/"):
                tree = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}
                    for file in sorted(folder.iterdir())
                ]
                self._answer(200, json.dumps(tree).encode())
                return
            if path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                self._answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
                return
            file = folder / path.rpartition("/")[2]
            if not path.startswith(f"/{name}/resolve/") or not file.is_file():
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data = file.read_bytes()
            headers = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            wanted = self.headers.get("Range", "")
            if wanted.startswith("bytes="):
                begin, _, end = wanted.removeprefix("bytes=").partition("-")
                stop = min(len(data), int(end) + 1 if end else len(data))
                headers["Content-Range"] = f"bytes {begin}-{stop - 1}/{len(data)}"
                self._answer(206, data[int(begin) : stop], headers)
            else:
                self._answer(200, data, headers)

        do_HEAD = do_GET

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
