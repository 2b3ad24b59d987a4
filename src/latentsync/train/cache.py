"""Arrays computed once per content: what a file's bytes lead to is kept under their digest, for every worker and every later run."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import time
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from latentsync.errors import InputError

_KEY = re.compile(r"[a-z0-9][a-z0-9.-]{3,199}")
_STALE = 24 * 3600  # seconds after which a scratch file belongs to nobody alive


class Cache:
    """Arrays by key in a folder. Any number of threads, processes and machines may use one folder at a time.

    An entry appears whole or not at all (a scratch file, then a rename), carries its checksum, and is made anew where it is damaged. Where the
    folder cannot be written (full, read-only), arrays are computed again and again, and `note` says so once.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.note = ""  # why nothing is being kept; empty while all is well
        self._sweep()

    def array(self, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array under `key`, from the folder or else from `make`. A key names the content and what was computed from it.

        Keys are of lower-case letters, digits, '-' and '.'. What comes from the folder is bit for bit what `make` gave.
        """
        path = self._path(key)
        found = _read(path)
        if found is not None:
            return found
        made = np.asarray(make(), order="C")
        self.write(path, _packed(made))
        return made

    def text(self, name: str) -> str | None:
        """A note kept beside the arrays under `name`, or None."""
        found = _unsealed(self._path(name))
        return None if found is None else found.decode("utf-8", "surrogateescape")

    def keep_text(self, name: str, text: str) -> None:
        """Keeps a note under `name`, in place of an earlier one."""
        self.write(self._path(name), _sealed(text.encode("utf-8", "surrogateescape")))

    def write(self, path: Path, data: bytes) -> None:
        """Puts `data` in place as a whole; on failure leaves what was there, and notes it."""
        if self.note:
            return
        scratch = self._scratch / uuid.uuid4().hex
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(data)
            scratch.replace(path)
        except OSError as e:
            with suppress(OSError):
                scratch.unlink()
            full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            why = "the disk is full" if full else e.strerror or str(e)
            self.note = f"nothing more is kept in the cache {self.folder}: {why}. Training goes on, slower; free some space or set data.cache"

    @property
    def _scratch(self) -> Path:
        return self.folder / "scratch"

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"'{key}' is no cache key: lower-case letters, digits, '-' and '.' make one")
        spread = hashlib.blake2b(key.encode(), digest_size=1).hexdigest()  # over 256 folders: millions of files in one are slow
        return self.folder / spread / key

    def _sweep(self) -> None:
        """Removes what killed processes left behind."""
        with suppress(OSError):
            for path in self._scratch.iterdir():
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()


def content_digest(path: str | os.PathLike[str]) -> str:
    """32 hex digits of a file's bytes; read once per process for as long as its size and time of change stay. Raises `InputError`."""
    try:
        found = os.stat(path)
        return _digest(os.fspath(path), found.st_size, found.st_mtime_ns)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror or e}") from e


@lru_cache(maxsize=1 << 20)
def _digest(path: str, size: int, changed: int) -> str:
    h = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def _sealed(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little") + data


def _unsealed(path: Path) -> bytes | None:
    """What was sealed in the file; None where it is missing, damaged or unreadable."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    data = raw[4:]
    return data if len(raw) > 4 and zlib.crc32(data).to_bytes(4, "little") == raw[:4] else None


def _packed(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return _sealed(out.getvalue())


def _read(path: Path) -> np.ndarray | None:
    data = _unsealed(path)
    if data is None:
        return None
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError):  # sealed, but by something else
        return None
