"""A file that is written as its bytes arrive, with its limits counted while it grows."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from latentsync.errors import OutputError
from latentsync.jobs.errors import DiskFull
from latentsync.serve.problems import TooLarge

_BLOCK = 1 << 20  # bytes gathered before they are handed to a thread
_LOOK = 64 << 20  # bytes between two looks at the disk


def megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size} bytes"


class Sink:
    """Writes to `path` in another thread, block by block. `name`: what the file is called in messages.

    most: bytes that are taken (0: any number); check: called now and then, raises DiskFull. Raises TooLarge, DiskFull, OutputError.
    """

    def __init__(self, path: Path, name: str, *, most: int, check: Callable[[], None]) -> None:
        self.path, self.size = path, 0
        self._name, self._most, self._check = name, most, check
        self._held = bytearray()
        self._looked = -_LOOK
        try:
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by __aexit__
        except OSError as e:
            raise _why(e, name) from e

    async def __aenter__(self) -> Sink:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                await self._flush()
        finally:
            self._file.close()

    def expect(self, size: int) -> None:
        """Refuse early what is said to be too large. Nothing is believed that is said to be small."""
        if self._most and size > self._most:
            raise TooLarge(f"{self._name} has {megabytes(size)}; this service takes {megabytes(self._most)} at most")

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        self.expect(self.size)
        self._held += data
        if len(self._held) >= _BLOCK:
            await self._flush()

    async def _flush(self) -> None:
        block, self._held = self._held, bytearray()
        try:
            await asyncio.to_thread(self._put, block)
        except OSError as e:
            raise _why(e, self._name) from e

    def _put(self, block: bytearray) -> None:
        if self.size - self._looked >= _LOOK:
            self._looked = self.size
            self._check()
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]


def _why(e: OSError, name: str) -> DiskFull | OutputError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk of this service is full, so {name} was not taken; try again later")
    return OutputError(f"{name} could not be written: {e.strerror or e}")
