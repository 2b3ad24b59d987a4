"""Who is alive: a lock on a file, which the system frees when its holder dies, however that went."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from latentsync.errors import OutputError
from latentsync.hub import try_lock


class Sign:
    """A sign of life: as long as it is held, `alive` says so of its file, in this process and in others of this machine."""

    def __init__(self, path: Path) -> None:
        """Raises OutputError where the file cannot be made, or is another one's sign."""
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as e:
            raise OutputError(f"cannot write in {path.parent}: {e.strerror or e}; choose another folder") from e
        if not try_lock(self._handle):
            os.close(self._handle)
            raise OutputError(f"{path} is held by another process")

    def close(self) -> None:
        """Hold it no more."""
        if self._handle >= 0:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Sign:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def alive(path: Path) -> bool:
    """Whether somebody holds the sign at this path."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it cannot be told; the lease will
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)
