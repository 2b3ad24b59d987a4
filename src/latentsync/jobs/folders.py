"""The files of jobs: one private folder for each, with generated names only; nothing that a visitor wrote becomes a path."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from latentsync.errors import OutputError, UsageError
from latentsync.jobs.errors import DiskFull
from latentsync.jobs.records import FILE

_SUFFIXES = (
    ".mp4 .m4v .mov .qt .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .flv .wmv .ogv .3gp .mxf .y4m "
    ".jpg .jpeg .png .bmp .webp .tif .tiff .gif .apng .avif .heic "
    ".wav .mp3 .m4a .aac .flac .ogg .oga .opus .wma .aif .aiff .amr .ac3 .mka .weba"
)  # others tell nothing about a file's format, and might tell a browser something
SUFFIXES = frozenset(_SUFFIXES.split())
ID = re.compile(r"[A-Za-z0-9_-]{22}")
KIND = re.compile(r"video|audio(-[1-9]\d{0,2})?")
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
LONGEST_NAME = 100  # characters of an upload's name that are kept for people


def new_id() -> str:
    """128 random bits, fit for addresses and file names."""
    return secrets.token_urlsafe(16)


class Folders:
    """The folders below one root, readable for this user only."""

    def __init__(self, root: Path, min_free: int) -> None:
        self.root = root
        self._min_free = min_free

    def prepare(self) -> None:
        """Make the root, readable for this user only; one that is there stays as it is. Raises OutputError where that cannot be done."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.jobs.mkdir(mode=0o700, exist_ok=True)
            self.jobs.chmod(0o700)
        except OSError as e:
            raise OutputError(f"cannot keep jobs in {self.root}: {e.strerror or e}; choose another folder") from e

    @property
    def jobs(self) -> Path:
        """Where the folders of jobs lie."""
        return self.root / "jobs"

    @property
    def database(self) -> Path:
        """Where SQLite's file lies, unless another database is named."""
        return self.root / "jobs.sqlite"

    def make_database(self) -> Path:
        """The same file, there, and for this user only; SQLite gives its log the same rights. Raises OutputError."""
        with plain_errors():
            os.close(os.open(self.database, os.O_RDWR | os.O_CREAT, 0o600))
        return self.database

    def of(self, job: str) -> Path:
        """A job's folder, whether or not it is there. Raises UsageError for what is no id."""
        if not ID.fullmatch(job):
            raise UsageError(f"'{job}' is not the id of a job")
        return self.jobs / job

    def make(self) -> tuple[str, Path]:
        """(id, a new folder). Raises DiskFull, OutputError."""
        self.check_space()
        job = new_id()
        folder = self.of(job)
        with plain_errors():
            folder.mkdir(mode=0o700)
        return job, folder

    def free(self) -> int:
        """Bytes that may still be written."""
        return shutil.disk_usage(self.root).free

    def check_space(self, size: int = 0) -> None:
        """Raises DiskFull where `size` more bytes would leave less than is to stay free."""
        with plain_errors():
            free = self.free()
        if free - size < self._min_free:
            raise DiskFull(f"the disk is almost full ({max(free, 0) / (1 << 30):.1f} GiB free): no more jobs are taken until some have expired")

    def delete(self, job: str) -> None:
        """With all that is in it; no matter if it is not there."""
        shutil.rmtree(self.of(job), ignore_errors=True)

    def orphans(self, known: Callable[[Collection[str]], set[str]], older: float) -> Iterator[str]:
        """Ids of folders that nothing was written to for `older` seconds, and that `known` does not give back."""
        now = time.time()
        idle: list[str] = []
        with suppress(OSError), os.scandir(self.jobs) as found:
            idle = [entry.name for entry in found if ID.fullmatch(entry.name) and now - _touched(Path(entry.path)) > older]
        lost = sorted(set(idle) - known(idle))
        yield from (job for job in lost if now - _touched(self.of(job)) > older)  # not one that was handed in just now


def _touched(folder: Path) -> float:
    """When the folder or a file in it was last written to."""
    times = [0.0]
    with suppress(OSError):
        times.append(folder.stat().st_mtime)
        with os.scandir(folder) as found:
            times += [entry.stat(follow_symlinks=False).st_mtime for entry in found]
    return max(times)


class Draft:
    """A job's folder while its files come in. Its id becomes that of the job."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self.id, self.folder = folders.make()
        self.names: dict[str, str] = {}

    def path(self, name: str, kind: str) -> Path:
        """Where to write an upload called `name`, as a `kind`: video, audio, audio-2, ... A later one of a kind takes the place of the earlier."""
        if not KIND.fullmatch(kind):
            raise UsageError(f"'{kind}' is not a kind of file: video, audio, audio-2, ...")
        called = shown(name)
        suffix = Path(called).suffix.lower()
        for file in [f for f in self.names if Path(f).stem == kind]:
            del self.names[file]
            (self.folder / file).unlink(missing_ok=True)
        file = kind + (suffix if suffix in SUFFIXES else "")
        self.names[file] = called or file
        return self.folder / file

    def adopt(self, path: str | Path, kind: str, name: str = "") -> Path:
        """Take over a file that lies elsewhere: it is moved. Raises OutputError, DiskFull."""
        target = self.path(name or Path(path).name, kind)
        with plain_errors():
            try:
                os.replace(path, target)
            except OSError as e:
                if e.errno != errno.EXDEV:
                    raise
                self._copy(Path(path), target)
                os.unlink(path)
        return target

    def copy(self, path: str | Path, kind: str, name: str = "") -> Path:
        """Take a copy of a file that lies elsewhere. Raises OutputError, DiskFull."""
        target = self.path(name or Path(path).name, kind)
        with plain_errors():
            self._copy(Path(path), target)
        return target

    def _copy(self, path: Path, target: Path) -> None:
        self._folders.check_space(path.stat().st_size)
        shutil.copyfile(path, target)

    def check_space(self) -> None:
        """Raises DiskFull where the disk is almost full; to be asked between the blocks of an upload."""
        self._folders.check_space()

    def settle(self) -> None:
        """See to it that what was written outlives a loss of power. Raises OutputError, DiskFull."""
        with plain_errors():
            folders = [] if sys.platform == "win32" else [self.folder]  # there they cannot be opened
            for place in [*(self.folder / f for f in self.names), *folders]:
                handle = os.open(place, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            os.utime(self.folder)

    def discard(self) -> None:
        """Delete it."""
        self._folders.delete(self.id)


def shown(name: str) -> str:
    """An upload's name as people may see it: its last part, without control characters, not too long."""
    last = re.split(r"[/\\]", name)[-1]
    clean = "".join(c for c in last if unicodedata.category(c)[0] != "C").strip()
    stem, suffix = os.path.splitext(clean)
    return stem[: LONGEST_NAME - len(suffix)] + suffix if len(suffix) <= 10 else clean[:LONGEST_NAME]


def is_input(name: str) -> bool:
    """Whether a file of a job's folder came from its owner."""
    return bool(FILE.fullmatch(name))


def for_people(text: str, folder: Path, names: Mapping[str, str]) -> str:
    """The sentence of an error without paths of this machine: inputs are called as their owner called them."""
    for file, name in names.items():
        text = text.replace(str(folder / file), name)
    return text.replace(f"{folder}/", "").replace(str(folder), "the job's folder")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Within it, an OSError is an OutputError, and DiskFull where it is that."""
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            raise DiskFull("the disk is full: no more jobs are taken until some have expired") from e
        raise OutputError(f"the files of jobs cannot be kept: {e.strerror or e}") from e
