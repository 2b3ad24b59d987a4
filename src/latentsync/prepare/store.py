"""The folder of the results, by relative names: everything in it appears whole or not at all.

`Local` is a folder. `Remote` is any address that fsspec knows (an extra), such as s3://bucket/clips; its files are fetched into a folder of this
machine when a step needs them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from latentsync.errors import InputError, OutputError, UsageError

SCRATCH = ".work/scratch"
# Here an object is put in place as a whole; elsewhere a scratch name and a rename do that.
_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory"}


class Store(Protocol):
    """Where results lie. Names are relative, with '/'."""

    place: str  # the whole folder

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put bytes in place of what was there, whole or not at all."""
        ...

    def put(self, file: Path, name: str) -> None:
        """Move a local file in."""
        ...

    def get(self, name: str) -> Path:
        """A local path of a file, fetched if need be. Raises InputError where it is missing."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def link(self, name: str, other: str) -> None:
        """Give a file a second name, in place of what was there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or a folder that is there."""
        ...

    def names(self, folder: str) -> list[str]:
        """The files and folders right in a folder, sorted; none where it is missing."""
        ...

    def scratch(self) -> Any:
        """A context: a fresh local folder that vanishes afterwards, from which `put` is quick."""
        ...


def open_store(place: str | os.PathLike[str]) -> Store:
    """The store of a folder or an address."""
    text = os.fspath(place)
    return Remote(text) if is_remote(text) else Local(Path(text).expanduser().absolute())


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is an address ("s3://bucket/folder") and no folder."""
    scheme, colon, _ = os.fspath(place).partition("://")
    return bool(colon) and len(scheme) > 1 and scheme.replace("+", "").replace("-", "").isalnum()


def filesystem(place: str) -> tuple[Any, str]:
    """(fsspec's file system of an address, the path in it). Raises UsageError where that takes packages that are not here."""
    try:
        import fsspec
    except ImportError as e:
        raise UsageError(f'{place} takes the package fsspec; run: pip install "latentsync[cluster]"') from e
    try:
        system, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as e:
        raise UsageError(f"{place} cannot be reached: {e}") from e
    return system, str(path).rstrip("/")


class Local:
    """A folder of this machine, or one that all machines share."""

    def __init__(self, root: Path) -> None:
        self.root, self.place = root, str(root)

    def read(self, name: str) -> bytes | None:
        """See Store."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """See Store."""
        with _plain(self.place):
            scratch = self._fresh()
            try:
                with open(scratch, "xb") as f:
                    f.write(data)
                self._replace(scratch, name)
            finally:
                scratch.unlink(missing_ok=True)

    def put(self, file: Path, name: str) -> None:
        """See Store. It is on the disk before it has its name; records, which come after it, need not be: a torn one counts as none."""
        with _plain(self.place):
            with open(file, "rb+") as f:
                os.fsync(f.fileno())
            self._replace(file, name)

    def get(self, name: str) -> Path:
        """See Store."""
        path = self.root / name
        if not path.is_file():
            raise InputError(f"{path} is missing")
        return path

    def has(self, name: str) -> bool:
        """See Store."""
        return (self.root / name).is_file()

    def link(self, name: str, other: str) -> None:
        """See Store. A hard link, or a copy where the file system knows none."""
        source, target = self.root / name, self.root / other
        with _plain(self.place):
            with suppress(FileNotFoundError):
                there, wanted = target.stat(), source.stat()
                if os.path.samestat(there, wanted) or (there.st_size, there.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns):
                    return
            scratch = self._fresh()
            try:
                try:
                    os.link(source, scratch)
                except OSError:
                    shutil.copy2(source, scratch)
                self._replace(scratch, other)
            finally:
                scratch.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See Store."""
        path = self.root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """See Store."""
        try:
            return sorted(os.listdir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """See Store."""
        with _plain(self.place):
            folder = self._fresh()
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _fresh(self) -> Path:
        place = self.root / SCRATCH
        place.mkdir(parents=True, exist_ok=True)
        return place / uuid.uuid4().hex

    def _replace(self, file: Path, name: str) -> None:
        target = self.root / name
        for _ in range(3):  # the folder may be swept away meanwhile
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                os.replace(file, target)
                return
        os.replace(file, target)


class Remote:
    """A folder behind an address. Objects are put whole; fetched ones stay in a folder of this machine until the process ends."""

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/")
        self.system, self.root = filesystem(place)
        scheme = self.system.protocol if isinstance(self.system.protocol, str) else self.system.protocol[0]
        self._whole = scheme in _WHOLE
        self._here: tempfile.TemporaryDirectory[str] | None = None

    def read(self, name: str) -> bytes | None:
        """See Store."""
        try:
            data: bytes = self.system.cat_file(self._at(name))
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """See Store."""
        with _plain(self.place):
            self._settle(name, lambda at: self.system.pipe_file(at, data))

    def put(self, file: Path, name: str) -> None:
        """See Store."""
        with _plain(self.place):
            self._settle(name, lambda at: self.system.put_file(str(file), at))
        kept = self._kept(name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, kept)  # the next step of this process needs it

    def get(self, name: str) -> Path:
        """See Store."""
        kept = self._kept(name)
        if not kept.is_file():
            fetch(self.system, self._at(name), kept)
        return kept

    def has(self, name: str) -> bool:
        """See Store."""
        return bool(self.system.isfile(self._at(name)))

    def link(self, name: str, other: str) -> None:
        """See Store. A copy, made by the far side where it can."""
        with _plain(self.place):
            self._settle(other, lambda at: self.system.cp_file(self._at(name), at))

    def remove(self, name: str) -> None:
        """See Store."""
        self._kept(name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self.system.rm(self._at(name), recursive=True)

    def names(self, folder: str) -> list[str]:
        """See Store."""
        self.system.invalidate_cache()
        try:
            found = self.system.ls(self._at(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({PurePosixPath(f).name for f in found} - {PurePosixPath(folder).name, ""})

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """See Store."""
        with tempfile.TemporaryDirectory(prefix="latentsync-prepare-") as folder:
            yield Path(folder)

    def forget(self) -> None:
        """Let go of what was fetched."""
        if self._here is not None:
            self._here.cleanup()
            self._here = None

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _kept(self, name: str) -> Path:
        if self._here is None:
            self._here = tempfile.TemporaryDirectory(prefix="latentsync-prepare-")
        return Path(self._here.name, name)

    def _settle(self, name: str, way: Any) -> None:
        target = self._at(name)
        self.system.makedirs(self.system._parent(target), exist_ok=True)
        if self._whole:
            way(target)
            return
        scratch = self._at(f"{SCRATCH}/{uuid.uuid4().hex}")
        self.system.makedirs(self.system._parent(scratch), exist_ok=True)
        way(scratch)
        self.system.mv(scratch, target)


def fetch(system: Any, far: str, near: Path) -> None:
    """Bring a file of an fsspec file system here, whole or not at all. Raises InputError."""
    scratch = near.with_name(f".{near.name}.{uuid.uuid4().hex}")
    try:
        near.parent.mkdir(parents=True, exist_ok=True)
        system.get_file(far, str(scratch))
        scratch.replace(near)
    except OSError as e:
        raise InputError(f"cannot fetch {far}: {e.strerror or e}") from e
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def _plain(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OutputError(f"cannot write in {place}: {e.strerror or e}; make room, check permissions, or name another folder") from e


def digest(path: Path) -> str:
    """32 hex digits of a file's bytes. Raises InputError."""
    h = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as f:
            while block := f.read(1 << 20):
                h.update(block)
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror or e}") from e
    return h.hexdigest()
