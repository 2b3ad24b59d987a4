"""The whole job on real footage, with an untrained tiny model: what goes where, which samples stay, which times and sounds come out.

Needs the clips and the small public weights (see conftest); skipped with a message where they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentsync.errors import InputError, NoFaceError
from latentsync.media.audio import open_audio
from latentsync.media.video import open_video
from latentsync.pipeline import LipSync, Result
from tests.conftest import write_wav

QUICK: dict[str, Any] = {"steps": 1, "guidance": 1.0}


@pytest.fixture(scope="module")
def lipsync(tiny_model: Path, public_weights: Path) -> Iterator[LipSync]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTSYNC_WEIGHTS_PATH", str(public_weights))
        yield LipSync.load(tiny_model, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def speech(clips: Path, workplace: Path) -> Callable[[float], Path]:
    """speech(seconds) -> that much real speech as a 16 kHz .wav file."""
    samples = np.concatenate(list(open_audio(next((clips / "audio").glob("*demo1_audio.wav"))).samples(16000)))

    def make(seconds: float) -> Path:
        path = workplace / f"speech-{seconds}.wav"
        return path if path.exists() else write_wav(path, samples[16000 : 16000 + round(16000 * seconds)])

    return make


def one(clips: Path, name: str) -> Path:
    """The clip of that name in whatever folder; other sets of clips may lack it."""
    found = sorted(clips.glob(f"*/{name}"))
    if not found:
        pytest.skip(f"no clip {name}")
    return found[0]


def read(path: Path, until: float | None = None) -> list[Any]:
    """Frames of a file that begin before `until` seconds."""
    frames = []
    with open_video(path) as video:
        for frame in video.frames():
            if until is not None and frame.time >= Fraction(str(until)):
                break
            frames.append(frame)
    return frames


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(p, q) for p, q in zip(a.planes, b.planes, strict=True))


def changes(before: Any, after: Any) -> np.ndarray:
    """(h, w) bool: pixels with another colour, in two losslessly stored pictures."""
    return (before.rgb() != after.rgb()).any(axis=2)


Job = Callable[..., tuple[Result, list[Any]]]


@pytest.fixture
def job(lipsync: LipSync, tmp_path: Path) -> Job:
    """job(face, audio, out="out.mkv", ...) -> the result and the frames of the file, lossless unless told otherwise."""

    def run(clip: Path, audio: Path, /, out: str = "out.mkv", **settings: Any) -> tuple[Result, list[Any]]:
        result = lipsync.sync(clip, audio, tmp_path / out, **{**QUICK, "codec": "ffv1", **settings})
        frames = read(tmp_path / out)
        assert len(frames) == result.frames
        return result, frames

    return run


def packets(path: Path) -> list[bytes]:
    """The packets of the first soundtrack."""
    with av.open(str(path)) as file:
        return [bytes(p) for p in file.demux(file.streams.audio[0]) if p.size]


def snippet(clip: Path, seconds: float, out: Path) -> Path:
    """The first packets of a clip's soundtrack in a file of their own, not encoded again."""
    with av.open(str(clip)) as source, av.open(str(out), "w") as target:
        stream = source.streams.audio[0]
        copy = target.add_stream_from_template(stream)
        start = None
        for packet in source.demux(stream):
            if packet.pts is None:
                continue
            start = packet.pts if start is None else start
            packet.pts -= start
            packet.dts = packet.pts
            if packet.pts * packet.time_base >= seconds:
                break
            packet.stream = copy
            target.mux(packet)
    return out


def stays_in_the_face(lipsync: LipSync, before: Any, after: Any) -> None:
    """Pixels changed, all of them on the face that the detector finds, the middle of them in its lower half."""
    face = max(lipsync.model.faces().detect(before.rgb()), key=lambda f: f.size)
    x0, y0, x1, y1 = face.box
    ys, xs = np.nonzero(changes(before, after))
    assert len(ys) > 0.05 * (x1 - x0) * (y1 - y0), "a new mouth"
    w, h = x1 - x0, y1 - y0
    assert xs.min() > x0 - 0.35 * w
    assert xs.max() < x1 + 0.35 * w
    assert ys.min() > y0
    assert ys.max() < y1 + 0.4 * h
    assert (y0 + y1) / 2 < ys.mean() < y1 + 0.1 * h
    assert x0 < xs.mean() < x1


