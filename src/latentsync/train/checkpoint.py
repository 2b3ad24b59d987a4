"""Checkpoints on disk: they appear whole or not at all, are known again by their digests, and old ones make room.

root/step-00001000/ holds whatever the training writes, and manifest.json with size and sha256 of every file. A checkpoint is written under a
hidden name beside its place, brought to the disk, and renamed: a process that is killed leaves at most a hidden folder, which the next one
removes. One lock per root keeps two processes from meeting.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pickle
import random
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentsync.errors import OutputError, WeightsError
from latentsync.hub import locked

MANIFEST = "manifest.json"
FORMAT = 1
FOLDER = "checkpoints"  # of a run, where its checkpoints lie
_NAME = re.compile(r"step-(\d+)")
_HIDDEN = re.compile(r"\.step-\d+\.[0-9a-f]{32}")  # being written, or on its way out


def save(root: Path, step: int, write: Callable[[Path], None], *, keep: int, keep_every: int) -> Path:
    """Make root/step-<step>, let `write` fill it, and remove old ones; returns its path.

    keep: the newest so many stay, 0 keeps all. keep_every: those whose step is a multiple of it stay as well, 0 for none. "Newest" is the
    order of saving: where a run went on from an earlier step, what it saves now is newer than what had been saved beyond that step.
    Raises OutputError where the disk is full or cannot be written; the older checkpoints are then as they were.
    """
    target = root / f"step-{step:08d}"
    scratch = _hidden(target)
    with _alone(root):
        try:
            _sweep(root)
            scratch.mkdir()
            write(scratch)
            serial = 1 + max((int(_serial(p)) for p in _all(root) if _manifest(p)), default=0)
            _seal(scratch, step, serial)
            _swap(scratch, target)
        except (OSError, OutputError) as e:
            raise _unsaved(root, step, scratch, e, keep) from e
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        _prune(root, target, keep, keep_every)
    return target


def latest(root: Path) -> Path | None:
    """The checkpoint that was saved last, read through and found whole; None where there is none. Raises WeightsError where it is damaged."""
    found = _all(root)
    if not found:
        return None
    verify(found[-1])
    return found[-1]


def find(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the last one of a run's folder or of a folder of checkpoints. Read through and found whole.

    Raises WeightsError where there is none, or where it is damaged.
    """
    if (path / MANIFEST).is_file() or (path.is_dir() and _NAME.fullmatch(path.resolve().name)):
        verify(path)
        return path
    found = latest(path / FOLDER) or latest(path)
    if found is None:
        state = "holds no checkpoint" if path.is_dir() else "is not there" if not path.exists() else "is a file, not a checkpoint's folder"
        raise WeightsError(f"{path} {state}; give a folder such as RUN/{FOLDER}/step-00001000, or the folder of a run")
    return found


def step_of(folder: Path) -> int:
    """Steps done when the checkpoint was saved."""
    return int(_read_manifest(folder)["step"])


def verify(folder: Path) -> None:
    """Read a checkpoint through and compare it with its manifest.

    Raises WeightsError that names the first file that is missing or is not what was saved, and the checkpoint to go on from instead.
    """
    fault = _fault(folder)
    if fault is not None:
        others = reversed([p for p in _all(folder.resolve().parent) if p.name != folder.resolve().name])
        good = next((p for p in others if _fault(p) is None), None)
        way = f"the newest good one is {good}: run.resume={good}" if good else "there is no other one in its folder: begin anew with another run.out"
        raise WeightsError(f"the checkpoint {folder} is damaged: {fault}; {way}")


def save_tensors(path: Path, values: Any) -> None:
    """Write tensors and plain data (numbers, texts, lists, dicts), so that `load_tensors` reads them back. Raises OutputError."""
    try:
        with path.open("wb") as file:
            torch.save(values, file)
    except (OSError, RuntimeError) as e:  # torch's writer reports a full disk as its own error
        raise OutputError(f"cannot write {path}: {_reason(e.__context__ if isinstance(e.__context__, OSError) else e)}") from e


def load_tensors(path: Path) -> Any:
    """What `save_tensors` wrote, on the CPU, without running code from the file. Raises WeightsError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as e:
        raise WeightsError(f"cannot read {path}: {_reason(e)}; take another checkpoint with run.resume=FOLDER") from e


class RandomState:
    """The states of every source of chance that this process has: Python, NumPy, torch on the CPU and on its device."""

    @staticmethod
    def capture(device: torch.device) -> dict[str, Any]:
        """All of them, as tensors and plain data."""
        version, numbers, gauss = random.getstate()
        arrays: Any = np.random.get_state(legacy=False)
        out: dict[str, Any] = {
            "python": [version, list(numbers), gauss],
            "numpy": {
                "generator": arrays["bit_generator"],
                "key": torch.from_numpy(arrays["state"]["key"].astype(np.int64)),
                "position": int(arrays["state"]["pos"]),
                "has_gauss": int(arrays["has_gauss"]),
                "gauss": float(arrays["gauss"]),
            },
            "torch": torch.get_rng_state(),
        }
        if device.type != "cpu":
            out["device"] = torch.get_device_module(device).get_rng_state(*_indexed(device))
        return out

    @staticmethod
    def restore(state: dict[str, Any], device: torch.device) -> None:
        """Put them back; the device's only where it was captured on such a one."""
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        kept = state["numpy"]
        np.random.set_state(
            {
                "bit_generator": kept["generator"],
                "state": {"key": kept["key"].numpy().astype(np.uint32), "pos": kept["position"]},
                "has_gauss": kept["has_gauss"],
                "gauss": kept["gauss"],
            }
        )
        torch.set_rng_state(state["torch"])
        if device.type != "cpu" and "device" in state:
            torch.get_device_module(device).set_rng_state(state["device"], *_indexed(device))


