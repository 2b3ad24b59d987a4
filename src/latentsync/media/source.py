"""Opening files for reading: errors in plain words, no file name ever read as a pattern or an address."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from latentsync.errors import InputError

STILL_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".apng", ".avif", ".heic", ".jxl", ".ppm", ".pgm", ".tga"}
# Containers whose packets carry the times of their frames, so that what is shown when is known without decoding.
TIMED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
_READ_BYTES = 1 << 17

# Titles in the wrong encoding are no reason to refuse a film. PyAV 19 knows no other way and has no word for it.
_TOLERANT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class _Reader:
    """What libav reads from: an open file without its name, so '%03d', 'concat:' and the like mean nothing."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - lives as long as the container
        if path.suffix.lower() not in STILL_SUFFIXES and path.suffix[1:].isalnum() and path.suffix.isascii():
            self.name = f"media{path.suffix.lower()}"  # the suffix is all that probing may know

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _refuse(url: str, flags: int, options: dict[str, str]) -> Any:
    raise InputError(f"the file points at other files ({url}), which are not followed; pass the media file itself")


@contextmanager
def opened(path: Path, *, max_pixels: int = 0) -> Iterator[InputContainer]:
    """An open container, closed on leaving. Raises `InputError` saying what is wrong with the file.

    Looking into a file decodes some of it. With `max_pixels` no larger picture is decoded for that; such a stream may then have a size of 0x0.
    """
    reader = _open_file(path)
    try:
        try:
            limit = {"max_pixels": str(max_pixels)} if max_pixels else {}
            container = av.open(reader, "r", options=limit, buffer_size=_READ_BYTES, io_open=_refuse, **_TOLERANT)
        except av.error.FFmpegError as e:
            raise InputError(_why_unreadable(path, e)) from e
        except (OSError, ValueError) as e:
            raise InputError(f"cannot read {path}: {e}") from e
        try:
            yield container
        finally:
            container.close()
    finally:
        reader.close()


def check_file(path: Path) -> None:
    """Raises `InputError` unless `path` is a regular, non-empty, readable file."""
    try:
        found = os.stat(path)
    except FileNotFoundError as e:
        raise InputError(f"no such file: {path}") from e
    except (OSError, ValueError) as e:
        raise InputError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder; pass a file")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a regular file (a device or pipe); save it to a file first")
    if found.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); copy or record it again")


def _open_file(path: Path) -> _Reader:
    check_file(path)
    try:
        return _Reader(path)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}; check its permissions") from e


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        with open(path, "rb") as f:
            head = f.read(12)
    except OSError:
        head = b""
    if head[4:8] in (b"ftyp", b"mdat", b"wide", b"free"):
        return f"{path} has no index (its 'moov' part is missing or damaged): the recording or download was cut off; copy or export it again"
    return f"{path} is not an audio, video or image file that FFmpeg can read, or its beginning is damaged"


def video_streams(container: InputContainer) -> list[Any]:
    """Moving or still pictures that are content, in file order: cover art is left out."""
    return [s for s in container.streams.video if not _is_cover(s) and s.codec_context is not None]


def has_cover(container: InputContainer) -> bool:
    return any(_is_cover(s) for s in container.streams.video)


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def exif_orientation(path: Path) -> int:
    """EXIF orientation (1-8) of a JPEG, PNG, WebP or TIFF file; 1 where there is none.

    Read here because libav exposes it only in part, and only from FFmpeg 8.1 on. Source: CIPA DC-008 (EXIF 2.32), 4.6.
    """
    try:
        with open(path, "rb") as f:
            return _tiff_orientation(_exif_block(f))
    except (OSError, struct.error):
        return 1


def _exif_block(f: Any) -> bytes:
    head = f.read(12)
    if head[:2] == b"\xff\xd8":
        f.seek(2)
        while True:
            marker, size = struct.unpack(">HH", f.read(4))
            if marker >> 8 != 0xFF or marker in (0xFFDA, 0xFFD9):
                return b""
            body = f.read(size - 2)
            if marker == 0xFFE1 and body.startswith(b"Exif\0\0"):
                return body[6:]
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        f.seek(8)
        while True:
            size, kind = struct.unpack(">I4s", f.read(8))
            if kind == b"eXIf":
                return f.read(size)
            f.seek(size + 4, os.SEEK_CUR)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        while True:
            kind, size = struct.unpack("<4sI", f.read(8))
            if kind == b"EXIF":
                body = f.read(size)
                return body.removeprefix(b"Exif\0\0")
            f.seek(size + size % 2, os.SEEK_CUR)
    if head[:4] in (b"II*\0", b"MM\0*"):
        f.seek(0)
        return f.read(1 << 20)
    return b""


def _tiff_orientation(block: bytes) -> int:
    if len(block) < 8:
        return 1
    order = "<" if block[:2] == b"II" else ">"
    start = struct.unpack_from(order + "I", block, 4)[0]
    for i in range(struct.unpack_from(order + "H", block, start)[0]):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", block, start + 2 + 12 * i)
        if tag == 0x0112 and kind == 3:
            return value if 1 <= value <= 8 else 1
    return 1
