"""The report says what the results say, shows the worst first, loads nothing, and takes names of files for text."""

import io
import re
from dataclasses import replace

import av
import numpy as np
import pytest

from latentsync import page
from latentsync.errors import InputError, OutputError, UsageError
from latentsync.evaluate import cases, charts, summary
from latentsync.evaluate.records import Results, Row
from latentsync.evaluate.report import report
from latentsync.evaluate.systems import choose, gather, ranking
from latentsync.face.protocols import Face
from tests.evaluate.results import HOSTILE, results, row
from tests.pages import Page
from tests.train.clipmaker import make_clip, number


@pytest.fixture(autouse=True)
def no_finder(monkeypatch):
    """The drawn bars of these clips are no faces."""
    monkeypatch.setattr(cases, "finder", lambda: None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clips") / "a clip.mp4", frames=60)


def written(folders, tmp_path, **more) -> Page:
    return Page(report(folders, tmp_path / "out" / "report.html", **more).read_text(encoding="utf-8"))


def test_the_page_holds_everything_and_takes_names_for_text(tmp_path, clip):
    broken = Row("broken.mp4", "/films/<i>.mp4", ok=False, reason="cannot read <b>it</b>: damaged")
    good = [row(HOSTILE, 3.0, clip), row("plain", 5.0, clip)]
    shown = written([results(tmp_path / "a", [*good, broken], "<u>ours</u>")], tmp_path, title="<img src=x onerror=alert(1)>")
    loads = [str(about[key]) for _, about in shown.tags for key in ("src", "href", "poster", "srcset", "data", "action") if key in about]
    assert all(re.match("data:(image|video)/|#", address) for address in loads), "no other file, no network"
    assert not re.search(r"url\(|@import|<link", shown.raw)
    policy = next(about["content"] for tag, about in shown.tags if tag == "meta" and "http-equiv" in about)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert sum(tag == "script" for tag, _ in shown.tags) == 1, "the hostile name is text"
    assert not any(tag in ("u", "img") and about.get("src") == "x" for tag, about in shown.tags)
    assert not any(key.startswith("on") for _, about in shown.tags for key in about)
    for words in (
        "<script>alert(1)</script>",
        "<u>ours</u>",
        "cannot read <b>it</b>: damaged",
        "\\u202e.mp4",
        "versions.torch",
        "prefers-color-scheme",
    ):
        assert words in shown.text or words in shown.raw
    assert "\u202e" not in shown.raw
    videos = [about for tag, about in shown.tags if tag == "video"]
    assert len(videos) == 2
    assert all((about["src"] or "").startswith("data:video/mp4;base64,") and "controls" in about for about in videos)
    assert {about["href"] for tag, about in shown.tags if tag == "a"} >= {"#failed", "#case-0"}
    ids = [about["id"] for _, about in shown.tags if "id" in about]
    assert len(ids) == len(set(ids))
    assert {str(about["href"])[1:] for tag, about in shown.tags if tag == "a"} <= set(ids), "links lead somewhere"


def test_numbers_are_those_of_the_summary(tmp_path):
    values = [1.0, 2.0, 4.0, 5.5]
    shown = written([results(tmp_path / "a", [row(str(v), v) for v in values])], tmp_path)
    s = summary.summarise(values)
    told = [page.number(s.mean), f"{page.number(s.low)} to {page.number(s.high)}", page.number(s.median), "1", "5.50", "4"]
    assert shown.cells("Sync confidence") == told
    assert shown.cells("Seam")[:2] == ["1.50", "1.50 to 1.50"]
    assert "Rewards large, clear mouth movements" in shown.text, "what the metric does not see"


def systems(tmp_path, count=8, **judges):
    rng = np.random.default_rng(0)
    base = rng.uniform(3, 8, count)
    noise = rng.normal(0, 0.3, count)
    made = {"best": base, "close": base - 0.02 - noise + noise.mean(), "far": base - 1 + noise / 3}
    return [
        results(
            tmp_path / name, [row(f"v{i}", float(v), seam=1.0 + (name == "best")) for i, v in enumerate(values)], name, judge=judges.get(name, "demo")
        )
        for name, values in made.items()
    ]


def test_the_best_is_marked_and_what_is_not_told_apart(tmp_path):
    folders = systems(tmp_path)
    shown = written(folders, tmp_path, most=0)
    best, close, far = shown.cells("Sync confidence")
    assert "★" in best
    assert "≈" in close
    assert "★" not in far
    assert "≈" not in far, "means differ less than the videos among themselves; but the same videos are compared"
    assert ["★" in cell for cell in shown.cells("Seam")] == [False, True, False], "lower is better"
    mean = Results.read(folders[2])
    assert page.number(summary.table(mean)["sync_confidence"].mean) in far


def test_few_videos_tell_nothing_apart_and_two_judges_do_not_compare(tmp_path):
    found = gather(systems(tmp_path / "few", 3))
    assert ranking(found, "sync_confidence") == (0, {1, 2})
    mixed = systems(tmp_path / "mixed", far="syncnet")
    assert ranking(gather(mixed), "sync_confidence") == (None, set())
    assert ranking(gather(mixed), "seam")[0] == 1
    assert "judges of lip sync differ (demo, syncnet), so these do not compare: Sync confidence" in written(mixed, tmp_path, most=0).text


def test_the_worst_come_first_and_the_worst_in_other_metrics_too(tmp_path):
    rows = [row(f"v{i}", float(i), flicker=9.0 if i == 7 else 1.0, sync_offset=0.0) for i in range(10)]
    found = gather([results(tmp_path / "a", rows)])
    assert [(case.name, case.why) for case in choose(found, "sync_confidence", 5)] == [
        ("v0", "worst in sync confidence"),
        ("v1", "second worst in sync confidence"),
        ("v7", "worst in flicker"),
        ("v2", "third worst in sync confidence"),
        ("v3", "4th worst in sync confidence"),
    ]
    assert choose(found, "flicker", 1) == [("v7", "flicker", "worst in flicker")]
    assert len(choose(found, "lmd", 20)) == 10, "all, where nothing has that metric"
    assert choose(found, "sync_confidence", 0) == []


def test_what_failed_and_what_is_missing_is_told(tmp_path):
    lacking = Row("b", "b.mp4", values={"sync_offset": 4.0}, missing={"lmd": "no reference"}, notes=("a note",))
    shown = written([results(tmp_path / "a", [row("a", 2.0), lacking, Row("c", "c.mp4", ok=False, reason="it has no frame")])], tmp_path)
    assert "1 result could not be evaluated" in shown.text
    assert "it has no frame" in shown.text
    assert shown.cells("Sync offset")[0] == "4"
    assert "in 1 of 1 video lips and sound are 3 frames or more apart" in shown.text
    assert re.search(r"Landmark distance \(LMD\)\s+1\s+no reference", shown.text)
    assert "a note" in shown.text
    assert "no picture" in shown.text, "the videos are not there"
    assert "nowhere.mp4" in shown.text, "and that is said"


def test_nothing_good_is_a_page_too(tmp_path):
    shown = written([results(tmp_path / "a", [Row("c", "c.mp4", ok=False, reason="x")])], tmp_path)
    assert "No value of any video" in shown.text


def test_the_paper_is_quoted_on_demand_in_what_is_measured_too(tmp_path):
    folder = results(tmp_path / "a", [row("a", 5.0, lse_c=5.0)], judge="syncnet")
    assert "8.9" not in written([folder], tmp_path, most=0).text
    shown = written([folder], tmp_path, most=0, paper="hdtf", overwrite=True)
    assert "The paper's own numbers on HDTF" in shown.text
    assert "8.9" in shown.text
    assert "7.22" not in shown.text, "no FID here"
    other = results(tmp_path / "b", [row("a", 5.0)])
    assert "None of the metrics that the paper tells" in written([other], tmp_path, most=0, paper="hdtf", overwrite=True).text
    with pytest.raises(UsageError, match="hdtf"):
        report([folder], tmp_path / "x.html", paper="voxceleb2")


def test_a_case_is_shown_where_it_is_worst(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(cases, "show", lambda panels, sound, worst, *_: shown.append(([p.name for p in panels], sound.name, worst)) or cases.Shown())
    curves = {"sync": (5.0, float("nan"), 1.0, 5.0), "flicker": (1.0, 9.0, 1.0, 2.0)}
    one = Row("a", "a.mp4", "a.wav", source="s.mp4", values={"sync_confidence": 3.0, "flicker": 2.0}, curves=curves, notes=("said once",))
    folder = results(tmp_path / "r", [one, replace(one, name="b", reference="r.mp4")])
    page = written([folder], tmp_path, most=1)
    report([folder], tmp_path / "f.html", worst_by="flicker", most=2)
    assert shown == [(["source", "result"], "a.wav", 2.0), (["source", "result"], "a.wav", 1.0), (["reference", "result"], "a.wav", 1.0)]
    assert page.text.count("said once") == 1


def test_wrong_words_are_refused(tmp_path):
    folder = results(tmp_path / "a", [row("a", 1.0)])
    out = tmp_path / "r.html"
    with pytest.raises(UsageError, match="no metric 'beauty'"):
        report([folder], out, worst_by="beauty")
    with pytest.raises(InputError, match="no folder"):
        report([], out)
    report([folder], out, most=0)
    with pytest.raises(OutputError, match="exists"):
        report([folder], out)
    report([folder], out, most=0, overwrite=True)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# Pictures


def decoded(data: bytes) -> tuple[list[np.ndarray], float]:
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data)) as container:
        sound = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    return frames, sound


