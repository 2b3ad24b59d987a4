"""The footage: a folder, a list of files, or an address that fsspec knows. It is only ever read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from latentsync.errors import InputError
from latentsync.media.clip import VIDEO_SUFFIXES
from latentsync.prepare.store import digest, fetch, filesystem, is_remote
from latentsync.train.clips import video_files


class Item(NamedTuple):
    """A file of the footage."""

    name: str  # relative to the footage's folder
    path: str  # or address
    mark: str  # of its size and time of change; another mark: read its bytes anew
    size: int  # bytes


def find(raw: str) -> tuple[list[Item], list[tuple[str, str]]]:
    """(files with a video's suffix, by name; (name, reason) of what could not be looked into). Raises InputError where there is nothing."""
    if is_remote(raw):
        return _find_remote(raw), []
    paths, unseen = video_files(raw)
    root = Path(raw).expanduser()
    root = root if root.is_dir() else root.parent
    items = []
    missing = [(_named(bad.path, root), bad.reason) for bad in unseen]
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as e:
            missing.append((_named(path, root), "there is no such file" if isinstance(e, FileNotFoundError) else f"cannot be read: {e.strerror}"))
            continue
        items.append(Item(_named(path, root), os.path.abspath(path), f"{stat.st_size}-{stat.st_mtime_ns}", stat.st_size))
    return sorted(items), missing


def _named(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix() if path.is_relative_to(root) else path.as_posix()


def _find_remote(raw: str) -> list[Item]:
    system, root = filesystem(raw)
    try:
        found = system.find(root, detail=True)
    except OSError as e:
        raise InputError(f"cannot look into {raw}: {e.strerror or e}") from e
    items = []
    for path, about in found.items():
        if PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES and not PurePosixPath(path).name.startswith("."):
            mark = about.get("ETag") or about.get("etag") or about.get("mtime") or about.get("LastModified") or about.get("created") or ""
            size = int(about.get("size") or 0)
            items.append(Item(str(PurePosixPath(path).relative_to(root)), system.unstrip_protocol(path), f"{size}-{mark}", size))
    if not items:
        raise InputError(f"no clips in {raw}: videos end in {', '.join(sorted(VIDEO_SUFFIXES))}")
    return sorted(items)


class Fetched:
    """The file that a process works on, here. Of files behind an address the last one is kept until another is wanted."""

    def __init__(self) -> None:
        self._address = ""
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def path(self, place: str) -> Path:
        """A local path of the file. Raises InputError."""
        if not is_remote(place):
            return Path(place)
        if place != self._address:
            self.forget()
            system, far = filesystem(place)
            self._folder = tempfile.TemporaryDirectory(prefix="latentsync-raw-")
            fetch(system, far, Path(self._folder.name, PurePosixPath(far).name))
            self._address = place
        assert self._folder is not None
        return Path(self._folder.name, PurePosixPath(place).name)

    def digest(self, place: str) -> str:
        """32 hex digits of its bytes. Raises InputError."""
        return digest(self.path(place))

    def forget(self) -> None:
        """Let go of what was fetched."""
        if self._folder is not None:
            self._folder.cleanup()
        self._address, self._folder = "", None
