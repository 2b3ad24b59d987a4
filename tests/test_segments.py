"""Several sounds in one result: the soundtrack to the sample, mouths in their spans only, and mistakes told as sentences."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync.errors import InputError, OutputError, UsageError
from latentsync.media.audio import open_audio
from latentsync.media.frame import Frame
from latentsync.media.video import open_video
from latentsync.options import Options, options
from latentsync.pipeline import EDGE, LipSync
from latentsync.segments import FADE, Segment, in_order, read_segment, settled, soundtrack
from tests.conftest import invoked, write_wav

RATE = 16000
QUICK = {"steps": 1, "guidance": 1.0}


def noise(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """Samples that 16 bits hold exactly."""
    return np.random.default_rng(seed).integers(-9000, 9000, round(seconds * rate)).astype(np.float32) / 32767


def stored(path: Path) -> np.ndarray:
    """(channels, n) float32 of a whole file."""
    return np.concatenate(list(open_audio(path).blocks()), axis=1)


@pytest.fixture(scope="module")
def clip(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s of a talking head with a sound of its own, 16-bit noise, in lossless form."""
    folder = tmp_path_factory.mktemp("segments")
    from latentsync.media.writer import VideoWriter

    with (
        open_video(sample / "sample.mp4") as film,
        VideoWriter(folder / "clip.mkv", film.info, audio=write_wav(folder / "own.wav", noise(2, 0))) as out,
    ):
        for frame in film.frames():
            out.write(frame)
    return folder / "clip.mkv"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sounds")
    return write_wav(folder / "a.wav", noise(1, 1)), write_wav(folder / "b.wav", noise(3, 2))


@pytest.fixture(scope="module")
def lipsync(tiny_model: Path) -> LipSync:
    return LipSync.load(tiny_model, device="cpu", dtype="fp32", faces=False)


# the soundtrack


def test_each_sample_is_that_of_its_sound(clip, sounds, tmp_path):
    a, b = sounds
    own, first, second = stored(clip), stored(a), stored(b)
    notes = soundtrack(clip, [Segment(1.2, 1.7, b, 2.0), Segment(0.3, 0.8, a)], tmp_path / "out.wav")
    made = stored(tmp_path / "out.wav")
    assert notes == []
    assert made.shape == own.shape == (1, 2 * RATE)
    fade = round(FADE * RATE)
    i, j, k, m = (round(t * RATE) for t in (0.3, 0.8, 1.2, 1.7))
    for where in (slice(0, i), slice(j, k), slice(m, None)):
        assert np.array_equal(made[:, where], own[:, where])
    assert np.array_equal(made[:, i + fade : j - fade], first[:, fade : j - i - fade])
    assert np.array_equal(made[:, k + fade : m - fade], second[:, 2 * RATE + fade : 2 * RATE + m - k - fade])