def test_a_clip_shows_the_same_moments_side_by_side(clip, tmp_path):
    later = make_clip(tmp_path / "other.mp4", frames=200, size=(128, 64))
    shown = cases.show([cases.Panel("a", clip), cases.Panel("b", later)], clip, 1.0, None, 10**6)
    assert (shown.panels, shown.columns, shown.reasons) == (["a", "b"], 2, [])
    assert (shown.start, shown.end) == (0.0, 2.4), "as long as the shortest"
    frames, sound = decoded(shown.clip)
    assert frames[0].shape == (cases.TALL, 2 * 512, 3), "cells as wide as the widest"
    assert len(frames) == 60
    assert sound == pytest.approx(2.4, abs=0.1)
    for k in (0, 13, 59):
        assert number(frames[k][:, 128:384].transpose(2, 0, 1)) == number(frames[k][:, 512:].transpose(2, 0, 1)) == k
    long = cases.show([cases.Panel("b", later)], None, 6.0, None, 10**6)
    assert (long.start, long.end) == (4.0, 8.0)
    assert number(decoded_first(long.clip).transpose(2, 0, 1)) == 100


def decoded_first(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def test_a_clip_too_large_is_a_strip_and_what_is_not_there_is_said(clip, tmp_path):
    nowhere = cases.Panel("b", tmp_path / "no.mp4")
    shown = cases.show([cases.Panel("a", clip), nowhere], tmp_path / "no.wav", 0.0, None, 100)
    assert shown.clip == b""
    assert [s.shape for s in shown.strips] == [(cases.TALL, cases.STRIP * cases.TALL, 3)]
    assert [number(part.transpose(2, 0, 1)) for part in np.split(shown.strips[0], cases.STRIP, axis=1)] == [0, 12, 24, 35, 47, 59]
    said = " | ".join(shown.reasons)
    assert "no.mp4" in said
    assert "the clip is silent" in said
    assert "larger than 0.0 MB" in said
    assert cases.show([nowhere], None, 0.0, None, 100).panels == []


class Everywhere:
    """A face finder that sees a small face in the right half of every picture."""

    name = "given"

    def detect(self, rgb):
        h, w = rgb.shape[:2]
        return [Face((0.6 * w, 0.3 * h, 0.8 * w, 0.6 * h), 1.0, np.zeros((5, 2), np.float32))]

    def landmarks(self, picture, near):
        marks = np.tile(np.float32([0.7 * picture.width, 0.45 * picture.height]), (68, 1))
        marks[17:22] += [-0.05 * picture.width, -0.08 * picture.height]
        marks[22:27] += [0.05 * picture.width, -0.08 * picture.height]
        return Face(near.box, 1.0, marks)


def test_small_faces_fill_their_panels_and_mouths_are_cut_out(tmp_path):
    wide = make_clip(tmp_path / "wide.mp4", frames=30, size=(256, 160))
    shown = cases.show([cases.Panel("a", wide), cases.Panel("b", wide)], None, 0.0, Everywhere(), 0)
    assert [m.shape for m in shown.mouths] == [(cases.TILE[1], cases.MOMENTS * (cases.TILE[0] + 3), 3)] * 2
    assert np.array_equal(*shown.mouths)
    panel = shown.strips[0][:, : shown.strips[0].shape[1] // cases.STRIP]
    assert panel.shape[1] == pytest.approx(cases.TALL, abs=10), "around the face, not the whole width"


def test_charts_put_values_where_they_belong():
    s = summary.summarise([0.0, 5.0, 10.0])
    drawn = charts.spread("x", [charts.Spread(0, "a", [("u", 0.0), ("v", 5.0), ("w", 10.0)], s)])
    assert [float(x) for x in re.findall(r"cx='([\d.]+)'", drawn)] == [6, 150, 294]
    line = charts.over_time("x", [charts.Line(1, "a", (1.0, 2.0, float("nan"), 4.0, 8.0, float("nan"), 3.0))])
    assert len(re.findall("<polyline", line)) == 2, "broken where nothing is known"
    assert len(re.findall("<circle", line)) == 1
    assert "no curve" in charts.over_time("x", [charts.Line(1, "a", (float("nan"),))])
    assert charts.mean_line(0, "m", [(1.0, 3.0), (3.0, float("nan"), 5.0)]).values == (2.0, 3.0, 5.0)


def test_numbers_are_short():
    shown = [page.number(v) for v in (0, 3.0, -2, 0.123456, 12.3456, 1234.5, 0.00012345, 2.5e7, float("nan"))]
    assert shown == ["0", "3", "-2", "0.123", "12.3", "1234", "1.23e-04", "2.50e+07", "–"]
    assert page.escape("a\x00<\ud800\n") == "a\\u0000&lt;\\ud800\n"
