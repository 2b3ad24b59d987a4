"""Strange, broken and mislabelled inputs through the whole job: a clear message or a right result, and never a file half done.

`tests/media` looks at the readers and the writer one by one; here the question is what comes out at the end.
"""

from __future__ import annotations

import json
import math
import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from latentsync.errors import InputError, OutputError, UsageError
from latentsync.media.audio import open_audio
from latentsync.media.video import open_video
from latentsync.pipeline import LipSync, Result
from tests.conftest import write_wav

QUICK: dict[str, Any] = {"steps": 1, "guidance": 1.0}
SECONDS = 0.2  # of sound in most jobs: 5 frames at 25 per second


@pytest.fixture(scope="module")
def lipsync(tiny_model: Path) -> LipSync:
    return LipSync.load(tiny_model, device="cpu", dtype="fp32", faces=False)


def tone(rate: int = 16000, seconds: float = SECONDS, channels: int = 1) -> np.ndarray:
    """(n, channels) float: another pitch in each channel, so that none can stand for another."""
    t = np.arange(round(rate * seconds))[:, None] / rate
    return 0.3 * np.sin(2 * np.pi * (220 * (1 + np.arange(channels))) * t)


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "voice.wav", tone()[:, 0])


def smooth(width: int, height: int, k: int = 0) -> np.ndarray:
    """(h, w, 3) uint8 that survives lossy codecs: slopes of red and green, blue by the frame's number."""
    y, x = np.mgrid[0:height, 0:width]
    blue = np.full((height, width), 40 + 20 * (k % 8))
    return np.stack((255 * (x + 1) / (width + 1), 255 * (y + 1) / (height + 1), blue), axis=-1).astype(np.uint8)