@pytest.mark.parametrize("name", ["LatentSync__demo1_video.mp4", "LipNet__bbaf2n.mpg", "video-retalking__3.mp4"])
def test_a_new_mouth_and_nothing_else(lipsync: LipSync, clips: Path, speech: Any, job: Job, name: str) -> None:
    clip = one(clips, name)
    result, after = job(clip, speech(0.4))
    before = read(clip, 0.4)
    assert result.faces == len(after) == len(before) == 10
    assert [f.time for f in after] == [f.time for f in before]
    for a, b in ((before[0], after[0]), (before[-1], after[-1])):
        assert (a.picture.width, a.picture.height) == (b.picture.width, b.picture.height)
        stays_in_the_face(lipsync, a.picture, b.picture)
    for a, b in zip(before, after, strict=True):  # away from the face, every stored sample of every plane is the source's
        ys, xs = np.nonzero(changes(a.picture, b.picture))
        for p, q in zip(a.picture.planes, b.picture.planes, strict=True):
            scale_y, scale_x = p.shape[0] / a.picture.height, p.shape[1] / a.picture.width
            outside = np.ones(p.shape, bool)
            outside[int(ys.min() * scale_y) : int(ys.max() * scale_y) + 2, int(xs.min() * scale_x) : int(xs.max() * scale_x) + 2] = False
            assert np.array_equal(p[outside], q[outside])


@pytest.mark.parametrize(
    ("name", "seconds", "out"),
    [
        ("LatentSync__demo3_video.mp4", 0.3, "out.mp4"),  # 30 fps
        ("video-retalking__1.mp4", 1.2, "out.mov"),  # variable
        ("lip-reading-deeplearning__sample_video.mp4", 0.7, "out.mp4"),  # variable, 29.97
        ("LivePortrait__d11.mp4", 0.3, "out.mp4"),
    ],
)
def test_times_are_the_sources_own(clips: Path, speech: Any, job: Job, name: str, seconds: float, out: str) -> None:
    clip = one(clips, name)
    result, after = job(clip, speech(seconds), out=out, codec="h264")
    before = read(clip, seconds)
    assert [f.time for f in after] == [f.time for f in before]
    assert [f.duration for f in after[:-1]] == [f.duration for f in before[:-1]]
    assert result.faces == len(before)
    assert abs(float(after[-1].time + after[-1].duration) - seconds) < 0.07


