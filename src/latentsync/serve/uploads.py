"""Bodies of requests, read as they arrive: files go straight to disk, limits are counted on the way, and who stops sending is given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from latentsync.errors import UsageError
from latentsync.serve.problems import TooLarge, TooSlow
from latentsync.serve.sink import Sink, megabytes

TEXT = 1 << 20  # bytes of all fields of a form together, and of a JSON body
PARTS = 100
HEADERS = 8 << 10  # bytes of the headers of one part


@dataclass
class Form:
    """What a form held: the text of its fields, and the files that were written, each with the name it had at its sender."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


async def body(request: Request, *, most: int, patience: float, slowest: int) -> AsyncIterator[bytes]:
    """The blocks of a body. most: bytes (0: any number); patience: seconds of silence; slowest: bytes a second on average once `patience` has passed.

    Raises TooLarge, TooSlow.
    """
    stated = request.headers.get("content-length", "")
    if most and stated.isdigit() and int(stated) > most:
        raise TooLarge(f"the request has {megabytes(int(stated))}; this service takes {megabytes(most)} at most")
    blocks = request.stream().__aiter__()
    began, size = time.monotonic(), 0
    while True:
        try:
            block = await asyncio.wait_for(blocks.__anext__(), patience)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise TooSlow(f"nothing came for {patience:.0f} s, so the request was given up; send it again") from None
        except ClientDisconnect:
            raise TooSlow("the connection ended before the request was whole") from None
        size += len(block)
        if most and size > most:
            raise TooLarge(f"the request has more than the {megabytes(most)} that this service takes")
        passed = time.monotonic() - began
        if passed > patience and size < slowest * passed:
            raise TooSlow(f"the request comes at less than {slowest} bytes a second, so it was given up; send it over a faster connection")
        yield block


async def read_text(request: Request, *, patience: float, slowest: int) -> bytes:
    """A small body, whole."""
    return b"".join([block async for block in body(request, most=TEXT, patience=patience, slowest=slowest)])


class _Parts:
    """What the parser says of one block, in order. It is called back within `write`, where nothing can be awaited, so its words are kept."""

    def __init__(self, boundary: bytes) -> None:
        self.said: list[tuple[str, bytes]] = []
        self.ended = False
        kinds = ("header_field", "header_value", "part_data")
        marks = ("part_begin", "header_end", "headers_finished", "part_end")
        calls: dict[str, Callable[..., None]] = {f"on_{k}": self._data(k) for k in kinds} | {f"on_{m}": self._mark(m) for m in marks}
        self.parser = MultipartParser(boundary, {**calls, "on_end": self._end})  # type: ignore[arg-type]

    def _data(self, kind: str) -> Callable[[bytes, int, int], None]:
        return lambda data, start, end: self.said.append((kind, data[start:end]))

    def _mark(self, kind: str) -> Callable[[], None]:
        return lambda: self.said.append((kind, b""))

    def _end(self) -> None:
        self.ended = True

    def feed(self, block: bytes) -> list[tuple[str, bytes]]:
        self.said = []
        try:
            self.parser.write(block)
        except MultipartParseError as e:
            raise UsageError(f"the body is not a form of the type multipart/form-data: {e}") from e
        return self.said


class _Reader:
    """One form on its way. `place` names the file for an input's name and the name of its upload; a file is written there while it arrives."""

    def __init__(self, place: Callable[[str, str], Path], check: Callable[[], None], most: int, files: int) -> None:
        self.form = Form()
        self._place, self._check, self._most, self._files = place, check, most, files
        self._stack = AsyncExitStack()
        self._sink: Sink | None = None
        self._text: bytearray | None = None
        self._name = ""
        self._headers: dict[bytes, bytes] = {}
        self._field, self._value = bytearray(), bytearray()
        self._parts = self._held = 0

    async def hear(self, kind: str, data: bytes) -> None:
        if kind == "part_data":
            await self._data(data)
        elif kind in ("header_field", "header_value"):
            (self._field if kind == "header_field" else self._value).extend(data)
            self._held += len(data)
            if self._held > HEADERS:
                raise TooLarge("a part of the form has headers of more than 8 KB")
        elif kind == "header_end":
            self._headers[bytes(self._field).lower()] = bytes(self._value)
            self._field, self._value = bytearray(), bytearray()
        elif kind == "part_begin":
            self._headers, self._held, self._sink, self._text = {}, 0, None, None
            self._parts += 1
            if self._parts > PARTS:
                raise TooLarge(f"the form has more than {PARTS} parts")
        elif kind == "headers_finished":
            await self._open()
        elif kind == "part_end":
            await self._close()

    async def _open(self) -> None:
        disposition, given = parse_options_header(self._headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in given:
            raise UsageError("a part of the form has no name")
        self._name = given[b"name"].decode("utf-8", "replace")
        if self._name in self.form.fields or self._name in self.form.files:
            raise UsageError(f"'{self._name[:60]}' is in the form twice")
        if b"filename" not in given:
            self._text = bytearray()
            return
        if len(self.form.files) >= self._files:
            raise TooLarge(f"the form has more than {self._files} files")
        upload = given[b"filename"].decode("utf-8", "replace")
        path = self._place(self._name, upload)
        self._sink = await self._stack.enter_async_context(Sink(path, f"the file '{self._name}'", most=self._most, check=self._check))
        self.form.files[self._name] = path

    async def _data(self, data: bytes) -> None:
        if self._sink is not None:
            await self._sink.write(data)
        elif self._text is not None:
            self._text += data
            if sum(len(v) for v in self.form.fields.values()) + len(self._text) > TEXT:
                raise TooLarge(f"the fields of the form have more than {megabytes(TEXT)}; send files as files, with a name")

    async def _close(self) -> None:
        if self._sink is not None:
            await self._stack.aclose()
            if not self._sink.size:
                raise UsageError(f"the file '{self._name}' is empty (0 bytes)")
        elif self._text is not None:
            try:
                self.form.fields[self._name] = self._text.decode("utf-8")
            except UnicodeDecodeError:
                raise UsageError(f"the field '{self._name[:60]}' is not text in UTF-8") from None

    async def abandon(self) -> None:
        """Close the file at work, whatever it holds."""
        await self._stack.aclose()


async def read_form(
    request: Request, place: Callable[[str, str], Path], *, check: Callable[[], None], most: int, files: int, patience: float, slowest: int
) -> Form:
    """A form of the type multipart/form-data. most: bytes of one file (0: any number); files: how many.

    place: called with an input's name and the name of its upload before the file is written; may raise. check: called now and then while a file
    grows, raises DiskFull. Raises UsageError, TooLarge, TooSlow, DiskFull; the files that were begun are the caller's to delete.
    """
    _, given = parse_options_header(request.headers.get("content-type", ""))
    boundary = given.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise UsageError("the Content-Type multipart/form-data names no boundary; let your HTTP library write that header")
    parts, reader = _Parts(boundary), _Reader(place, check, most, files)
    all_of_it = most * files + TEXT + PARTS * HEADERS if most else 0
    try:
        async for block in body(request, most=all_of_it, patience=patience, slowest=slowest):
            for kind, data in parts.feed(block):
                await reader.hear(kind, data)
    finally:
        await reader.abandon()
    if not parts.ended:
        raise UsageError("the form ends in the middle; send it again")
    return reader.form
