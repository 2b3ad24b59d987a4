"""Where weights are looked for, and what a file says about itself: its digest, its tensors, its notes. No torch needed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from latentsync.errors import WeightsError
from latentsync.weights.releases import RemoteFile

HEX64 = re.compile(r"[0-9a-f]{64}")
CONVERTED = "converted"  # below home: safetensors made from files whose own folder must not or cannot be written


def home_folder(home: str | os.PathLike[str] | None = None) -> Path:
    """The folder downloads go to: the argument, else LATENTSYNC_HOME, else this platform's cache folder."""
    if home is not None:
        return Path(home).expanduser()
    named = os.environ.get("LATENTSYNC_HOME")
    if named:
        return Path(named).expanduser()
    return _cache() / "latentsync"


def _cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def extra_folders() -> list[Path]:
    """Further folders to look in, from LATENTSYNC_WEIGHTS_PATH (separated as in PATH)."""
    return [Path(p).expanduser() for p in os.environ.get("LATENTSYNC_WEIGHTS_PATH", "").split(os.pathsep) if p]


def hub_cache() -> Path:
    """The cache of the Hugging Face tools, whether or not they are installed (HF_HUB_CACHE, HF_HOME, else ~/.cache/huggingface/hub)."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("HF_HOME")
    if base:
        return Path(base).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface" / "hub"


def search_folders(home: Path) -> list[Path]:
    """Folders that are looked through, first wins; the Hugging Face cache comes after them."""
    return [*extra_folders(), home]


def is_converted(path: Path) -> bool:
    """Whether the file is in the form that loads without unpickling."""
    return path.suffix == ".safetensors"


def candidates(remote: RemoteFile, home: Path) -> Iterator[Path]:
    """Paths at which a published file may lie, best first: converted before original, near before far."""
    for folder in search_folders(home):
        for name in (remote.path, *remote.names):
            original = folder / name
            if not is_converted(original):
                yield original.with_suffix(".safetensors")
            yield original
    yield from cached(remote)


def cached(remote: RemoteFile) -> Iterator[Path]:
    """The same file in the Hugging Face cache: the pinned revision first, then any other."""
    if remote.repo is None:
        return
    repo, revision, name = remote.repo
    snapshots = hub_cache() / f"models--{repo.replace('/', '--')}" / "snapshots"
    yield snapshots / revision / name
    if snapshots.is_dir():
        for snapshot in sorted(snapshots.iterdir()):
            if snapshot.name != revision:
                yield snapshot / name


def matches(path: Path, remote: RemoteFile) -> bool:
    """Whether the file is there and can be that published file: judged by its size, or for a conversion by what it says of its source.

    Cheap on purpose, it runs at every start; the digest is checked where it costs nothing beside the other work (download, conversion).
    """
    if not path.is_file():
        return False
    if is_converted(path) and not is_converted(Path(remote.path)):
        notes = metadata(path)
        source = notes.get("latentsync.source_sha256")
        return source is not None and (remote.sha256 is None or source == remote.sha256)
    return remote.size is None or path.stat().st_size == remote.size


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before its data: shapes by tensor name, and notes."""

    shapes: Mapping[str, tuple[int, ...]]
    notes: Mapping[str, str]

    @property
    def tensors(self) -> int:
        return len(self.shapes)

    @property
    def elements(self) -> int:
        total = 0
        for shape in self.shapes.values():
            n = 1
            for side in shape:
                n *= side
            total += n
        return total


def header(path: Path) -> Header:
    """The header of a safetensors file; `WeightsError` where the file is not one or is cut short."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            start = f.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(size - 8, 100_000_000):
                raise WeightsError(f"{path} is not a safetensors file, or is cut short; delete it and fetch or convert it again")
            values = json.loads(f.read(length))
        notes = values.pop("__metadata__", None) or {}
        end = max((entry["data_offsets"][1] for entry in values.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in values.items()}
    except OSError as e:
        raise WeightsError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise WeightsError(f"{path} has a damaged safetensors header ({e}); delete it and fetch or convert it again") from e
    if 8 + length + end > size:
        raise WeightsError(f"{path} is cut short: {size} bytes of {8 + length + end}; delete it and fetch or convert it again")
    return Header(shapes, notes)


def metadata(path: Path) -> Mapping[str, str]:
    """The notes in a safetensors header; none where the file is damaged (loading says so)."""
    try:
        return header(path).notes
    except WeightsError:
        return {}


def digest(path: Path) -> str:
    """sha256 of a file's content, 64 hex digits. Reads all of it."""
    h = hashlib.sha256()
    try:
        with path.open("rb") as f:
            while block := f.read(8 << 20):
                h.update(block)
    except OSError as e:
        raise WeightsError(f"cannot read {path}: {e.strerror or e}") from e
    return h.hexdigest()


def _record(path: Path, home: Path) -> Path:
    return home / "checked" / (hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32] + ".json")


def known_digest(path: Path, home: Path) -> str | None:
    """The sha256 of a file if it was computed before and the file has not changed since, or if its name in the Hugging Face cache is it."""
    real = path.resolve()
    if real.parent.name == "blobs" and HEX64.fullmatch(real.name):
        return real.name
    try:
        kept = json.loads(_record(path, home).read_text(encoding="utf-8"))
        stat = real.stat()
        return str(kept["sha256"]) if kept["size"] == stat.st_size and kept["mtime_ns"] == stat.st_mtime_ns else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_digest(path: Path, home: Path, value: str) -> None:
    """Keep a computed sha256, so that a 5 GB file is read through only once. Not being able to keep it is no error."""
    stat = path.stat()
    target = _record(path, home)
    scratch = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(
            json.dumps({"file": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": value}), encoding="utf-8"
        )
        scratch.replace(target)
    except OSError:
        return  # a read-only home only costs time


def digest_once(path: Path, home: Path) -> str:
    """sha256 of a file, computed at most once for a given content."""
    value = known_digest(path, home)
    if value is None:
        value = digest(path)
        remember_digest(path, home, value)
    return value