def test_no_clicks_at_the_joins(clip, tmp_path):
    low = write_wav(tmp_path / "low.wav", np.full(2 * RATE, -0.5, np.float32))
    high = write_wav(tmp_path / "high.wav", np.full(2 * RATE, 0.5, np.float32))
    soundtrack(clip, [Segment(0.5, 1.0, high), Segment(1.0, 1.5, high)], tmp_path / "out.wav", low)
    made = stored(tmp_path / "out.wav")[0]
    assert np.abs(np.diff(made)).max() < 1.1 / (FADE * RATE), "a jump from -0.5 to 0.5 would be 1"
    assert made[: RATE // 2].max() < -0.49
    around = made[RATE - 200 : RATE + 200]
    assert around.min() > -0.01, "between two that adjoin nothing of the rest is heard"
    assert around.max() > 0.49


def test_a_sound_cut_into_two_segments_goes_on_as_if_it_were_one(clip, sounds, tmp_path):
    b = sounds[1]
    soundtrack(clip, [Segment(0.5, 1.0, b, 0.25), Segment(1.0, 1.5, b, 0.75)], tmp_path / "two.wav")
    soundtrack(clip, [Segment(0.5, 1.5, b, 0.25)], tmp_path / "one.wav")
    assert (tmp_path / "two.wav").read_bytes() == (tmp_path / "one.wav").read_bytes()


def test_other_rates_and_channels_become_those_around_them(clip, tmp_path):
    t = np.arange(48000) / 48000
    fine = write_wav(tmp_path / "fine.wav", (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32), 48000)
    base = tmp_path / "stereo.wav"
    with av.open(str(base), "w") as f:
        track = f.add_stream("pcm_s16le", rate=32000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.tile(np.array([[1000, -1000]], np.int16), (1, 64000)), "s16", "stereo")
        frame.sample_rate = 32000
        f.mux(track.encode(frame))
        f.mux(track.encode(None))
    soundtrack(clip, [Segment(0.5, 1.5, fine)], tmp_path / "out.wav", base)
    info, made = open_audio(tmp_path / "out.wav").info, stored(tmp_path / "out.wav")
    assert (info.rate, info.channels, made.shape) == (32000, 2, (2, 64000))
    assert np.array_equal(made[:, :16000], stored(base)[:, :16000])
    inside = made[:, 17000:47000]
    assert np.abs(inside - 0.5 * np.sin(2 * np.pi * 440 * np.arange(1000, 31000) / 32000)).max() < 0.01, "both channels, at its level, in time"


def test_a_coarse_sound_around_does_not_make_the_segments_coarse(clip, tmp_path):
    fine = write_wav(tmp_path / "fine.wav", noise(1, 3, 48000), 48000)
    soundtrack(clip, [Segment(0, 1, fine)], tmp_path / "out.wav")  # the clip's own sound has 16 kHz
    made = stored(tmp_path / "out.wav")
    assert made.shape == (1, 96000)
    fade = round(FADE * 48000)
    assert np.array_equal(made[:, fade : 48000 - fade], stored(fine)[:, fade : 48000 - fade])


def test_silence_where_nothing_is_heard(sample, sounds, tmp_path):
    a = sounds[0]  # 1 s
    notes = soundtrack(sample / "sample.mp4", [Segment(0.4, 1.9, a, 0.5)], tmp_path / "out.wav")  # a silent film
    made = stored(tmp_path / "out.wav")[0]
    assert len(made) == 2 * RATE
    assert not made[: round(0.4 * RATE)].any()
    assert made[round(0.4 * RATE) : round(0.9 * RATE)].any()
    assert not made[round(0.9 * RATE) :].any()
    assert notes == ["segment 0.4-1.9=a.wav: its sound lasts 0.50 s only, and silence follows"]


def test_a_still_lasts_as_long_as_its_segments(sounds, tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "still.png"), np.full((64, 64, 3), 128, np.uint8))
    soundtrack(tmp_path / "still.png", [Segment(0.5, 1.5, sounds[1])], tmp_path / "out.wav")
    assert stored(tmp_path / "out.wav").shape == (1, RATE * 3 // 2)


def test_memory_does_not_grow_with_length(clip, tmp_path):
    """Eight minutes in a process of its own: 31 MB of float samples must not be in memory at once."""
    long = write_wav(tmp_path / "long.wav", np.tile(noise(60, 4), 8))
    code = (
        "import resource, sys; from pathlib import Path; from latentsync.segments import Segment, soundtrack\n"
        "clip, long, out = map(Path, sys.argv[1:])\n"
        "soundtrack(clip, [Segment(0.5, 1.0, long)], out, clip)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "soundtrack(clip, [Segment(100, 400, long, 60)], out, long)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    words = [sys.executable, "-c", code, str(clip), str(long), str(tmp_path / "out.wav")]
    grown = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert grown < 10_000, "KiB"


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([(0, 1), (0.9, 1.5)], r"segments 0-1=b.wav and 0.9-1.5=b.wav overlap; end the first at 0.9 or earlier"),
        ([(1, 5)], r"segment 1-5=b.wav ends past the end of the result, 2.00 s; end it there or earlier"),
        ([(0, 1, 3.5)], r"segment 0-1=b.wav: its sound shall begin at 3.5 s, but .*b.wav ends at 3.00 s"),
    ],
)
def test_segments_that_cannot_be_are_refused_in_words(clip, sounds, tmp_path, spans, said):
    with pytest.raises(UsageError, match=said):
        soundtrack(clip, [Segment(*span[:2], sounds[1], *span[2:]) for span in spans], tmp_path / "out.wav")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("start", "end", "begin", "said"),
    [
        (2, 1, 0, "--segment 2-1: it must end after it begins"),
        (-1, 1, 0, "'-1' is no time"),
        (0, float("inf"), 0, "'inf' is no time"),
        (0, float("nan"), 0, "'nan' is no time"),
        (0, 1, -1, "cannot begin at -1 s"),
    ],
)
def test_times_that_are_none_are_refused(start, end, begin, said):
    with pytest.raises(UsageError, match=said):
        Segment(start, end, Path("a.wav"), begin)


