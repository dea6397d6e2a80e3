"""Servers on the loopback for data that lie far away: S3 (moto), a web server that gives ranges, and a connection that
breaks or is slow before either."""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import unquote


@contextmanager
def s3() -> Iterator[str]:
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@contextmanager
def web(
    files: dict[str, bytes], asked: list[tuple[str, str]] | None = None, ranges: bool = True, **says: str
) -> Iterator[str]:
    """The address of a web server. `asked` gets (path, range) of each request for bytes, `says` headers of its own.
    ranges: whether it serves parts of a file, as `python -m http.server` does not."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            if asked is not None:
                asked.append((self.path, self.headers.get("Range", "")))
            self._answer(body=True)

        def _answer(self, body: bool):
            data = files.get(unquote(self.path).lstrip("/").partition("?")[0])
            if data is None:
                self.send_error(404)
                return
            span = self.headers.get("Range") if ranges else None
            first, last = (int(n) for n in span.removeprefix("bytes=").split("-")) if span else (0, len(data) - 1)
            part = data[first : last + 1]
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", f'"{hash(data)}"')
            for name, value in says.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if body:
                self.wfile.write(part)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def hub(repo: str, revision: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """What a web server has to hold to answer as the Hugging Face hub does of a data set: that it is there, what is in
    each folder, and its files."""
    answers = {f"datasets/{repo}/resolve/{revision}/{name}": data for name, data in files.items()}
    answers |= dict.fromkeys(
        (f"api/datasets/{repo}", f"api/datasets/{repo}/revision/{revision}"), b'{"id": "%s"}' % repo.encode()
    )
    entries = [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in files.items()
    ]
    folders = {str(folder) for name in files for folder in PurePosixPath(name).parents} - {"."}
    entries += [{"type": "directory", "path": folder, "size": 0, "oid": "0"} for folder in folders]
    for folder in folders:
        inside = [entry for entry in entries if entry["path"].startswith(f"{folder}/")]
        answers[f"api/datasets/{repo}/tree/{revision}/{folder}"] = json.dumps(inside).encode()
    return answers


class Wire:
    """A connection to the server at an address. `fault` says what happens to it: None, "closed" (nothing comes), "cut" (it
    ends after some of the answer's bytes) or "slow" (a few bytes now and then); `times` how often."""

    def __init__(self, address: str):
        host, port = address.removeprefix("http://").split(":")
        self._target = host, int(port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.fault: str | None = None
        self.times = 0
        self.broken = 0  # connections that had a fault
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def breaks(self, fault: str, times: int = 10**9) -> None:
        self.fault, self.times = fault, times

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        far = socket.create_connection(self._target)
        threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
        self._pump(far, near, True)

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                fault = None
                if answers and self.times > 0:
                    fault, self.times, self.broken = self.fault, self.times - 1, self.broken + 1
                if fault == "closed":
                    break
                if fault == "cut":
                    target.sendall(data[: len(data) // 2])
                    break
                if fault == "slow":
                    for byte in data[:100]:
                        target.sendall(bytes([byte]))
                        time.sleep(0.2)
                    break
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()
