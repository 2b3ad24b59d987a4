"""Arrays beside a clip, whole or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from latentsync.errors import InputError
from latentsync.whole import whole


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """A compressed .npz; one that exists is replaced. Raises OutputError where it cannot be written."""
    with whole(path, parents=True) as scratch:
        np.savez_compressed(scratch, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, *names: str) -> list[Any]:
    """The arrays of those names. Raises InputError where they are not there."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise InputError(f"cannot read {path}: {e}; delete it, and it is made again") from e
