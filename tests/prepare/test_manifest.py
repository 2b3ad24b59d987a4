"""Results into JSON and back; rows that survive any name; places that are read and written whole."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from latentsync.errors import InputError, UsageError
from latentsync.prepare import manifest
from latentsync.prepare.engine import prepare
from latentsync.prepare.records import Span, from_plain, to_plain
from latentsync.prepare.store import Local, Remote, fetch, is_remote, open_store
from latentsync.prepare.work import Job, Setting, Worker, clip_name, read_record, write_record
from tests.prepare.films import config, film, result, running
from tests.prepare.s3 import s3_server


@dataclass(frozen=True)
class Inner:
    yaw: float | None
    name: str


@dataclass(frozen=True)
class Result:
    spans: tuple[Span, ...]
    inner: tuple[Inner, ...]
    path: Path
    rate: Fraction
    good: bool
    pair: tuple[int, str]


def test_results_come_back_as_they_were() -> None:
    whole = Result(
        (Span(Fraction(0), Fraction(10, 3)),), (Inner(None, "ä"), Inner(float("inf"), "")), Path("a b/c.mp4"), Fraction(30000, 1001), True, (3, "x")
    )
    plain = to_plain(whole)
    assert plain["spans"] == [["0", "10/3"]]
    assert from_plain(Result, plain) == whole
    moved = to_plain(whole, lambda p: f"@{p.name}")
    assert moved["path"] == "@c.mp4"
    assert from_plain(Result, moved, lambda text: Path("new", text[1:])).path == Path("new/c.mp4")
    with pytest.raises(InputError, match="a record of Result cannot be read"):
        from_plain(Result, plain | {"more": 1})
    with pytest.raises(TypeError, match="set"):
        to_plain({1, 2})


def test_a_row_survives_any_name(tmp_path: Path) -> None:
    names = ["a 'b' \"c\".mp4", "ü\u2028.mp4", b"\xff\xfe.mp4".decode("utf-8", "surrogateescape"), "line\nbreak.mp4"]
    store = Local(tmp_path)
    manifest.write(store, (manifest.line(manifest.unread_row(name, "why")) for name in names))
    assert [row["source"] for row in manifest.read(store)] == names


def test_a_damaged_record_counts_as_none(tmp_path: Path) -> None:
    store = Local(tmp_path)
    span = Span(Fraction(1), Fraction(2))
    write_record(store, "ab" * 16, span, {"k": {"step": "x"}})
    assert read_record(store, "ab" * 16, span) == {"k": {"step": "x"}}
    path = next(tmp_path.rglob("*.json"))
    for torn in (b"", path.read_bytes()[:-3], b"[1]", b"\xff"):
        path.write_bytes(torn)
        assert read_record(store, "ab" * 16, span) == {}
    assert clip_name("0123456789abcdef" * 2, span) == "0123456789abcdef-00001000-00002000"


def test_addresses_are_told_from_folders() -> None:
    assert [is_remote(p) for p in ("s3://b/c", "file:///x", "memory://a")] == [True] * 3
    assert [is_remote(p) for p in ("a/b", "C:\\x", "c://x", "a b://c", "")] == [False] * 5
    with pytest.raises(UsageError, match="cannot be reached"):
        open_store("nosuchthing://a")


def test_a_far_store_keeps_and_gives_back(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    store = open_store(f"memory://{tmp_path.name}/out")
    assert isinstance(store, Remote)
    store.write("a/b.json", b"1")
    assert store.read("a/b.json") == b"1"
    assert store.read("a/c.json") is None
    with store.scratch() as scratch:
        (scratch / "x").write_bytes(b"film")
        store.put(scratch / "x", "w/film.mp4")
    store.link("w/film.mp4", "clips/1.mp4")
    store.forget()
    assert store.get("clips/1.mp4").read_bytes() == b"film"
    assert store.names("clips") == ["1.mp4"]
    assert store.names("nothing") == []
    assert store.has("w/film.mp4")
    store.remove("w/film.mp4")
    assert not store.has("w/film.mp4")
    with pytest.raises(InputError, match="cannot fetch"):
        store.get("w/film.mp4")
    store.forget()


def test_addresses_give_what_folders_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))  # of the processes
    log = tmp_path / "log"
    for i in range(2):
        film(tmp_path / "raw" / f"{i}.mp4", log, name=f"{i}", fps=25 + i % 2, offset=i, quality=39.0 + i)
    prepare(tmp_path / "raw", tmp_path / "near", config(), running(1))
    prepare(f"file://{tmp_path}/raw", f"file://{tmp_path}/far", config(), running(1))
    assert result(tmp_path / "far") == result(tmp_path / "near")
    begun = len(log.read_text().splitlines())
    prepare(f"file://{tmp_path}/raw", f"file://{tmp_path}/far", config(), running(1))
    assert len(log.read_text().splitlines()) == begun
    assert not list((tmp_path / "far" / ".work" / "scratch").glob("*"))
    assert not list((tmp_path / "tmp").iterdir()), "what was fetched is cleared away"


def test_a_resampled_film_is_fetched_once_for_all_its_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    fetched: list[str] = []

    def noted(system: object, far: str, near: Path) -> None:
        fetched.append(Path(far).name.split(".", 1)[1])
        fetch(system, far, near)

    monkeypatch.setattr("latentsync.prepare.store.fetch", noted)
    setting = Setting(f"memory://{tmp_path.name}/out", config(), running(1))
    films = [film(tmp_path / f"{i}.mp4", tmp_path / "log", name=f"{i}", fps=26) for i in range(2)]
    spans = [Span(Fraction(k, 10), Fraction(k + 1, 10)) for k in range(3)]

    def work_on(worker: Worker, path: Path, *spans: Span | None) -> str:
        digest = worker(Job(str(path), 1), lambda *_: None).digest
        for span in spans:
            assert worker(Job(str(path), 1, digest, span), lambda *_: None).spent
        return digest

    first = Worker(setting, 0)
    work_on(first, films[0], None, *spans)
    assert "film.mp4" not in fetched, "the process that made it has it"
    other = Worker(setting, 1)
    work_on(other, films[1], None)
    for span in spans:
        later = Span(span.start + Fraction(1, 100), span.end)
        work_on(other, films[0], later)
    assert fetched.count("film.mp4") == 1


def test_objects_behind_s3_give_what_folders_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    log = tmp_path / "log"
    for i in range(2):
        film(tmp_path / "raw" / f"{i}.mp4", log, name=f"{i}", fps=25 + i % 2, offset=i, quality=39.0 + i)
    prepare(tmp_path / "raw", tmp_path / "near", config(), running(1))
    with s3_server() as (address, objects):
        for name, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        for path in (tmp_path / "raw").iterdir():
            objects[f"films/raw/{path.name}"] = path.read_bytes()
        before = dict(objects)
        for turn in range(2):
            begun = len(log.read_text().splitlines())
            prepare("s3://films/raw", "s3://films/out", config(), running(1))
            assert turn == 0 or len(log.read_text().splitlines()) == begun, "what is there is not done again"
        assert {name: objects[name] for name in before} == before, "footage is only read"
        for name, data in objects.items():
            if name.startswith("films/out/"):
                target = tmp_path / "far" / name.removeprefix("films/out/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    assert result(tmp_path / "far") == result(tmp_path / "near")
    assert len(result(tmp_path / "far")[1]) > 0
    assert not list((tmp_path / "far" / ".work" / "scratch").glob("*"))