def test_a_failure_leaves_nothing_behind(clip, sounds, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such file"):
        soundtrack(clip, [Segment(0, 1, tmp_path / "none.wav")], tmp_path / "out.wav")
    (tmp_path / "text.wav").write_text("not sound")
    with pytest.raises(InputError, match=r"text\.wav"):
        soundtrack(clip, [Segment(0, 1, tmp_path / "text.wav")], tmp_path / "out.wav")
    from latentsync import segments

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments, "_frame", full)
    with pytest.raises(OutputError, match="No space left"):
        soundtrack(clip, [Segment(0, 1, sounds[0])], tmp_path / "out.wav")
    assert [p.name for p in tmp_path.iterdir()] == ["text.wav"]


# as users write them


def test_reading_segments_and_spans():
    assert read_segment("3-5=my = odd@name.wav") == Segment(3, 5, Path("my = odd@name.wav"))
    assert read_segment("1:02.5-1:10@1.5=/x/a.wav") == Segment(62.5, 70, Path("/x/a.wav"), 1.5)
    for text in ("3-5", "3=a.wav", "3-5=", "3-5@=a.wav", "a-b=c.wav", "3-5@x=a.wav"):
        with pytest.raises(UsageError, match=r"START-END|no time"):
            read_segment(text)
    assert in_order([Segment(2, 3, Path("b")), Segment(0, 1, Path("a"))])[0].start == 0


@pytest.mark.parametrize("given", ["7-9,3-5", ["7-9", "3-5"], [[7, 9], [3, 5]], ((3.0, 5.0), (7.0, 9.0)), "3-4,3.5-5,7-9", "0:03-0:05,7-8,8-9"])
def test_spans_come_in_order_and_joined(given):
    assert options(only=given).only == ((3.0, 5.0), (7.0, 9.0))


@pytest.mark.parametrize("given", ["5-3", "3-3", "3", "x-5", "3--5", [[3]], [3, 5], [[True, 2]], "-1-3"])
def test_spans_that_are_none_are_refused(given):
    with pytest.raises(UsageError, match="--only"):
        options(only=given)


def test_no_spans_are_everywhere():
    assert options(only="").only == options(only=None).only == options(only=[]).only == Options().only == ()


def test_segments_say_where_mouths_are_new_unless_the_user_does():
    parts = [Segment(3, 5, Path("a.wav")), Segment(0, 1, Path("b.wav"))]
    alone = settled(Options(), parts, base=False)
    assert (alone.only, alone.when_audio_longer, alone.when_video_longer) == (((0, 1), (3, 5)), "cut", "keep")
    based = settled(options(only="2-9"), parts, base=True)
    assert (based.only, based.when_audio_longer) == (((2, 9),), "bounce")
    assert settled(Options(), [], base=False) == Options()


# in the picture


def changed(before: Path, after: Path) -> list[int]:
    """Numbers of the frames of which any sample differs; the times must be the same."""

    def frames(path: Path) -> list[Frame]:
        with open_video(path) as video:
            return list(video.frames())

    a, b = frames(before), frames(after)
    assert [f.time for f in a] == [f.time for f in b]
    pairs = enumerate(zip(a, b, strict=True))
    return [i for i, (x, y) in pairs if not all(np.array_equal(p, q) for p, q in zip(x.picture.planes, y.picture.planes, strict=True))]


def test_frames_outside_the_spans_are_those_of_the_source(lipsync, clip, sample, sounds, tmp_path):
    out = tmp_path / "out.mkv"
    parts = [Segment(0.2, 0.5, sounds[0]), Segment(1.0, 1.88, sounds[1])]
    result = lipsync.sync(clip, None, out, segments=parts, points=sample / "points.npz", codec="ffv1", **QUICK)
    inside = [i for i in range(50) if 0.2 <= i / 25 < 0.5 or 1.0 <= i / 25 < 1.88]
    assert changed(clip, out) == inside
    assert result.faces == len(inside)
    assert result.without_face == []
    soundtrack(clip, parts, tmp_path / "same.wav")
    assert np.array_equal(stored(out), stored(tmp_path / "same.wav")), "and what is heard is the soundtrack, which .mkv holds as it is"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mkv", "same.wav"]


