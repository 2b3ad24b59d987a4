"""API keys: who may ask, and under which name. Only digests of keys are kept, and they are compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from latentsync.errors import OutputError, UsageError

VARIABLE = "LATENTSYNC_API_KEYS"
SHORTEST = 16  # characters of a key: shorter ones can be guessed
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Keys:
    """Names and the digests of their keys. One name may have several keys, so that a key can be replaced without a pause."""

    known: tuple[tuple[str, str], ...] = field(repr=False)  # (name, "sha256:" and 64 hex digits)

    def owner(self, key: str) -> str | None:
        """The name that a key belongs to; None for a key that is not known. Takes as long for one as for the other."""
        asked = digest(key)
        found = None
        for name, known in self.known:
            if hmac.compare_digest(asked, known):
                found = name
        return found


def digest(key: str) -> str:
    """How a key is kept. Keys are long and random, so a plain digest cannot be turned back."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read(lines: Iterable[str], where: str) -> Keys:
    """Keys from lines such as `alice:KEY` or `alice:sha256:DIGEST`; empty lines and those that begin with # are passed over.

    Raises UsageError, naming the line (never the key), and where there is none.
    """
    known = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, colon, key = text.partition(":")
        name, key = name.strip(), key.strip()
        if not colon or not _NAME.fullmatch(name):
            raise UsageError(f"{where}, line {number}: not of the form NAME:KEY; a name is made of letters, digits, '.', '_' and '-'")
        if key.startswith("sha256:"):
            if not _DIGEST.fullmatch(key):
                raise UsageError(f"{where}, line {number}: 'sha256:' is followed by 64 hexadecimal digits in small letters")
            known.append((name, key))
        elif len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(
                f"{where}, line {number}: a key is of {SHORTEST} characters or more, without spaces; `latentsync serve --new-key {name}` makes one"
            )
        else:
            known.append((name, digest(key)))
    if not known:
        raise UsageError(f"{where}: no key in it; `latentsync serve --new-key NAME --keys FILE` adds one")
    return Keys(tuple(known))


def load(file: Path | None, variable: str | None) -> Keys | None:
    """The keys of a file and of the variable's value (`alice:KEY,bob:KEY`); None where there is neither. Raises UsageError."""
    known: tuple[tuple[str, str], ...] = ()
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"cannot read the keys in {file}: {getattr(e, 'strerror', None) or e}") from e
        known += read(text.splitlines(), str(file)).known
    if variable is not None and variable.strip():
        known += read(re.split(r"[,\n]", variable), VARIABLE).known
    return Keys(known) if known else None


def new(name: str) -> tuple[str, str]:
    """(a new key, the line for the file of keys). Raises UsageError for a name that cannot be used."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be the name of a key: it is made of up to 64 letters, digits, '.', '_' and '-'")
    key = "ls_" + secrets.token_urlsafe(32)
    return key, f"{name}:{digest(key)}"


def add(file: Path, line: str) -> None:
    """Append a line to the file of keys, which only its owner can read where it is new. Raises OutputError."""
    try:
        with open(file, "a+", encoding="utf-8", opener=_private) as f:
            f.seek(0)
            whole = f.read()
            f.write(("" if not whole or whole.endswith("\n") else "\n") + line + "\n")
    except OSError as e:
        raise OutputError(f"cannot write the keys to {file}: {e.strerror or e}") from e


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
