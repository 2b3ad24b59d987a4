"""The short form looks at a job while it is done: what it says is what the metrics say of the result, planted faults are seen, and it is cheap."""

import json
from fractions import Fraction

import numpy as np
import pytest

from latentsync.cli import closing
from latentsync.errors import WeightsError
from latentsync.evaluate import judge as judges
from latentsync.evaluate import short as shorts
from latentsync.evaluate.short import EVERY, LOOK, Short
from latentsync.face.align import alignment, crop
from latentsync.face.track import Tracked
from latentsync.media.frame import Frame
from latentsync.media.layout import Colour, layout_of
from latentsync.media.picture import Picture
from latentsync.media.video import open_video
from latentsync.metrics.regions import mouth_box
from latentsync.metrics.temporal import Flicker, Seam
from latentsync.options import options
from latentsync.pipeline import Finished, LipSync, Result
from latentsync.reference import Aligned
from tests.conftest import invoked, write_wav
from tests.evaluate.test_judge import CONFIG, POINTS, Plain, flashes

SIDE = 32
MATRIX = alignment(POINTS, SIDE)


def judge() -> judges.Judge:
    return judges.of_syncnet(Plain(CONFIG), CONFIG, "demo")  # type: ignore[arg-type]


def finished(k: int, picture: Picture, face: np.ndarray | None, fps: int = 25, spoken: bool = True) -> tuple[Finished, Frame]:
    frame = Frame(k, Fraction(k, fps), Fraction(1, fps), picture)
    tracked = Tracked(frame=frame, points=None if face is None else POINTS, strength=1.0, cut=False)
    matrix, seen = (None, None) if face is None else (MATRIX, crop(picture, MATRIX, SIDE))
    return Finished(Aligned(k, tracked, matrix, seen, spoken), None if face is None else face.astype(np.float32)), frame


def plain(level: int = 90) -> Picture:
    layout = layout_of("gbrp", Colour(), 120, 120)[0]
    return Picture(tuple(np.full((120, 120), level, np.uint8) for _ in range(3)), layout)