def film(
    path: Path,
    frames: int = 5,
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "ffv1",
    pix_fmt: str = "yuv420p",
    rate: Fraction = Fraction(25),
    aspect: Fraction | None = None,
    rotation: int | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A new video file of `smooth` pictures."""
    with av.open(f"file:{path}", "w") as out:
        stream: Any = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for k in range(frames):
            image = av.VideoFrame.from_ndarray(smooth(*size, k), "rgb24").reformat(format=pix_fmt)
            image.pts, image.time_base = k, 1 / rate
            out.mux(stream.encode(image))
        out.mux(stream.encode(None))
    return path


def places(path: Path, points: list[Any]) -> Path:
    """A file of points: one entry per source frame."""
    path.write_text(json.dumps({"points": points}))
    return path


def triangle(x: float, y: float, unit: float, wide: float = 1.0) -> list[list[float]]:
    """Brows and nose of a face whose nose is at (x, y); `unit` between the brows; `wide` pixels across for one down."""
    return [[x - unit * wide / 2, y - unit * 0.8], [x + unit * wide / 2, y - unit * 0.8], [x, y]]


Job = Callable[..., tuple[Result, list[Any]]]


@pytest.fixture
def job(lipsync: LipSync, tmp_path: Path, voice: Path) -> Job:
    """job(face, audio=voice, out="out.mkv", points=[], ...) -> the result and the frames of the file; lossless unless told otherwise."""

    def run(face: Path, audio: Path = voice, out: str = "out.mkv", points: Any = (), **settings: Any) -> tuple[Result, list[Any]]:
        given = {**QUICK, "codec": "ffv1", **settings}
        target = tmp_path / out
        result = lipsync.sync(face, audio, target, points=places(tmp_path / f"{target.stem}.json", list(points)), **given)
        with open_video(target) as video:
            frames = list(video.frames())
        assert result.frames == len(frames)
        return result, frames

    return run


def pictures(path: Path) -> list[Any]:
    with open_video(path) as video:
        return [frame.picture for frame in video.frames()]


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(p, q) for p, q in zip(a.planes, b.planes, strict=True))


# what cannot be used


def headless(path: Path) -> Path:
    """An MP4 whose index is gone, as a recording that lost power leaves it."""
    film(path, 50, codec="libx264")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    return path


def cut_png(path: Path) -> Path:
    Image.fromarray(smooth(64, 48)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


BROKEN = {
    "missing.mp4": (lambda p: p, "no such file"),
    "zero.mp4": (lambda p: written(p, b""), "0 bytes"),
    "zero.wav": (lambda p: written(p, b""), "0 bytes"),
    "zero.png": (lambda p: written(p, b""), "0 bytes"),
    "text.mp4": (lambda p: written(p, b"not a film at all\n" * 200), "not an audio, video or image file"),
    "text.jpg": (lambda p: written(p, b"not a picture at all\n" * 200), ""),
    "folder": (folder, "is a folder"),
    "folder.mp4": (folder, "is a folder"),
    "headless.mp4": (headless, "moov"),
    "zip.mp4": (lambda p: written(p, b"PK\3\4" + bytes(3000)), ""),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("place", ["face", "audio"])
def test_what_cannot_be_read_is_named_and_nothing_is_written(lipsync: LipSync, tmp_path: Path, place: str, name: str) -> None:
    make, words = BROKEN[name]
    bad = make(tmp_path / name)
    good = film(tmp_path / "good.mkv") if place == "audio" else write_wav(tmp_path / "good.wav", tone()[:, 0])
    before = sorted(tmp_path.iterdir())
    face, audio = (bad, good) if place == "face" else (good, bad)
    with pytest.raises(InputError, match=name) as said:
        lipsync.sync(face, audio, tmp_path / "out.mp4", points=places(tmp_path / "p.json", []), **QUICK)
    assert words in str(said.value)
    assert sorted(p for p in tmp_path.iterdir() if p.name != "p.json") == before


@pytest.mark.parametrize(
    ("face", "audio", "words"),
    [
        ("voice.wav", "voice.wav", "voice.wav holds no video"),
        ("clip.mkv", "clip.mkv", "clip.mkv holds no sound"),
        ("clip.mkv", "still.png", "still.png holds no sound"),
        ("cut.png", "voice.wav", "cut.png"),
        ("clip.mkv", "header.wav", "header.wav"),
    ],
)
def test_what_lacks_the_needed_stream_is_named(lipsync: LipSync, tmp_path: Path, voice: Path, face: str, audio: str, words: str) -> None:
    film(tmp_path / "clip.mkv")
    Image.fromarray(smooth(64, 48)).save(tmp_path / "still.png")
    cut_png(tmp_path / "cut.png")
    write_wav(tmp_path / "header.wav", np.zeros(0))
    with pytest.raises(InputError, match=words):
        lipsync.sync(tmp_path / face, tmp_path / audio, tmp_path / "out.mp4", points=places(tmp_path / "p.json", []), **QUICK)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("link", ["same", "hard", "symbolic"])
def test_an_input_is_never_overwritten(lipsync: LipSync, tmp_path: Path, voice: Path, link: str) -> None:
    face = film(tmp_path / "clip.mkv")
    out = face
    if link != "same":
        out = tmp_path / "other.mkv"
        out.hardlink_to(face) if link == "hard" else out.symlink_to(face)
    data = face.read_bytes()
    with pytest.raises(OutputError, match="input"):
        lipsync.sync(face, voice, out, points=places(tmp_path / "p.json", []), codec="ffv1", overwrite=True, **QUICK)
    assert face.read_bytes() == data


@pytest.mark.parametrize("name", ["cut.mkv", "cut.ts"])
def test_a_recording_that_stops_in_the_middle_is_used_as_far_as_it_goes(job: Job, tmp_path: Path, name: str) -> None:
    face = film(tmp_path / name, 100, size=(160, 120), codec="libx264", options={"g": "10"})
    face.write_bytes(face.read_bytes()[: face.stat().st_size // 2])
    left = pictures(face)
    assert 10 < len(left) < 90
    long = write_wav(tmp_path / "long.wav", tone(seconds=4.5)[:, 0])
    result, frames = job(face, long, when_audio_longer="cut")
    assert len(frames) == len(left)
    assert all(same(a.picture, b) for a, b in zip(frames, left, strict=True))
    if name.endswith("mkv"):  # which says how long it was meant to be
        assert any("cut off" in note for note in result.notes)


# stills


def rgba(path: Path) -> np.ndarray:
    pixels = smooth(64, 48)
    alpha = np.zeros((48, 64, 1), np.uint8)
    alpha[:, 32:] = 255
    Image.fromarray(np.concatenate((pixels, alpha), axis=2)).save(path)
    return np.where(alpha == 255, pixels, np.uint8(255))  # over white


def deep(path: Path) -> np.ndarray:
    """16-bit RGB PNG; Pillow writes none, so by hand."""
    import zlib

    pixels = smooth(64, 48)
    lines = np.concatenate((np.zeros((48, 1), np.uint8), (pixels.astype(">u2") * 257).reshape(48, -1).view(np.uint8).reshape(48, -1)), axis=1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 64, 48, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes())) + chunk(b"IEND", b""))
    return pixels


def plain(mode: str, **options: Any) -> Callable[[Path], np.ndarray]:
    def save(path: Path) -> np.ndarray:
        image = Image.fromarray(smooth(64, 48)).convert(mode)
        image.save(path, **options)
        return np.asarray(image.convert("RGB"))

    return save


def turned(path: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    Image.fromarray(smooth(64, 48)).save(path, exif=exif, quality=95, subsampling=0)
    return np.rot90(smooth(64, 48), -1)


STILLS: dict[str, tuple[Callable[[Path], np.ndarray], float]] = {  # how it is made, and how far its decoded levels may be off
    "rgb.png": (plain("RGB"), 0),
    "alpha.png": (rgba, 0),
    "gray.png": (plain("L"), 0),
    "gray-alpha.png": (plain("LA"), 0),
    "palette.png": (plain("P"), 0),
    "bits.png": (plain("1"), 0),
    "deep.png": (deep, 1),
    "one.gif": (plain("P"), 0),
    "a.bmp": (plain("RGB"), 0),
    "a.tiff": (plain("RGB"), 0),
    "lossless.webp": (plain("RGB", lossless=True), 1),
    "photo.jpg": (plain("RGB", quality=95, subsampling=0), 8),
    "progressive.jpeg": (plain("RGB", quality=95, progressive=True), 12),
    "gray.jpg": (plain("L", quality=95), 8),
    "cmyk.jpg": (plain("CMYK", quality=95), 24),
    "turned.jpg": (turned, 8),
    "WRONG.jpg": (lambda p: plain("RGB", format="PNG")(p), 0),  # a PNG by its content
}


@pytest.mark.parametrize("name", STILLS)
def test_any_still_becomes_a_video_of_its_picture(job: Job, tmp_path: Path, name: str) -> None:
    make, off = STILLS[name]
    truth = make(tmp_path / name).astype(int)
    result, frames = job(tmp_path / name)
    assert [f.time for f in frames] == [Fraction(k, 25) for k in range(5)]
    for frame in frames:
        assert np.abs(frame.picture.rgb().astype(int) - truth).max() <= off
    _, coded = job(tmp_path / name, out="coded.mp4", codec="h264")
    height, width = truth.shape[:2]
    assert (coded[0].picture.width, coded[0].picture.height) == (width, height)
    steps = name in ("alpha.png", "bits.png", "palette.png", "one.gif")  # hard edges, which 4:2:0 blurs
    assert np.abs(coded[0].picture.rgb().astype(int) - truth).mean() < (14 if steps else 5)
    with av.open(str(tmp_path / "coded.mp4")) as file:
        assert file.streams.video[0].format.name in ("yuv420p", "yuvj420p"), "plays everywhere"
    assert result.faces == 0


def test_a_still_takes_a_new_mouth_at_any_rate(job: Job, tmp_path: Path) -> None:
    Image.fromarray(smooth(64, 48)).save(tmp_path / "still.png")
    result, frames = job(tmp_path / "still.png", points=[triangle(32, 20, 16)], fps="30000/1001")
    assert result.faces == len(frames) == 6
    for k, frame in enumerate(frames):
        assert abs(frame.time - k * Fraction(1001, 30000)) < Fraction(1, 1000)  # Matroska's millisecond
        changed = (frame.picture.rgb() != smooth(64, 48)).any(axis=2)
        assert changed.any()
        assert not changed[:8].any(), "nothing above the brows"


def test_an_animated_gif_is_a_video(job: Job, tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    images = [Image.new("RGB", (32, 24), c) for c in colours]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=50, loop=0)
    _, frames = job(tmp_path / "a.gif")
    assert [f.time for f in frames] == [Fraction(k, 20) for k in range(4)]
    assert [tuple(f.picture.rgb()[5, 5].tolist()) for f in frames] == colours


@pytest.mark.parametrize("codec", ["h264", "hevc", "ffv1", "prores"])
@pytest.mark.parametrize("kind", ["png", "mkv"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (1, 200)])
def test_tiniest_pictures_give_a_result_or_say_why_not(job: Job, tmp_path: Path, size: tuple[int, int], kind: str, codec: str) -> None:
    face = tmp_path / f"tiny.{kind}"
    if kind == "png":
        Image.fromarray(smooth(*size)).save(face)
    else:
        film(face, 3, size=size, pix_fmt="yuv444p", options={"level": "1"})
    if codec == "hevc":  # whose encoder refuses them
        with pytest.raises(UsageError, match=rf"{size[0]}x{size[1]}.*--codec"):
            job(face, codec=codec)
        assert not list(tmp_path.glob("*.mkv")) or kind == "mkv"
        assert not (tmp_path / "out.mkv").exists()
        return
    _, frames = job(face, codec=codec)
    picture = frames[0].picture
    assert (picture.width, picture.height) == size
    if codec == "ffv1" and kind == "png":
        assert np.array_equal(picture.rgb(), smooth(*size))


# sizes, aspects, rotation


@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("hevc", "mp4"), ("ffv1", "mkv"), ("prores", "mov")])
@pytest.mark.parametrize("size", [(321, 239), (175, 144), (174, 145)])
def test_odd_sizes_keep_every_row_and_column(job: Job, tmp_path: Path, size: tuple[int, int], codec: str, suffix: str) -> None:
    width, height = size
    face = film(tmp_path / "odd.mkv", 5, size=size)
    # a mouth that reaches into the last row and column
    result, frames = job(face, out=f"out.{suffix}", codec=codec, points=[triangle(width - 40, height - 50, 50)] * 5)
    assert result.faces == 5
    for frame, before in zip(frames, pictures(face), strict=True):
        after = frame.picture
        assert (after.width, after.height) == size
        old, new = before.rgb().astype(int), after.rgb().astype(int)
        off = np.abs(old - new).max(axis=2)
        assert off[height - 40 :, width - 70 :].max() > 20, "the mouth is new"
        outside = off[: height - 90]
        assert outside.max() == 0 if codec == "ffv1" else outside.mean() < 4
        assert codec == "ffv1" or outside[:, -1].mean() < 8, "the last column is a picture too"


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_comes_out_upright_with_its_mouth_in_place(job: Job, tmp_path: Path, degrees: int) -> None:
    plain_file = film(tmp_path / "plain.mp4", 5, size=(96, 64), codec="libx264", options={"crf": "1"})
    face = film(tmp_path / "turned.mp4", 5, size=(96, 64), codec="libx264", options={"crf": "1"}, rotation=degrees)
    upright = np.rot90(pictures(plain_file)[0].rgb(), degrees // 90)
    height, width = upright.shape[:2]
    _, frames = job(face, points=[triangle(width / 2, height / 2, 20)] * 5)
    after = frames[0].picture.rgb()
    assert after.shape == upright.shape
    changed = (after != upright).any(axis=2)
    ys, xs = np.nonzero(changed)
    assert len(ys), "a new mouth"
    assert abs(xs.mean() - width / 2) < 3
    assert ys.min() > height / 2 - 16
    with open_video(tmp_path / "out.mkv") as video:
        assert video.info.rotation == 0


def test_pixels_that_are_not_square_stay_so_and_the_mouth_fits_them(job: Job, tmp_path: Path) -> None:
    square = film(tmp_path / "square.mov", 5, size=(200, 160), codec="prores_ks", pix_fmt="yuv422p10le")
    narrow = film(tmp_path / "narrow.mov", 5, size=(100, 160), codec="prores_ks", pix_fmt="yuv422p10le", aspect=Fraction(2))
    spans = []
    for face, x, wide in ((square, 100, 1.0), (narrow, 50, 0.5)):
        _, frames = job(face, out=f"{face.stem}-out.mp4", codec="h264", crf=1, points=[triangle(x, 70, 40, wide)] * 5)
        off = np.abs(frames[0].picture.rgb().astype(int) - pictures(face)[0].rgb().astype(int)).max(axis=2) > 12
        ys, xs = np.nonzero(off)
        spans.append((np.ptp(xs) + 1, np.ptp(ys) + 1))
        with open_video(tmp_path / f"{face.stem}-out.mp4") as video:
            assert video.info.pixel_aspect == (2 if face == narrow else 1)
    assert spans[0][0] == pytest.approx(2 * spans[1][0], rel=0.1)
    assert spans[0][1] == pytest.approx(spans[1][1], rel=0.1)


# faces in strange places


@pytest.mark.parametrize(
    "points",
    [
        [[30, 30]] * 3,
        [[1e30, 1e30], [-1e30, 1e30], [0, -1e30]],
        [[math.inf, 1], [2, 3], [4, 5]],
    ],
)
def test_points_that_make_no_face_are_named(lipsync: LipSync, tmp_path: Path, voice: Path, points: list[list[float]]) -> None:
    file = places(tmp_path / "bad.json", [triangle(32, 20, 16), points])
    with pytest.raises(InputError, match=r"bad\.json: entry 1"):
        lipsync.sync(film(tmp_path / "clip.mkv"), voice, tmp_path / "out.mkv", points=file, codec="ffv1", **QUICK)
    assert not (tmp_path / "out.mkv").exists()


@pytest.mark.parametrize(
    ("what", "points", "changes"),
    [
        ("a line", [[10, 30], [30, 30], [20, 30]], None),
        ("far outside", triangle(5000, 5000, 30), False),
        ("a speck", triangle(32, 24, 0.01), None),
        ("a giant", triangle(32, 24, 5000), None),
        ("upside down", [[40, 40], [20, 40], [30, 10]], True),
        ("half outside", triangle(0, 40, 40), True),
    ],
)
def test_faces_anywhere_neither_break_nor_blow_up(job: Job, tmp_path: Path, what: str, points: list[list[float]], changes: bool | None) -> None:
    face = film(tmp_path / "clip.mkv")
    _, frames = job(face, points=[points] * 5)
    touched = [not same(f.picture, b) for f, b in zip(frames, pictures(face), strict=True)]
    assert len(touched) == 5
    if changes is not None:
        assert touched == [changes] * 5, what


# lengths and rates


@pytest.mark.parametrize(("mode", "frames"), [("bounce", 5), ("loop", 5), ("freeze", 5), ("cut", 1)])
def test_a_video_of_one_frame(job: Job, tmp_path: Path, mode: str, frames: int) -> None:
    face = film(tmp_path / "one.mkv", 1)
    _, got = job(face, when_audio_longer=mode, points=[triangle(32, 20, 16)])
    assert [f.time for f in got] == [Fraction(k, 25) for k in range(frames)]


@pytest.mark.parametrize("rate", [Fraction(1), Fraction(120), Fraction(1000, 1001)])
def test_slow_and_fast_videos_keep_their_times(job: Job, tmp_path: Path, rate: Fraction) -> None:
    face = film(tmp_path / "clip.mov", 3, rate=rate, codec="libx264")
    sound = write_wav(tmp_path / "long.wav", tone(seconds=float(3 / rate))[:, 0])
    _, frames = job(face, sound, out="out.mp4", codec="h264")
    assert [f.time for f in frames] == [k / rate for k in range(3)]


@pytest.mark.parametrize(("fps", "count"), [(1, 1), (240, 48), ("23.976", 5)])
def test_other_rates_than_the_source(job: Job, tmp_path: Path, fps: Any, count: int) -> None:
    _, frames = job(film(tmp_path / "clip.mkv"), out="out.mov", codec="prores", fps=fps)
    assert len(frames) == count
    rate = Fraction(24000, 1001) if fps == "23.976" else Fraction(fps)
    assert [f.time for f in frames] == [k / rate for k in range(count)]


def test_a_video_that_changes_its_size_on_the_way(job: Job, tmp_path: Path) -> None:
    a = film(tmp_path / "a.ts", 20, codec="libx264", size=(64, 48))
    b = film(tmp_path / "b.ts", 10, codec="libx264", size=(96, 64))
    both = written(tmp_path / "both.ts", a.read_bytes() + b.read_bytes())
    sound = write_wav(tmp_path / "long.wav", tone(seconds=1.0)[:, 0])
    result, frames = job(both, sound)
    assert {(f.picture.width, f.picture.height) for f in frames} == {(64, 48)}
    assert [round(f.time, 3) for f in frames] == [Fraction(k, 25) for k in range(25)]
    assert any("size" in note or "96x64" in note for note in result.notes), result.notes


# sounds


def pcm(path: Path, values: np.ndarray, rate: int, width: int = 2) -> Path:
    """(n, channels) floats as a .wav of 1, 2 or 3 bytes a sample."""
    whole = np.round(np.clip(values, -1, 1) * (2 ** (8 * width - 1) - 1)).astype("<i4")
    raw = (whole + 128).astype(np.uint8).tobytes() if width == 1 else whole.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return path


def raw_sound(path: Path) -> tuple[int, int, bytes]:
    """Rate, channels and all bytes of the first soundtrack, as they lie in the file."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        return stream.rate, stream.channels, b"".join(bytes(p) for p in file.demux(stream) if p.size)


@pytest.mark.parametrize(("rate", "channels", "width"), [(8000, 1, 2), (11025, 2, 1), (22050, 1, 3), (44100, 6, 2), (48000, 2, 3), (96000, 2, 2)])
def test_sound_of_any_rate_and_channels_is_copied_bit_by_bit(job: Job, tmp_path: Path, rate: int, channels: int, width: int) -> None:
    sound = pcm(tmp_path / "sound.wav", tone(rate, channels=channels), rate, width)
    result, frames = job(film(tmp_path / "clip.mkv"), sound)
    assert len(frames) == 5
    assert raw_sound(tmp_path / "out.mkv") == raw_sound(sound)
    assert not [n for n in result.notes if "AAC" in n]


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (48000, 6), (96000, 2)])
def test_mp4_takes_wav_as_aac_in_its_own_rate_and_channels(job: Job, tmp_path: Path, rate: int, channels: int) -> None:
    sound = pcm(tmp_path / "sound.wav", tone(rate, channels=channels), rate)
    result, _ = job(film(tmp_path / "clip.mkv"), sound, out="out.mp4", codec="h264")
    with av.open(str(tmp_path / "out.mp4")) as file:
        stream = file.streams.audio[0]
        assert (stream.codec_context.name, stream.rate, stream.channels) == ("aac", rate, channels)
        heard = [f.to_ndarray() for f in file.decode(stream)]
    heard_all = np.concatenate(heard, axis=1)
    for channel in range(channels):  # each channel carries its own pitch; 5.1's fourth is the bass channel, which AAC filters
        if channels == 6 and channel == 3:
            continue
        spectrum = np.abs(np.fft.rfft(heard_all[channel] * np.hanning(heard_all.shape[1])))
        pitch = spectrum.argmax() * rate / heard_all.shape[1]
        assert pitch == pytest.approx(220 * (1 + channel), abs=25)
    assert any("AAC" in note for note in result.notes)


