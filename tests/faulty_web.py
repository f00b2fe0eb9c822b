"""A real HTTP server on this machine, with faults that tests choose, and what a download leaves."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def sha256(content: bytes) -> str:
    """Return the checksum of a file's content."""
    return hashlib.sha256(content).hexdigest()


def left(folder: Path) -> list[str]:
    """Return what is in the folder of downloaded files, except the lock."""
    return sorted(set(os.listdir(folder)) - {".lock"}) if folder.exists() else []


class Web:
    """A server of files in memory; each answer uses up one of a list of faults, until there are none left.

    A fault is a function of the handler and the content; it sends the whole answer.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Callable]] = {"GET": [], "HEAD": []}
        self.requests: list[tuple[str, str, str | None]] = []
        self.ranges = self.validators = True
        self.headers: dict[str, str] = {}
        self._end = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                web.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self):
        """Stop the server; its address refuses connections from then on."""
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, seconds):
        """Send nothing for some seconds, or until the server stops."""
        self._end.wait(seconds)

    def of(self, method):
        """Return the Range headers of the requests so far."""
        return [asked for known, _, asked in self.requests if known == method]

    def answer(self, handler):
        """Answer correctly, or with the next fault."""
        self.requests.append((handler.command, handler.path, handler.headers["Range"]))
        content = self.files.get(handler.path.lstrip("/"))
        try:
            if self.faults[handler.command]:
                self.faults[handler.command].pop(0)(handler, content)
            elif content is None:
                status(404)(handler, content)
            else:
                self.serve(handler, content)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed or gave up, as some tests intend

    def serve(self, handler, content):
        """Answer as a correct server does."""
        headers, start = self.describe(content), 0
        asked, condition = handler.headers["Range"], handler.headers["If-Range"]
        same = condition in (None, *headers.values())
        if asked and self.ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return send(handler, 416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers |= {"Content-Length": str(len(content) - start)} | self.headers
        return send(handler, 206 if "Content-Range" in headers else 200, headers, content[start:])

    def describe(self, content):
        """Return the headers that distinguish versions of a file."""
        if not self.validators:
            return {}
        return {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Last-Modified": "Mon, 05 Jan 2026 10:00:00 GMT"}


def send(handler, code, headers, body=b""):
    """Send an answer; only its headers to a HEAD request."""
    handler.send_response(code)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


# ---- faults --------------------------------------------------------------------------------------


def status(code, **headers):
    """Answer with a status and no file."""
    return lambda handler, _: send(handler, code, {"Content-Length": "0", **headers})


def page(kind="text/html; charset=utf-8"):
    """Answer with a web page and status 200."""
    body = b"\n<!DOCTYPE html>\n<html><title>Maintenance</title></html>"
    return lambda handler, _: send(handler, 200, {"Content-Type": kind, "Content-Length": str(len(body))}, body)


def truncate(web, n_bytes):
    """Announce the whole file (or the rest), send the first bytes, and close the connection."""

    def fault(handler, content):
        asked = handler.headers["Range"]
        start = int(asked[6:-1]) if asked and web.ranges else 0
        headers = web.describe(content) | {"Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        send(handler, 206 if start else 200, headers, content[start : start + n_bytes])

    return fault


def stall(web, n_bytes, seconds=30):
    """Send the first bytes, then nothing."""

    def fault(handler, content):
        send(handler, 200, web.describe(content) | {"Content-Length": str(len(content))}, content[:n_bytes])
        handler.wfile.flush()
        web.wait(seconds)

    return fault


def trickle(web, n_bytes, pause):
    """Send the whole file, a few bytes at a time."""

    def fault(handler, content):
        send(handler, 200, web.describe(content) | {"Content-Length": str(len(content))})
        for start in range(0, len(content), n_bytes):
            handler.wfile.write(content[start : start + n_bytes])
            handler.wfile.flush()
            time.sleep(pause)

    return fault