@pytest.mark.parametrize(("early", "fps"), [(-6, 25), (0, 25), (5, 25), (5, 50)])
def test_a_planted_offset_is_found_in_the_stretches(early, fps, tmp_path):
    pictures, samples = flashes(13 * 25, early)  # two stretches: from 0 s and from 12 s on, of which the second is too short
    wav = write_wav(tmp_path / "sound.wav", np.clip(samples, -1, 1))
    looks = Short(judge())
    for k, picture in enumerate(p for p in pictures for _ in range(fps // 25)):
        looks(*finished(k, picture, np.zeros((SIDE, SIDE, 3)), fps))
    found = looks.close(wav, wav)
    assert found.values["sync_offset"] == early
    assert found.values["sync_confidence"] > 0.3
    assert found.looked_at == pytest.approx(LOOK + 1)
    assert found.judge == "demo"


def test_flicker_and_seam_are_those_of_the_result(tiny_model, sample, tmp_path):
    lipsync = LipSync.load(tiny_model, device="cpu", dtype="fp32", faces=False)
    out, looks = tmp_path / "out.mkv", Short(judge())
    chosen = options(steps=1, guidance=1, codec="ffv1")
    result = lipsync.run(sample / "sample.mp4", sample / "speech.wav", out, chosen, points=sample / "points.npz", inspect=looks)
    found = looks.close(sample / "speech.wav", sample / "sample.mp4").plain()
    flicker, seam = Flicker(), Seam()
    side = lipsync.config.resolution
    matrices = [alignment(p, side) for p in np.load(sample / "points.npz")["points"]]
    with open_video(sample / "sample.mp4") as source, open_video(out) as made:
        for matrix, before, after in zip(matrices, source.frames(), made.frames(), strict=False):
            faces = [crop(frame.picture, matrix, side) for frame in (after, before)]
            flicker.add(*faces)
            seam.add(*faces)
    assert found["looked_at_seconds"] == pytest.approx(result.seconds), "2 s are looked at as a whole"
    for key, value in {**flicker.values(), **seam.values()}.items():
        assert found["values"][key] == pytest.approx(value, rel=0.02), key
    assert found["values"]["faces_missing"] == 0
    result.report = found
    assert json.loads(json.dumps(result.plain()))["report"] == found
    assert "report" not in type(result)(out=out, model="", seed=0).plain()
    assert any("seam" in line and "flicker" in line for line in shorts.lines(found))


def speaking(tmp_path, still):
    """10 s of which the middle is silent; the mouth moves all the time, or not `still` then."""
    rng = np.random.default_rng(0)
    silent = np.zeros(250, bool)
    silent[100:175] = True
    samples = np.repeat(np.where(silent, 0, 0.3), 640) * rng.uniform(-1, 1, 250 * 640)
    wav = write_wav(tmp_path / "sound.wav", samples)
    looks = Short(judge())
    rows, columns = mouth_box(SIDE)
    face = np.full((SIDE, SIDE, 3), 128.0)
    for k in range(250):
        if not (still and silent[k]):
            face[rows, columns] = rng.uniform(0, 255)
        looks(*finished(k, plain(), face.copy()))
    return looks.close(wav, wav)


def test_a_mouth_that_moves_in_silence_is_seen(tmp_path):
    resting, restless = speaking(tmp_path, True), speaking(tmp_path, False)
    assert resting.values["silence_change"] < 0.05
    assert restless.values["silence_change"] == pytest.approx(1, abs=0.35)
    assert resting.vad in ("silero", "energy")


def test_frames_without_a_face_and_sound_without_silence_have_their_say(tmp_path):
    wav = write_wav(tmp_path / "sound.wav", 0.3 * np.sin(np.arange(32000) / 5))
    looks = Short(judge())
    for k in range(50):
        looks(*finished(k, plain(), np.zeros((SIDE, SIDE, 3)) if k % 5 else None))
    looks(*finished(50, plain(), None, spoken=False))  # after the sound: does not count
    found = looks.close(wav, wav)
    assert found.values["faces_missing"] == pytest.approx(0.2)
    assert "shows the face" in found.missing["sync_confidence"], "no eight frames in a row"
    assert "silence" in found.missing["silence_change"]
    nothing = Short(judge())
    nothing(*finished(0, plain(), None))
    empty = nothing.close(wav, wav)
    assert empty.values == {"faces_missing": 1.0}
    assert empty.missing["seam"] == "no frames with a new mouth"
    assert "frames without a face 100.0 %" in shorts.lines(empty.plain())[0]


def test_an_hour_is_looked_at_in_part_and_held_in_part(tmp_path, monkeypatch):
    looks, seen = Short(judge()), []
    monkeypatch.setattr(looks, "_look", lambda at, item, frame: seen.append(at))
    item, frame = finished(0, plain(), None)
    for k in range(60 * 60 * 2):
        looks(item, Frame(k, Fraction(k, 2), Fraction(1, 2), frame.picture))
    assert len(seen) == 60 * 60 * 2 * LOOK / EVERY
    assert seen[:7] == [0, 0.5, 1, 1.5, 2, 2.5, 12]
    assert looks._held == []


def test_without_the_judge_the_rest_is_said(tmp_path, monkeypatch):
    def absent(name):
        raise WeightsError("no SyncNet came with the package")

    monkeypatch.setattr(shorts, "load", absent)
    wav = write_wav(tmp_path / "sound.wav", np.zeros(16000))
    looks = Short()
    for k in range(20):
        looks(*finished(k, plain(), np.zeros((SIDE, SIDE, 3))))
    found = looks.close(wav, wav)
    assert found.missing["sync_confidence"] == "no SyncNet came with the package"
    assert sum("no SyncNet came" in line for line in shorts.lines(found.plain())) == 1
    assert found.values["flicker"] == 0
    assert found.judge == ""


def test_sound_is_cut_at_the_sample_and_searched_in_blocks(monkeypatch):
    samples = np.arange(1000, dtype=np.float32)
    chunks = np.split(samples, [7, 300, 301, 650])
    cut = list(shorts._cut(iter(chunks), [(0, 10), (295, 400), (400, 402), (900, 1200), (1300, 1400)]))
    assert [(c[0], c[-1], len(c)) for c in cut[:4]] == [(0, 9, 10), (295, 399, 105), (400, 401, 2), (900, 999, 100)]
    assert len(cut[4]) == 0
    monkeypatch.setattr(shorts, "BLOCK", 2)
    monkeypatch.setattr(shorts, "speech", _half)
    spans, method = shorts._speech(iter([np.zeros(16000, np.float32)] * 5))
    assert spans == ((0.0, 1.0), (2.0, 3.0), (4.0, 4.5))
    assert method == "half"


def _half(block):
    """The first half is speech."""
    from latentsync.metrics.silence import Speech

    return Speech(((0.0, len(block) / 32000),), "half", len(block) / 16000)


def test_the_command_says_it(tiny_model, sample, tmp_path):
    voice = write_wav(tmp_path / "voice.wav", 0.3 * np.sin(np.arange(8000) / 9))
    words = ["sync", sample / "sample.mp4", voice, "--model", tiny_model, "--points", sample / "points.npz", "--device", "cpu"]
    words += ["--steps", "1", "--guidance", "1", "--dtype", "fp32", "-o", tmp_path / "a.mp4", "--json", "--report"]
    told = json.loads(invoked(*words).stdout)["report"]
    assert {"seam", "flicker", "faces_missing"} <= told["values"].keys()
    assert told["took_seconds"] > 0
    said = closing(Result(out=tmp_path / "a.mp4", model="tiny", seed=1, report=told))
    assert any(line.startswith("report on 0.5 s: ") for line in said)