@pytest.mark.parametrize("samples", [1, 2, 640, 641])
@pytest.mark.parametrize("out", ["out.mkv", "out.mp4"])
def test_the_shortest_sounds(job: Job, tmp_path: Path, samples: int, out: str) -> None:
    sound = write_wav(tmp_path / "short.wav", np.full(samples, 0.5))
    codec = "ffv1" if out.endswith("mkv") else "h264"
    result, frames = job(film(tmp_path / "clip.mkv"), sound, out=out, codec=codec, points=[triangle(32, 20, 16)] * 5)
    assert len(frames) == result.faces == (2 if samples == 641 else 1)
    assert raw_sound(tmp_path / out)[2], "the sound is there"


@pytest.mark.parametrize(("rate", "samples"), [(16000, 1500), (16000, 7000), (44100, 20500), (44100, 22000)])
def test_encoded_sound_is_whole_to_its_end(job: Job, tmp_path: Path, rate: int, samples: int) -> None:
    """Loud to the last sample: its end must be in the file, whatever its length is in blocks and frames."""
    sound = pcm(tmp_path / "sound.wav", tone(rate, samples / rate), rate)
    job(film(tmp_path / "clip.mkv", 15), sound, out="out.mp4", codec="h264")
    heard = np.concatenate(list(open_audio(tmp_path / "out.mp4").samples(rate)))
    assert abs(len(heard) - samples) < 1200  # AAC comes in blocks of 1024
    end = heard[samples - 400 : samples - 100]
    assert 0.1 < np.sqrt(np.mean(end**2)) < 0.3