def _indexed(device: torch.device) -> tuple[torch.device, ...]:
    """Devices that are alone of their kind have functions without an argument for which one."""
    return (device,) if device.index is not None else ()


# What is there


def _all(root: Path) -> list[Path]:
    """The checkpoints below root in the order in which they were saved, damaged ones included."""
    if not root.is_dir():
        return []
    found = sorted(p for p in root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir())
    serials: dict[Path, float] = {}
    for path in found:
        # one without a manifest stands behind those of smaller steps, so that it is noticed
        serials[path] = _serial(path) if _manifest(path) else max(serials.values(), default=0) + 0.5
    return sorted(found, key=lambda p: serials[p])


def _serial(folder: Path) -> float:
    return float((_manifest(folder) or {}).get("serial", 0))


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return _read_manifest(folder)
    except WeightsError:
        return None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        whole = (
            isinstance(values["step"], int)
            and isinstance(values["serial"], int)
            and all(e["size"] >= 0 and e["sha256"] for e in values["files"].values())
        )
    except FileNotFoundError as e:
        raise WeightsError(f"{path} is missing") from e
    except OSError as e:
        raise WeightsError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise WeightsError(f"{path} is not the list of a checkpoint's files ({e!r})") from e
    if not whole:
        raise WeightsError(f"{path} is not the list of a checkpoint's files")
    if values.get("format") != FORMAT:
        raise WeightsError(f"{path} has the format {values.get('format')}, this version reads {FORMAT}")
    return dict(values)


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where it is as it was saved."""
    try:
        manifest = _read_manifest(folder)
    except WeightsError as e:
        return str(e)
    for name, entry in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry["size"]:
                return f"{path} has {size} bytes instead of {entry['size']}"
            if _digest(path) != entry["sha256"]:
                return f"{path} has another content than was saved (its sha256 differs)"
        except OSError as e:
            return f"cannot read {path}: {e.strerror or e}"
    return None


# Writing


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Within it no other process saves there; others wait for their turn."""
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(root / "saving"))
        except OSError as e:
            raise OutputError(f"cannot make the folder {root}: {e.strerror or e}") from e
        except WeightsError as e:  # the lock is that of downloads, and so are its words
            raise OutputError(f"cannot write in {root}: {_reason(e.__cause__ or e)}") from e
        yield


def _hidden(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


def _sweep(root: Path) -> None:
    """Remove what killed processes left. Whoever writes holds the lock, so nobody is at work on these."""
    for path in root.iterdir():
        if _HIDDEN.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _seal(folder: Path, step: int, serial: int) -> None:
    """Bring every file to the disk, and write down what it is."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    entries = {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": _digest(p, sync=True)} for p in files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "serial": serial, "files": entries}, indent=1) + "\n", encoding="utf-8")
    _digest(manifest, sync=True)
    for inner in [p for p in folder.rglob("*") if p.is_dir()] + [folder]:
        _sync_folder(inner)


def _digest(path: Path, *, sync: bool = False) -> str:
    h = hashlib.sha256()
    with path.open("rb+" if sync else "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(8 << 20):
            h.update(block)
    return h.hexdigest()


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # there a folder cannot be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(made: Path, target: Path) -> None:
    """Rename into place. One of the same step, of a run that had gone that far before, makes room first."""
    former = _hidden(target)
    if target.exists():
        target.rename(former)
    made.rename(target)
    _sync_folder(target.parent)
    shutil.rmtree(former, ignore_errors=True)


def _prune(root: Path, newest: Path, keep: int, keep_every: int) -> None:
    if keep <= 0:
        return
    for path in _all(root)[:-keep]:
        if path == newest or (keep_every > 0 and int(path.name.removeprefix("step-")) % keep_every == 0):
            continue
        leaving = _hidden(path)
        try:
            path.rename(leaving)  # first out of sight: half a folder must not pass for a checkpoint
        except OSError:
            continue  # it costs room only, and the next time comes
        shutil.rmtree(leaving, ignore_errors=True)


def _unsaved(root: Path, step: int, scratch: Path, error: Exception, keep: int) -> OutputError:
    """What to say of a checkpoint that could not be written."""
    written = sum(p.stat().st_size for p in scratch.rglob("*") if p.is_file())
    shutil.rmtree(scratch, ignore_errors=True)
    there = _all(root)
    last = there[-1] if there else None
    needed = max([sum(e["size"] for e in (_manifest(last) or {"files": {}})["files"].values()) if last else 0, written])
    free = shutil.disk_usage(root).free if root.is_dir() else math.nan
    kept = f"{last.name} is as it was; the same command goes on from it" if last else "no earlier one is there"
    room = f"needs about {_size(needed)}, {_size(free)} free" if needed else f"{_size(free)} free"
    fewer = f", lower run.keep (now {keep})" if keep > 1 else ""
    return OutputError(
        f"cannot save the checkpoint of step {step} in {root}: {_reason(error)} ({room}). {kept}. Make room{fewer}, or put run.out on a larger disk"
    )


def _reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
