"""A server on this machine that speaks as much of S3 as fsspec's s3fs asks for; objects live in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

WHEN = "2026-01-01T00:00:00.000Z"


class Handler(BaseHTTPRequestHandler):
    """One request. `objects` maps "bucket/key" to bytes."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | {k.replace("_", "-"): v for k, v in headers.items()}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def xml(self, inner: str) -> None:
        self.answer(200, f'<?xml version="1.0" encoding="UTF-8"?>{inner}'.encode(), Content_Type="application/xml")

    def missing(self) -> None:
        self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>not here</Message></Error>", Content_Type="application/xml")

    @property
    def key(self) -> str:
        self.asked.append(f"{self.command} {self.path}")
        return unquote(urlsplit(self.path).path).strip("/")

    @property
    def query(self) -> dict[str, str]:
        return {k: v[0] for k, v in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" in (self.headers.get("Content-Encoding") or ""):  # size in hex, data, and again
            out, at = b"", 0
            while size := int(data[at : (end := data.index(b"\r\n", at))].split(b";")[0], 16):
                out, at = out + data[end + 2 : end + 2 + size], end + 4 + size
            return out
        return data

    def do_HEAD(self) -> None:
        key = self.key
        if key in self.objects:
            self.give(key)
        elif "/" not in key:
            self.answer(200)
        else:
            self.missing()

    def do_GET(self) -> None:
        key = self.key
        if "/" not in key:
            self.listing(key)
        elif key in self.objects:
            self.give(key)
        else:
            self.missing()

    def give(self, key: str) -> None:
        data, status, more = self.objects[key], 200, {}
        if (asked := self.headers.get("Range")) is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data)), len(data) - 1)
            more = {"Content_Range": f"bytes {first}-{end}/{len(data)}"}
            data, status = data[int(first) : end + 1], 206
        self.answer(status, data, ETag=f'"{tag(self.objects[key])}"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT", **more)

    def listing(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        entries, folders = [], set()
        for name in sorted(self.objects):
            place, _, key = name.partition("/")
            if place == bucket and key.startswith(prefix):
                head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                if found:
                    folders.add(prefix + head + delimiter)
                else:
                    size = len(self.objects[name])
                    about = f"<LastModified>{WHEN}</LastModified><ETag>&quot;{tag(self.objects[name])}&quot;</ETag><Size>{size}</Size>"
                    entries.append(f"<Contents><Key>{escape(key)}</Key>{about}</Contents>")
        shared = "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        count = len(entries) + len(folders)
        self.xml(f"<ListBucketResult><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>{''.join(entries)}{shared}</ListBucketResult>")

    def do_PUT(self) -> None:
        key, data = self.key, self.body()
        if (source := self.headers.get("x-amz-copy-source")) is not None:
            name = unquote(source).split("?")[0].strip("/")
            if name not in self.objects:
                self.missing()
                return
            self.objects[key] = self.objects[name]
            self.xml(f"<CopyObjectResult><LastModified>{WHEN}</LastModified><ETag>&quot;{tag(self.objects[key])}&quot;</ETag></CopyObjectResult>")
            return
        self.objects[key] = data
        self.answer(200, ETag=f'"{tag(data)}"')

    def do_POST(self) -> None:
        bucket = self.key
        for found in ElementTree.fromstring(self.body()).iter():
            if found.tag.rpartition("}")[2] == "Key":
                self.objects.pop(f"{bucket}/{found.text}", None)
        self.xml("<DeleteResult></DeleteResult>")

    def do_DELETE(self) -> None:
        self.objects.pop(self.key, None)
        self.answer(204)


def tag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """(address, objects by "bucket/key") of a server that runs for as long as the context does."""
    objects: dict[str, bytes] = {}
    kind = type("Bound", (Handler,), {"objects": objects, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", objects
    finally:
        server.shutdown()
        server.server_close()