def test_silence_is_a_sound(job: Job, tmp_path: Path) -> None:
    result, _ = job(film(tmp_path / "clip.mkv"), write_wav(tmp_path / "s.wav", np.zeros(3200)), points=[triangle(32, 20, 16)] * 5)
    assert result.faces == 5


def test_sound_from_a_video_file_keeps_its_offset(job: Job, tmp_path: Path) -> None:
    """A file whose sound starts 80 ms after its picture says its words 80 ms into the result."""
    path = tmp_path / "late.mov"
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio: Any = out.add_stream("pcm_s16le", rate=16000, layout="mono")
        for k in range(10):
            image = av.VideoFrame.from_ndarray(smooth(64, 48, k), "rgb24").reformat(format="yuv420p")
            image.pts, image.time_base = k, Fraction(1, 25)
            out.mux(video.encode(image))
        out.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.full((1, 3200), 9000, np.int16), "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 1280, Fraction(1, 16000)
        out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    _, frames = job(path, path, out="out.mkv")
    assert len(frames) == 7  # 0.08 + 0.2 s
    heard = np.concatenate(list(open_audio(tmp_path / "out.mkv").samples(16000)))
    assert len(heard) == 4480
    assert not heard[:1280].any()
    assert (heard[1280:] > 0.2).all()


def test_a_video_file_with_sound_alone_is_a_soundtrack(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        audio: Any = out.add_stream("aac", rate=44100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(tone(44100, channels=2).T.astype(np.float32).copy(), "fltp", "stereo")
        frame.sample_rate = 44100
        out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    result, frames = job(film(tmp_path / "clip.mkv"), path, out="out.mp4", codec="h264", when_audio_longer="freeze")
    assert not [n for n in result.notes if "AAC" in n], "copied, not encoded again"
    assert raw_sound(path)[2].startswith(raw_sound(tmp_path / "out.mp4")[2])
    assert len(frames) in (5, 6)
    with pytest.raises(InputError, match=r"sound\.mp4 holds no video"):
        job(path)
