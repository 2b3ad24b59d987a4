"""Rows to JSON and back, the folder that keeps them through kills and torn lines, and what many rows come to."""

import json
import math
import os

import numpy as np
import pytest

from latentsync.errors import InputError, UsageError
from latentsync.evaluate.records import ROWS, Book, Results, Row, find
from latentsync.evaluate.summary import paired, summarise, table

SETTINGS = {"system": "ours", "metrics": ["sync"], "protocol": "", "seed": 1}


def full(name: str = "a b") -> Row:
    return Row(
        name,
        "/x/Ünï cödé.mp4",
        "/x/s.wav",
        "/x/r.mp4",
        "/x/o.mp4",
        False,
        "no face",
        1.25,
        31,
        {"lmd": 0.1},
        {"fid": "no weights"},
        {"sync": (0.5, math.nan)},
        {"model": "demo", "seed": 3},
        ("a note",),
    )


def equal(a: Row, b: Row) -> bool:
    return json.dumps(a.plain()) == json.dumps(b.plain()) and math.isnan(b.curves["sync"][1])


def test_a_row_survives_json() -> None:
    row = full()
    back = Row.of(json.loads(json.dumps(row.plain(), allow_nan=False)))
    assert equal(row, back)
    assert back.curves["sync"][0] == 0.5
    assert back.notes == ("a note",)
    assert Row.of(Row("x", "y").plain()) == Row("x", "y")
    with pytest.raises(InputError):
        Row.of({"video": 1})
    with pytest.raises(InputError):
        Row.of({"name": "a", "video": "b", "values": {"lmd": "high"}})


def test_a_book_goes_on_where_it_stopped(tmp_path) -> None:
    folder = tmp_path / "out"
    with Book(folder, SETTINGS, ["a", "b", "c"]) as book:
        book.add(Row("b", "b.mp4"))
        book.add(Row("a", "a.mp4", values={"lmd": 2.0}))
    with open(folder / ROWS, "ab") as f:
        f.write(b'{"name": "c", "vid')  # killed while it wrote
    assert [r.name for r in Results.read(folder).rows] == ["a", "b"]
    with Book(folder, SETTINGS, ["a", "b", "c"]) as book:
        assert book.row("a") == Row("a", "a.mp4", values={"lmd": 2.0})
        assert book.row("c") is None
        book.add(Row("c", "c.mp4"))
        book.add(Row("a", "again.mp4"))
    read = Results.read(folder)
    with Book(folder, SETTINGS, ["c", "a"]):
        pass
    assert [r.name for r in Results.read(folder).rows] == ["c", "a"]  # what was taken off the list does not count
    assert [(r.name, r.video) for r in read.rows] == [("a", "again.mp4"), ("b", "b.mp4"), ("c", "c.mp4")]
    assert read.system == "ours"
    assert [r.folder for r in find(tmp_path)] == [folder]


def test_a_book_refuses_other_settings_and_two_writers(tmp_path) -> None:
    with Book(tmp_path / "out", SETTINGS, ["a"]) as book:
        book.add(Row("a", "a.mp4"))
        if os.name == "posix":
            with pytest.raises(UsageError, match="another process"), Book(tmp_path / "out", SETTINGS, ["a"]):
                pass
    with pytest.raises(UsageError, match="seed 1 there, 2 now"), Book(tmp_path / "out", {**SETTINGS, "seed": 2}, ["a"]):
        pass
    with pytest.raises(UsageError, match="two rows are named 'a'"):
        Book(tmp_path / "new", SETTINGS, ["a", "b", "a"])


def test_damage_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match="holds no results"):
        find(tmp_path)
    (tmp_path / ROWS).write_text('{"name": "a", "video": "v", "ok": true}\nnonsense\n')
    with pytest.raises(InputError, match="line 2"):
        Results.read(tmp_path)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    covered = [s.low <= 5 <= s.high for s in (summarise(draw.normal(5, 2, 30).tolist()) for _ in range(60))]
    assert 0.85 <= np.mean(covered) <= 1
    one = summarise([3.0])
    assert (one.count, one.mean, one.low, one.high) == (1, 3, 3, 3)
    x = [1.0, 2.0, 10.0]
    assert summarise(x) == summarise(x)
    assert summarise(x).median == 2
    assert summarise(x).low < summarise(x).mean < summarise(x).high
    n = 400
    wide = summarise(draw.normal(0, 1, n).tolist())
    assert (wide.high - wide.low) / 2 == pytest.approx(1.96 / math.sqrt(n), rel=0.15)  # as the theory of the mean has it


def test_pairing_is_by_name_and_leaves_out_what_failed(tmp_path) -> None:
    def results(name: str, values: dict[str, float | None]) -> Results:
        rows = [Row(n, n, ok=v is not None, values={} if v is None else {"lmd": v}) for n, v in values.items()]
        return Results(tmp_path / name, tuple(rows), {})

    a = results("a", {"x": 1, "y": 2, "z": 3, "only": 50})
    b = results("b", {"z": 2, "y": 1, "x": None})
    assert table(b)["lmd"].count == 2
    found = paired(a, b)["lmd"]
    assert (found.count, found.difference, found.higher) == (2, -1, 0)
    assert paired(a, a)["lmd"].higher == 0.5
