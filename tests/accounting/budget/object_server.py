"""A server that speaks as much of Cloud Storage's JSON API as the budget store uses, over real sockets.

What it keeps is checked as the real one checks it: conditions on the generation under one lock, checksums of uploads,
pages of listings. Buckets are made by their first use; some names stand for failures, see `REFUSED`. Run as a program
it prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

# What the server says must never reach a user's error message.
CANARY = "texts-of-the-server"
REFUSED = {"forbidden": 403, "missing": 404, "odd": 400, "limited": 429, "broken": 503}
# Stores what it is sent, and then says that it failed.
FORGETFUL = "forgetful"
PAGE = 3
# Seconds that its clock is ahead of this machine's.
CLOCK_AHEAD = 300

_OBJECTS = re.compile(r"/storage/v1/b/(?P<bucket>[^/]+)/o")
_DOWNLOAD = re.compile(r"/download/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)")
_UPLOAD = re.compile(r"/upload/storage/v1/b/(?P<bucket>[^/]+)/o")


class RefusedError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Stored:
    data: bytes
    generation: int
    properties: dict[str, str]

    @property
    def hashes(self) -> dict[str, str]:
        return hashes_of(self.data)


def hashes_of(data: bytes) -> dict[str, str]:
    return {
        "crc32c": base64.b64encode(google_crc32c.Checksum(data).digest()).decode(),
        "md5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
    }


@dataclass
class Session:
    """A resumable upload: its condition holds when it ends, not when it begins."""

    bucket: str
    metadata: dict[str, str]
    condition: int | None
    data: bytearray = field(default_factory=bytearray)


class ObjectStore:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[tuple[str, str], Stored] = {}
        self._generation = 1_700_000_000_000_000
        self.sessions: dict[str, Session] = {}

    def put(self, bucket: str, metadata: dict[str, str], data: bytes, condition: int | None) -> dict[str, object]:
        hashes = hashes_of(data)
        if metadata.get("crc32c", hashes["crc32c"]) != hashes["crc32c"]:
            raise RefusedError(400)
        if metadata.get("md5Hash", hashes["md5"]) != hashes["md5"]:
            raise RefusedError(400)
        key = (bucket, metadata["name"])
        with self._lock:
            present = self._objects.get(key)
            if condition is not None and condition != (present.generation if present else 0):
                raise RefusedError(412)
            self._generation += 1
            self._objects[key] = Stored(data, self._generation, metadata)
            return self._resource(key)

    def get(self, bucket: str, name: str) -> Stored:
        with self._lock:
            if (bucket, name) not in self._objects:
                raise RefusedError(404)
            return self._objects[bucket, name]

    def page(self, bucket: str, prefix: str, delimiter: str, after: str, limit: int) -> dict[str, object]:
        with self._lock:
            names = sorted(
                name
                for owner, name in self._objects
                if owner == bucket
                and name.startswith(prefix)
                and name > after
                and not (delimiter and delimiter in name[len(prefix) :])
            )
            answer: dict[str, object] = {"items": [self._resource((bucket, name)) for name in names[:limit]]}
            if len(names) > limit:
                answer["nextPageToken"] = names[limit - 1]
            return answer

    def _resource(self, key: tuple[str, str]) -> dict[str, object]:
        stored = self._objects[key]
        hashes = stored.hashes
        return {
            "kind": "storage#object",
            "bucket": key[0],
            "name": key[1],
            "generation": str(stored.generation),
            "metageneration": "1",
            "size": str(len(stored.data)),
            "crc32c": hashes["crc32c"],
            "md5Hash": hashes["md5"],
            **{part: stored.properties[part] for part in ("contentType", "cacheControl") if part in stored.properties},
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ObjectStore

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def _answer(self, act: Callable[[], None]) -> None:
        # Read whatever comes, so that the connection stays usable when it is refused.
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self.route, self.query = url.path, {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            if "Authorization" in self.headers:
                raise RefusedError(401)
            act()
        except RefusedError as refused:
            self._json({"error": {"code": refused.code, "message": CANARY}}, refused.code)

    def _get(self) -> None:
        if listing := _OBJECTS.fullmatch(self.route):
            limit = min(PAGE, int(self.query.get("maxResults", PAGE)))
            page = self.store.page(
                self._bucket(listing),
                self.query.get("prefix", ""),
                self.query.get("delimiter", ""),
                self.query.get("pageToken", ""),
                limit,
            )
            return self._json(page)
        if download := _DOWNLOAD.fullmatch(self.route):
            stored = self.store.get(self._bucket(download), unquote(download["name"]))
            hashes = stored.hashes
            return self._send(
                200,
                stored.data,
                {
                    "Content-Type": stored.properties.get("contentType", "application/octet-stream"),
                    "Cache-Control": stored.properties.get("cacheControl", "public, max-age=3600"),
                    "X-Goog-Generation": str(stored.generation),
                    "X-Goog-Hash": f"crc32c={hashes['crc32c']},md5={hashes['md5']}",
                },
            )
        raise RefusedError(501)

    def _post(self) -> None:
        upload = _UPLOAD.fullmatch(self.route)
        if upload is None:
            raise RefusedError(501)
        bucket = self._bucket(upload)
        condition = int(self.query["ifGenerationMatch"]) if "ifGenerationMatch" in self.query else None
        if self.query["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            metadata, media = BytesParser().parsebytes(head + self.body).get_payload()
            fields = json.loads(metadata.get_payload(decode=True))
            resource = self.store.put(bucket, fields, media.get_payload(decode=True), condition)
            if bucket == FORGETFUL:
                raise RefusedError(503)
            return self._json(resource)
        if self.query["uploadType"] == "resumable":
            key = f"session-{len(self.store.sessions)}"
            self.store.sessions[key] = Session(bucket, json.loads(self.body), condition)
            host, port = self.server.server_address[:2]
            return self._send(200, b"", {"Location": f"http://{host}:{port}/upload/{key}"})
        raise RefusedError(501)

    def _put(self) -> None:
        session = self.store.sessions.get(self.route.removeprefix("/upload/"))
        if session is None:
            raise RefusedError(404)
        session.data += self.body
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or len(session.data) < int(total):
            return self._send(308, b"", {"Range": f"bytes=0-{len(session.data) - 1}"})
        return self._json(self.store.put(session.bucket, session.metadata, bytes(session.data), session.condition))

    def _bucket(self, match: re.Match[str]) -> str:
        if match["bucket"] in REFUSED:
            raise RefusedError(REFUSED[match["bucket"]])
        return match["bucket"]

    def _json(self, value: object, code: int = 200) -> None:
        self._send(code, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        # Another clock than that of the tests' machine.
        return super().date_time_string(time.time() + CLOCK_AHEAD)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests of a test are no news."""


class ManyServer(ThreadingHTTPServer):
    # Twenty writers at once, with the default of five waiting connections, would be told that nobody listens.
    request_queue_size = 64
    daemon_threads = True


if __name__ == "__main__":
    Handler.store = ObjectStore()
    server = ManyServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