def test_inside_a_span_frames_are_those_of_a_whole_job_but_for_its_edges(lipsync, clip, sample, sounds, tmp_path):
    """A window of its own: with the window's edges where the whole job has them, pictures are the same to the bit."""
    given = {"points": sample / "points.npz", **QUICK}
    sound = write_wav(tmp_path / "sound.wav", noise(1.36, 5))
    whole = [f.picture.rgb() for f in lipsync.stream(clip, sound, **given)]
    part = [f.picture.rgb() for f in lipsync.stream(clip, sound, only=[(0.64, 1.28)], **given)]  # frames 16 to 31: one window
    same = [np.array_equal(a, b) for a, b in zip(whole, part, strict=True)]
    assert [i for i, s in enumerate(same) if s] == list(range(16 + EDGE, 32 - EDGE))
    with open_video(clip) as video:
        source = [f.picture.rgb().astype(int) for f in video.frames()][:34]
    moved = [np.abs(p - s).sum() / max(1, np.abs(w.astype(int) - s).sum()) for w, p, s in zip(whole, part, source, strict=True)]
    assert moved[15] == moved[32] == 0
    assert 0 < moved[16] < moved[17] < moved[18], "it comes"
    assert moved[29] > moved[30] > moved[31] > 0, "and goes"


def test_frames_without_a_face_matter_inside_the_spans_only(lipsync, clip, sample, sounds, tmp_path):
    points = np.load(sample / "points.npz")["points"].copy()
    points[10:20] = np.nan
    np.savez(tmp_path / "gap.npz", points=points)
    given = {"points": tmp_path / "gap.npz", "on_missing_face": "error", "codec": "ffv1", **QUICK}
    result = lipsync.sync(clip, sounds[1], tmp_path / "out.mkv", only="1-1.4", **given)
    assert (result.faces, result.without_face) == (10, [])
    result = lipsync.sync(clip, sounds[1], tmp_path / "two.mkv", only="0.6-1.2", **{**given, "on_missing_face": "copy"})
    assert result.without_face == [(0.6, 0.8)]


def test_without_a_sound_of_its_own_the_result_is_as_long_as_the_film(lipsync, sample, sounds, tmp_path):
    out = tmp_path / "out.mp4"
    lipsync.sync(sample / "sample.mp4", None, out, segments=[Segment(1.5, 2.05, sounds[0])], points=sample / "points.npz", **QUICK)
    with open_video(out) as video:
        assert len(list(video.frames())) == 50
    assert abs(open_audio(out).info.duration - 2) < Fraction(1, 20)


def test_a_span_after_the_sound_is_refused_at_once(lipsync, clip, sounds, tmp_path):
    with pytest.raises(UsageError, match=r"--only 7-9 begins after the end of the sound, 3.00 s"):
        lipsync.sync(clip, sounds[1], tmp_path / "out.mp4", only="1-2,7-9")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(tiny_model, clip, sample, sounds, tmp_path):
    a, b = sounds
    tiny = ["--model", tiny_model, "--device", "cpu", "--dtype", "fp32", "--points", sample / "points.npz", "--steps", 1, "--guidance", 1]
    out = tmp_path / "out.mkv"
    said = invoked("sync", clip, "-o", out, "--segment", f"1.2-1.6@0.5={b}", "--segment", f"0.2-0.5={a}", "--codec", "ffv1", "--json", *tiny).stdout
    inside = [i for i in range(50) if 0.2 <= i / 25 < 0.5 or 1.2 <= i / 25 < 1.6]
    assert json.loads(said)["frames_with_face"] == len(inside)
    assert changed(clip, out) == inside
    for words, why in (
        (["sync", clip, "-o", tmp_path / "x.mp4"], "no sound to say: pass AUDIO, or segments"),
        (["sync", clip, "-o", tmp_path / "x.mp4", "--segment", f"0-9={a}"], "ends past the end of the result"),
        (["sync", clip, a, "-o", tmp_path / "x.mp4", "--only", "5-3"], "must end after it begins"),
    ):
        with pytest.raises(UsageError, match=why):
            invoked(*words, *tiny)
    with pytest.raises(OutputError, match="also an input"):
        invoked("sync", clip, "-o", clip, "--segment", f"0-1={a}", "--codec", "ffv1", "--overwrite", *tiny)
    with pytest.raises(OutputError, match="does not exist; create it first"):
        invoked("sync", clip, "-o", tmp_path / "no" / "x.mp4", "--segment", f"0-1={a}", *tiny)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mkv"]