def test_variable_rate_keeps_its_times_there_and_back(clips: Path, speech: Any, job: Job, workplace: Path) -> None:
    """The first second of a variable-rate clip, copied out, under a sound of two."""
    clip = one(clips, "video-retalking__1.mp4")
    short = workplace / "short.mp4"
    with av.open(str(clip)) as source, av.open(str(short), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is None or packet.dts * packet.time_base >= 0.8:
                break
            packet.stream = copy
            target.mux(packet)
    before = read(short)
    assert len({f.duration for f in before}) > 1, "a variable rate"
    _, after = job(short, speech(1.5), out="out.mov", codec="h264")
    there = [f.duration for f in before]
    assert [f.duration for f in after[:-1]] == ([*there, *there[-2::-1], *there[1:]])[: len(after) - 1]


# sound


@pytest.mark.parametrize(
    ("name", "made", "out", "codec"),
    [
        ("LatentSync__demo1_video.mp4", "s.m4a", "out.mp4", "aac"),
        ("LatentSync__demo1_video.mp4", "s.m4a", "out.mov", "aac"),
        ("DFRF__cnn2_25fps.mp4", "s.mp3", "out.mp4", "mp3"),
        ("LipNet__bbaf2n.mpg", "s.mkv", "out.mkv", "mp2"),
        ("ClearerVoice-Studio__001.avi", "s.mkv", "out.mp4", "ac3"),
        ("learning-area__rabbit320.webm", "s.mkv", "out.mkv", "vorbis"),
        ("whisper__jfk.flac", "s.mkv", "out.mkv", "flac"),
    ],
)
def test_the_soundtrack_is_the_given_one(clips: Path, job: Job, tmp_path: Path, name: str, made: str, out: str, codec: str) -> None:
    sound = snippet(one(clips, name), 0.4, tmp_path / made)
    face = one(clips, "torchcodec__av1_video.mkv")  # nobody in it: quick
    result, _ = job(face, sound, out=out, codec="h264")
    given, got = packets(sound), packets(tmp_path / out)
    assert 2 < len(got) <= len(given)
    assert len(given) - len(got) <= 3  # what lies behind the last frame, or before the first sample
    assert any(got == given[i : i + len(got)] for i in range(3)), "bit by bit"
    with av.open(str(sound)) as a, av.open(str(tmp_path / out)) as b:
        old, new = a.streams.audio[0], b.streams.audio[0]
        assert new.codec_context.codec.canonical_name == codec
        assert (new.rate, new.channels) == (old.rate, old.channels)
    assert not any("AAC" in note for note in result.notes)


def test_sound_that_mp4_cannot_take_becomes_aac_in_its_own_rate(clips: Path, job: Job, tmp_path: Path) -> None:
    sound = snippet(one(clips, "LipNet__bbaf2n.mpg"), 0.4, tmp_path / "s.mkv")  # mp2
    result, _ = job(one(clips, "torchcodec__av1_video.mkv"), sound, out="out.mp4", codec="h264")
    with av.open(str(tmp_path / "out.mp4")) as file:
        stream = file.streams.audio[0]
        assert (stream.codec_context.name, stream.rate, stream.channels) == ("aac", 44100, 2)
    assert any("mp2" in note and "AAC" in note for note in result.notes)


def test_files_with_several_streams_use_the_first_of_each_and_say_so(clips: Path, job: Job, tmp_path: Path, speech: Any) -> None:
    nasa = one(clips, "torchcodec__nasa_13013.mp4")
    result, after = job(nasa, speech(0.3))
    assert (after[0].picture.width, after[0].picture.height) == (320, 180)
    assert any("2 video streams, using the first" in note for note in result.notes)
    assert not any("audio streams" in note for note in result.notes), "its sound was not asked for"
    result, after = job(one(clips, "torchcodec__h264_10bits.mp4"), nasa, out="2.mp4", codec="h264", when_audio_longer="cut")
    assert any("2 audio streams, using the first" in note for note in result.notes)
    assert not any("video streams" in note for note in result.notes), "its pictures were not asked for"
    with av.open(str(tmp_path / "2.mp4")) as file:
        assert (file.streams.audio[0].rate, len(file.streams.audio), len(file.streams.video)) == (8000, 1, 1)
    given, got = packets(nasa), packets(tmp_path / "2.mp4")
    assert got == given[: len(got)]
    assert len(got) == pytest.approx(8000 / 1024, abs=1.5)  # a second, and AAC's lead-in


@pytest.mark.parametrize("name", ["EDTalk__mouth_source.mp4", "LivePortrait__s0.jpg"])
def test_an_audio_without_sound_is_named(lipsync: LipSync, clips: Path, tmp_path: Path, name: str) -> None:
    clip = one(clips, name)
    with pytest.raises(InputError, match=rf"{name} holds no sound"):
        lipsync.sync(clip, clip, tmp_path / "out.mp4", **QUICK)
    assert not list(tmp_path.iterdir())


# whose mouth


def test_left_and_right_are_two_people(clips: Path, speech: Any, job: Job) -> None:
    clip = one(clips, "ClearerVoice-Studio__001.avi")
    before = read(clip, 0.3)
    for choice, half, other in (("left", slice(0, 640), slice(640, 1280)), ("right", slice(640, 1280), slice(0, 640))):
        result, after = job(clip, speech(0.3), out=f"{choice}.mkv", face=choice)
        assert result.faces > 0
        seen = 0
        for a, b in zip(before, after, strict=True):
            changed = changes(a.picture, b.picture)
            seen += changed[:, half].any()
            assert not changed[:, other].any()
        assert seen == result.faces


@pytest.mark.parametrize("name", ["face_recognition__two_people.jpg", "SadTalker__people_0.png"])
def test_stills_of_one_and_of_several_people(clips: Path, speech: Any, job: Job, name: str) -> None:
    still = one(clips, name)
    before = read(still)[0].picture
    middles = []
    for choice in ("left", "right"):
        result, after = job(still, speech(0.12), out=f"{choice}.mkv", face=choice)
        assert result.faces == len(after) == 3
        assert [f.time for f in after] == [Fraction(k, 25) for k in range(3)]
        middles.append(np.nonzero(changes(before, after[0].picture))[1].mean())
    if "two_people" in name:
        assert middles[1] - middles[0] > before.width / 8
    else:
        assert middles[0] == middles[1]


def test_a_face_that_is_not_there_is_said(clips: Path, speech: Any, job: Job) -> None:
    result, _ = job(one(clips, "LivePortrait__s0.jpg"), speech(0.12), face=2)
    assert result.faces == 0
    assert any("face 2 was asked for" in note for note in result.notes)


def test_cuts_leave_frames_without_the_person_as_they_were(clips: Path, speech: Any, job: Job) -> None:
    clip = one(clips, "face_recognition__short_hamilton_clip.mp4")
    before = read(clip, 4)
    result, after = job(clip, speech(4.0))
    assert len(before) == len(after)
    assert 0 < result.faces < len(after)
    for a, b in zip(before, after, strict=True):
        untouched = any(start - 1e-3 <= a.time < end - 1e-3 for start, end in result.without_face)
        assert same(a.picture, b.picture) == untouched, f"at {float(a.time):.2f} s"


# nobody


@pytest.mark.parametrize("name", ["learning-area__rabbit320.webm", "torchcodec__av1_video.mkv", "face-alignment__grass.jpg"])
def test_files_without_a_face(lipsync: LipSync, clips: Path, speech: Any, job: Job, tmp_path: Path, name: str) -> None:
    clip = one(clips, name)
    with pytest.raises(NoFaceError, match="no face"):
        job(clip, speech(0.4), out="error.mkv", on_missing_face="error")
    assert not list(tmp_path.iterdir())
    result, after = job(clip, speech(0.4))
    before = read(clip, 0.4)
    assert result.faces == 0
    assert result.without_face == [(0.0, pytest.approx(result.seconds))]
    if len(before) == 1:
        before *= len(after)
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert same(a.picture, b.picture)
    assert packets(tmp_path / "out.mkv"), "the new sound"
    heard = np.concatenate(list(open_audio(tmp_path / "out.mkv").samples(16000)))
    given = np.concatenate(list(open_audio(speech(0.4)).samples(16000)))
    assert np.array_equal(heard, given[: len(heard)])
    assert len(given) - len(heard) < 16000 / 25


# formats


@pytest.mark.parametrize("name", ["torchcodec__h264_10bits.mp4", "torchcodec__h265_10bits.mp4"])
@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("hevc", "mp4"), ("prores", "mov"), ("ffv1", "mkv")])
def test_ten_bits_stay_ten_bits(clips: Path, speech: Any, job: Job, name: str, codec: str, suffix: str) -> None:
    clip = one(clips, name)
    _, after = job(clip, speech(0.2), out=f"out.{suffix}", codec=codec)
    before = read(clip, 0.2)
    assert len(before) == len(after)
    with open_video(clip) as a:
        assert a.info.bit_depth == 10
    for old, new in zip(before, after, strict=True):
        if codec == "ffv1":
            assert same(old.picture, new.picture)
        assert new.picture.planes[0].dtype == np.uint16
        off = np.abs(old.picture.planes[0].astype(int) - new.picture.planes[0].astype(int))
        assert off.mean() < 8, "of 1023"
    # below the 8-bit step there is something left
    assert len(np.unique(after[0].picture.planes[0] & 3)) == 4


@pytest.mark.parametrize(
    "name",
    [
        "torchcodec__av1_video.mkv",
        "learning-area__rabbit320.webm",
        "Wan2.2__pose.mp4",
        "samples__chrome.mp4",
        "MuseTalk__yongen.mp4",
        "Video-LLaMA__silence_girl.mp4",
        "LivePortrait__s29.mp4",
    ],
)
def test_any_source_keeps_its_times_and_size(clips: Path, speech: Any, job: Job, name: str) -> None:
    clip = one(clips, name)
    result, after = job(clip, speech(0.2), out="out.mov", codec="h264", crf=30)
    before = read(clip, 0.2)
    assert [f.time for f in after] == [f.time for f in before]
    assert (after[0].picture.width, after[0].picture.height) == (before[0].picture.width, before[0].picture.height)
    assert result.seconds == pytest.approx(float(after[-1].time + after[-1].duration))
    for a, b in zip(before, after, strict=True):
        assert np.abs(a.picture.rgb().astype(int) - b.picture.rgb().astype(int)).mean() < 12
