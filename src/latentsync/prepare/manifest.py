"""The manifest: a JSON line for every file of the footage, every clip, and every part that became none, with each step's numbers and reason."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from latentsync import __version__
from latentsync.errors import InputError
from latentsync.prepare import flow
from latentsync.prepare.config import PrepareConfig
from latentsync.prepare.raw import Item
from latentsync.prepare.records import Span
from latentsync.prepare.store import Store
from latentsync.prepare.work import clip_name

NAME = "manifest.jsonl"
CLIPS = "clips"  # the folder of what is kept
_LONG = 8  # values: a longer list is told by its length

Row = dict[str, Any]


def clip_file(digest: str, span: Span) -> str:
    """Where a kept clip lies; its matrices lie beside it, as .npz."""
    return f"{CLIPS}/{digest[:16]}/{clip_name(digest, span)}.mp4"


def unread_row(name: str, reason: str, failed: bool = True) -> Row:
    """The row of a file whose bytes could not be read."""
    return {"kind": "source", "source": name, "content": "", "keep": False, "step": "read", "reason": reason, "failed": failed, "steps": {}}


def same_row(name: str, digest: str, first: str) -> Row:
    """The row of a file that holds the same as one before it."""
    reason = f"holds the same as {first}, and is prepared once"
    return {
        "kind": "source",
        "source": name,
        "content": digest,
        "keep": False,
        "step": "same",
        "reason": reason,
        "failed": False,
        "steps": {},
        "same_as": first,
    }


def source_row(item: Item, digest: str, way: flow.Way, clips: int, left: int, config: PrepareConfig, package: str) -> Row:
    """The row of a whole file, kept or dropped."""
    row = {"kind": "source", "source": item.name, "content": digest, **_end(way), "clips": clips, "left_over": left}
    if row["keep"] and not clips:
        row |= {"keep": False, "step": "segments", "reason": "no part of it is long enough" if left else "nothing of it is left"}
    return row | {"steps": _steps(way), "versions": versions(way, package)}


def clip_row(item: Item, digest: str, span: Span, source: flow.Way, way: flow.Way, config: PrepareConfig, package: str) -> Row:
    """The row of a clip, kept or dropped, with the whole way of its source before its own."""
    whole = flow.Way((*source.passed, *way.passed), way.results, "", "", way.failed)
    row = {"kind": "clip", "name": clip_name(digest, span), "source": item.name, "content": digest, **_span(span), **_end(whole)}
    if row["keep"]:
        row["file"] = clip_file(digest, span)
    steps = _steps(source)
    if config.does("segments"):
        steps["segments"] = {"keep": True, "reason": f"{span.seconds:.2f} s", "seconds": 0.0}
    return row | {"steps": steps | _steps(way), "versions": versions(whole, package)}


def left_row(item: Item, digest: str, span: Span, config: PrepareConfig) -> Row:
    """The row of a part that is in no clip."""
    reason = f"{span.seconds:.2f} s are shorter than {config.least:g} s"
    if span.seconds >= config.least:
        reason = "has no sound there"
    return {
        "kind": "left over", "name": clip_name(digest, span), "source": item.name, "content": digest, **_span(span),
        "keep": False, "step": "segments", "reason": reason, "failed": False, "steps": {},
    }  # fmt: skip


def versions(way: flow.Way, package: str) -> dict[str, str]:
    """What the numbers were made with: the program and each step's module."""
    made = {"latentsync": __version__, "python": platform.python_version()}
    for passed in way.passed:
        made[passed.step] = str(flow.TABLE[passed.step].load(package).VERSION)
    return made


def _span(span: Span) -> Row:
    return {"start": round(float(span.start), 6), "end": round(float(span.end), 6), "span": [str(span.start), str(span.end)]}


def _end(way: flow.Way) -> Row:
    last = way.passed[-1] if way.passed else None
    dropped = last is not None and not last.decision.keep
    return {
        "keep": not dropped,
        "step": last.step if last is not None and dropped else "",
        "reason": last.decision.reason if last is not None and dropped else "",
        "failed": way.failed,
    }


def _steps(way: flow.Way) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for step, decision, entry in way.passed:
        numbers = {"error": entry["error"]} if "error" in entry else {k: _short(v) for k, v in entry["result"].items() if k not in _PATHS}
        rows[step] = {"keep": decision.keep, "reason": decision.reason, **numbers, "seconds": entry.get("seconds", 0.0)}
    return rows


_PATHS = {"path", "matrices", "landmarks"}  # of the results: where files lie within .work/ helps nobody


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return len(value) if len(value) > _LONG else [_short(v) for v in value]
    return {k: _short(v) for k, v in value.items()} if isinstance(value, dict) else value


def line(row: Row) -> bytes:
    """A row as a line of the manifest. Names that are no Unicode keep their bytes as surrogates."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def write(store: Store, lines: Iterable[bytes]) -> None:
    """Put a new manifest in place of the old one, whole or not at all."""
    with store.scratch() as scratch:
        file = Path(scratch, NAME)
        with open(file, "xb") as f:
            for one in lines:
                f.write(one)
        store.put(file, NAME)


def read(store: Store) -> Iterator[Row]:
    """The rows of a manifest, in order: files by name, each followed by its clips by time. Raises InputError where there is none."""
    if not store.has(NAME):
        raise InputError(f"{store.place} holds no {NAME}; is it the folder that `latentsync prepare RAW OUT` wrote to the end?")
    with open(store.get(NAME), encoding="utf-8") as f:
        for number, text in enumerate(f, 1):
            try:
                yield json.loads(text)
            except ValueError as e:
                raise InputError(f"{store.place}/{NAME}: line {number} is damaged; run `latentsync prepare` again, which writes it anew") from e
