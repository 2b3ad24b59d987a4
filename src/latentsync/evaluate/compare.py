"""Two systems on the same videos: each video of one beside the video of the same name of the other, and how much they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latentsync.errors import InputError, UsageError
from latentsync.evaluate import pairs, summary
from latentsync.evaluate.pairs import Progress
from latentsync.evaluate.protocols import Pair, videos
from latentsync.evaluate.records import ROWS, Results
from latentsync.evaluate.summary import Paired
from latentsync.evaluate.tools import Tools


@dataclass(frozen=True)
class Comparison:
    """Two results and what lies between them."""

    a: Results
    b: Results
    differences: dict[str, Paired]  # b - a, by metric


def compare(
    a: Path,
    b: Path,
    out: Path,
    tools: Tools,
    *,
    reference: Path | None = None,
    source: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Comparison | None:
    """A and B are videos, folders of videos (paired by file name without suffix), or folders of results, which are taken as they are.

    reference and source: a video for all, or a folder of videos of the same names. Rows go to two folders in `out`; finished ones are not done again.
    None where `stop` said so before the end. Raises InputError where nothing pairs up.
    """
    if (a / ROWS).is_file() and (b / ROWS).is_file():
        return between(Results.read(a), Results.read(b))
    one = a.is_file() and b.is_file()
    first, second = ({"video": _video(p)} if one else _named(p) for p in (a, b))
    shared = [name for name in first if name in second]
    if not shared:
        raise InputError(f"no video of {a} has the name of one of {b}; videos pair up by file name without suffix")
    references, sources = (_beside(p, shared) for p in (reference, source))
    read = []
    systems = _systems(a, b)
    for system, files in zip(systems, (first, second), strict=True):
        listed = [Pair(name, sources.get(name, files[name]), None, references.get(name), files[name]) for name in shared]
        results = pairs.run(listed, out / pairs.file_name(system), tools, system=system, progress=progress, stop=stop)
        if results is None:
            return None
        read.append(results)
    return between(*read)


def between(a: Results, b: Results) -> Comparison:
    """Two results compared row by row. Raises InputError where they share no name, UsageError where other judges measured them."""
    for name in ("judge", "faces"):
        if a.settings.get(name) != b.settings.get(name):
            means = f"{name} {a.settings.get(name)!r}, {b.settings.get(name)!r}"
            raise UsageError(f"{a.folder} and {b.folder} were measured with other means ({means}); measure one anew")
    if not {row.name for row in a.rows} & {row.name for row in b.rows}:
        raise InputError(f"{a.folder} and {b.folder} have no row of the same name")
    return Comparison(a, b, summary.paired(a, b))


def _systems(a: Path, b: Path) -> tuple[str, str]:
    names = [p.stem if p.is_file() else p.name for p in (a.absolute(), b.absolute())]
    return (names[0], names[1]) if names[0] != names[1] else (f"A {names[0]}", f"B {names[1]}")


def _video(path: Path) -> Path:
    return path.absolute()


def _named(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give two videos, or two folders of videos of the same names")
    return {p.stem: p for p in videos(folder)}


def _beside(path: Path | None, names: list[str]) -> Mapping[str, Path]:
    if path is None:
        return {}
    return dict.fromkeys(names, path.absolute()) if path.is_file() else _named(path)
