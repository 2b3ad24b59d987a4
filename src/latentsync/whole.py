"""Files that appear whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latentsync.errors import OutputError


@contextmanager
def whole(path: Path, *, parents: bool = False) -> Iterator[Path]:
    """A name beside `path`, of its suffix, to write to. The file takes the place of `path` when the block ends, and is gone when the block fails.

    parents: make the folder where it is missing. Raises OutputError for an OSError, in the block too.
    """
    scratch = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        scratch.replace(path)
    except OSError as e:
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from e
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
