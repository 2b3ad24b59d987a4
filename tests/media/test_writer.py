"""Writing: exact pixels and times, the soundtrack as given, and files that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentsync.errors import OutputError, UsageError
from latentsync.media.audio import open_audio
from latentsync.media.frame import Frame
from latentsync.media.timeline import timeline
from latentsync.media.video import open_video
from latentsync.media.writer import VideoWriter, check_output


def write(out: Path, source: Any, frames: Iterable[Frame] | None = None, **options: Any) -> Path:
    options.setdefault("audio", None)
    with VideoWriter(out, source.info, **options) as writer:
        for frame in frames if frames is not None else source.frames():
            writer.write(frame)
    return out


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".latentsync-")]


def times(path: Path) -> list[Fraction]:
    return [f.time for f in open_video(path).frames()]


# pixels


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "size"),
    [
        ("a.mp4", "libx264", "yuv420p", (64, 48)),
        ("a.mp4", "libx264", "yuv420p10le", (64, 48)),
        ("a.mp4", "libx264", "yuvj420p", (64, 48)),
        ("a.mp4", "libx264", "yuv444p", (33, 21)),
        ("a.mkv", "ffv1", "yuv420p", (33, 21)),
        ("a.mkv", "ffv1", "yuv422p12le", (34, 20)),
        ("a.mkv", "ffv1", "gray", (31, 17)),
        ("a.mkv", "ffv1", "gray10le", (32, 18)),
        ("a.mkv", "ffv1", "yuv411p", (32, 18)),
        ("a.mkv", "ffv1", "gbrp12le", (32, 18)),
        ("a.png", "png", "rgb24", (35, 27)),
        ("a.png", "png", "rgb48be", (34, 26)),
        ("a.jpg", "mjpeg", "yuvj444p", (34, 26)),
        ("a.mov", "prores_ks", "yuv422p10le", (64, 48)),
    ],
)
def test_ffv1_keeps_every_sample_outside_the_paste(
    make_video: Any, tmp_path: Path, name: str, codec: str, pix_fmt: str, size: tuple[int, int], suffix: str
) -> None:
    still = name.endswith(("png", "jpg"))
    options = {"level": "3", "slices": "1"} if codec == "ffv1" else {}
    source = open_video(make_video(name, 1 if still else 6, codec=codec, pix_fmt=pix_fmt, size=size, options=options))
    box = (4, 6, 20, 15)
    rng = np.random.default_rng(0)
    frames = list(timeline(source, Fraction(6, 25)))
    pasted = []
    for f in frames:
        alpha = np.pad(rng.random((7, 14)).astype(np.float32), 1)
        pasted.append(Frame(f.index, f.time, f.duration, f.picture.blend(box, rng.random((9, 16, 3)).astype(np.float32) * 255, alpha)))
    result = open_video(write(tmp_path / f"out{suffix}", source, pasted, codec="ffv1"))
    count = 0
    for f, g, r in zip(frames, pasted, result.frames(), strict=True):
        assert r.picture.layout.name == f.picture.layout.name
        for a, b, c in zip(f.picture.planes, g.picture.planes, r.picture.planes, strict=True):
            np.testing.assert_array_equal(b, c)
            assert (a == b).mean() > 0.6  # the paste is small, the rest is the source's own
        count += 1
    assert count == 6


@pytest.mark.parametrize("codec", ["h264", "hevc", "prores"])
@pytest.mark.parametrize("size", [(64, 48), (63, 47), (63, 48)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "gray", "yuv444p"])
def test_lossy_codecs_stay_close_at_any_size(make_video: Any, tmp_path: Path, codec: str, size: tuple[int, int], pix_fmt: str) -> None:
    source = open_video(make_video("a.mkv", 3, codec="ffv1", pix_fmt=pix_fmt, size=size))
    result = open_video(write(tmp_path / "out.mov", source, codec=codec))
    assert (result.info.width, result.info.height) == size
    assert result.info.codec == codec
    if codec != "prores" and pix_fmt.startswith("yuv") and size == (64, 48):
        assert result.info.pixel_format == pix_fmt
    for a, b in zip(source.frames(), result.frames(), strict=True):
        error = np.abs(a.picture.rgb().astype(int) - b.picture.rgb().astype(int))
        assert np.mean(error) < 3


def test_tags_aspect_and_depth_go_into_the_result(make_video: Any, tmp_path: Path) -> None:
    def setup(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        stream.codec_context.colorspace, stream.codec_context.color_range = 9, 1
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 9, 16

    source = open_video(make_video("a.mp4", 3, pix_fmt="yuv420p10le", setup=setup))
    for name, codec in [("o.mp4", "h264"), ("o.mp4", "hevc"), ("o.mkv", "h264"), ("o.mkv", "ffv1"), ("o.mov", "prores")]:
        info = open_video(write(tmp_path / name, source, codec=codec, overwrite=True)).info
        assert info.colour == source.info.colour, (name, codec)
        if codec != "ffv1":  # which keeps it in its own stream, where PyAV does not look
            assert info.pixel_aspect == Fraction(16, 11), (name, codec)
        assert info.bit_depth == 10


@pytest.mark.parametrize("degrees", [90, 180])
def test_a_turned_source_comes_out_upright_and_untagged(make_video: Any, tmp_path: Path, degrees: int) -> None:
    source = open_video(make_video("a.mp4", 3, rotation=degrees))
    result = open_video(write(tmp_path / "o.mkv", source, codec="ffv1"))
    assert result.info.rotation == 0
    for a, b in zip(source.frames(), result.frames(), strict=True):
        np.testing.assert_array_equal(a.picture.planes[0], b.picture.planes[0])


# times


@pytest.mark.parametrize(
    "rate", [Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(50), Fraction(60)], ids=str
)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_constant_rates_come_out_exactly(make_video: Any, tmp_path: Path, rate: Fraction, suffix: str) -> None:
    source = open_video(make_video("a.mp4", 40, rate=rate))
    out = write(tmp_path / f"o{suffix}", source)
    frames = list(open_video(out).frames())
    assert [f.time for f in frames] == [k / rate for k in range(40)]
    assert frames[-1].duration == 1 / rate
    with av.open(str(out)) as c:
        assert c.streams.video[0].average_rate == rate
        assert c.streams.video[0].start_time == 0


@pytest.mark.parametrize(("name", "codec"), [("o.mp4", "h264"), ("o.mp4", "hevc"), ("o.mov", "prores"), ("o.mov", "h264")])
def test_variable_rate_comes_out_exactly_bounced_too(make_video: Any, tmp_path: Path, name: str, codec: str) -> None:
    stamps = [Fraction(k * k + 3 * k, 15360) for k in range(1, 60, 3)]
    source = open_video(make_video("a.mp4", 20, times=stamps, time_base=Fraction(1, 15360), options={"g": "5"}))
    frames = list(timeline(source, Fraction(1)))
    assert len(frames) > 40
    assert times(write(tmp_path / name, source, frames, codec=codec)) == [f.time for f in frames]


def test_matroska_keeps_times_to_its_millisecond(make_video: Any, tmp_path: Path) -> None:
    source = open_video(make_video("a.mp4", 40, rate=Fraction(24000, 1001)))
    got = times(write(tmp_path / "o.mkv", source))
    assert all(abs(t - k * Fraction(1001, 24000)) <= Fraction(1, 1000) for k, t in enumerate(got))


def test_resampled_times_are_exact(make_video: Any, tmp_path: Path) -> None:
    source = open_video(make_video("a.mp4", 20))
    fps = Fraction(30000, 1001)
    got = times(write(tmp_path / "o.mp4", source, timeline(source, Fraction(1), fps=fps), rate=fps))
    assert got == [k / fps for k in range(30)]


# sound


def beep(rate: int, seconds: float = 2.0, at: float = 1.0, channels: int = 2) -> np.ndarray:
    wave = np.zeros((int(rate * seconds), channels))
    n = rate // 50
    start = int(rate * at)
    wave[start : start + n] = 0.8 * (np.sin(np.arange(n) * 2 * np.pi * 1000 / rate) * np.hanning(n))[:, None]
    return wave


def centre(path: Path) -> float:
    got = np.concatenate(list(open_audio(path).samples()))
    return float((np.arange(len(got)) * got**2).sum() / (got**2).sum()) / 16000


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as c:
        return [bytes(p) for p in c.demux(c.streams.audio[0]) if p.size]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000, 192000])
def test_wav_sound_stays_at_its_time(make_video: Any, make_wav: Any, tmp_path: Path, suffix: str, rate: int) -> None:
    source = open_video(make_video("a.mp4", 50))
    out = write(tmp_path / f"o{suffix}", source, audio=make_wav("a.wav", beep(rate), rate))
    assert abs(centre(out) - 1.01) < 0.001
    info = open_audio(out).info
    assert info.channels == 2
    if suffix == ".mp4":
        assert info.codec == "aac"
        assert info.rate == (96000 if rate == 192000 else rate)
    else:
        assert info.codec == "pcm_s16le"
        assert info.rate == rate
        assert info.duration == 2


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "flac", "alac", "libopus", "ac3", "mp2"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("kind", [".m4a", ".mka", ".bare"])
def test_compressed_sound_is_copied_at_its_time(make_video: Any, tmp_path: Path, codec: str, suffix: str, kind: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec}")
    bare = {"aac": ".aac", "libmp3lame": ".mp3", "flac": ".flac", "libopus": ".opus", "ac3": ".ac3", "mp2": ".mp2"}
    if kind == ".bare" and codec not in bare:
        pytest.skip("has no bare form")
    name = "a" + (bare[codec] if kind == ".bare" else kind)
    rate = 48000
    with av.open(str(tmp_path / name), "w", format="mp4" if kind == ".m4a" else None) as c:
        track: Any = c.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(beep(rate).astype(np.float32)).reshape(1, -1), "flt", "stereo")
        frame.sample_rate, frame.pts = rate, 0
        for part in av.AudioResampler(track.codec_context.format.name, "stereo", rate).resample(frame):
            c.mux(track.encode(part))
        c.mux(track.encode(None))
    given = tmp_path / name
    source = open_video(make_video("a.mp4", 50))
    out = tmp_path / f"o{suffix}"
    with VideoWriter(out, source.info, audio=given) as writer:
        for f in source.frames():
            writer.write(f)
        copied = writer.audio_copied
    assert abs(centre(out) - centre(given)) < (0.001 if suffix != ".mkv" else 0.003)
    if copied:
        was, now = packets(given), packets(out)
        if name != "a.aac":  # whose packets lose their ADTS headers on the way, nothing else
            assert any(now == was[k : k + len(now)] for k in range(4))
        assert len(now) >= len(was) - 4
    else:
        assert open_audio(out).info.codec == "aac"


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("sound", ["pcm_s16le", "flac", "aac"])
def test_sound_is_cut_where_the_pictures_end(make_video: Any, make_wav: Any, tmp_path: Path, suffix: str, sound: str) -> None:
    wave = make_wav("a.wav", np.sin(np.arange(16000 * 4) / 5) * 0.5)
    if sound != "pcm_s16le":
        one = open_video(make_video("one.mp4", 100))
        wave = write(tmp_path / "a.mkv" if sound == "flac" else tmp_path / "b.mp4", one, audio=wave)
    source = open_video(make_video("a.mp4", 50))
    out = write(tmp_path / f"o{suffix}", source, audio=wave)
    length = open_audio(out).info.duration
    block = 0 if open_audio(out).info.codec.startswith("pcm") else Fraction(4096, 16000)
    assert 2 <= length <= 2 + block


def test_shorter_sound_is_left_as_it_is(make_video: Any, make_wav: Any, tmp_path: Path) -> None:
    source = open_video(make_video("a.mp4", 50))
    out = write(tmp_path / "o.mkv", source, audio=make_wav("a.wav", np.ones(8000) * 0.1))
    assert open_audio(out).info.duration == Fraction(1, 2)
    assert len(times(out)) == 50


def test_gap_and_offset_reach_the_result(tmp_path: Path, make_video: Any) -> None:
    """A soundtrack that starts half a second after its own picture does so in the result, copied or encoded."""
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("mpeg4", rate=25, time_base=Fraction(1, 25))
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        sound: Any = out.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray((beep(16000, channels=1).T * 32767).astype(np.int16), "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 16000, Fraction(1, 16000), 8000
        for k in range(60):
            image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24").reformat(format="yuv420p")
            image.pts, image.time_base = k, Fraction(1, 25)
            out.mux(video.encode(image))
        out.mux(video.encode(None))
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    source = open_video(make_video("a.mp4", 75))
    for name in ("o.mp4", "o.mov", "o.mkv"):
        assert abs(centre(write(tmp_path / name, source, audio=path)) - 1.51) < 0.001
    again = write(tmp_path / "again.mov", source, audio=tmp_path / "o.mp4")  # AAC copied from what was made here
    assert abs(centre(again) - 1.51) < 0.001


def test_the_index_stands_first_in_mp4(make_video: Any, tmp_path: Path) -> None:
    data = write(tmp_path / "o.mp4", open_video(make_video("a.mp4", 10))).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


# names and places


@pytest.mark.parametrize(
    "name", ["with space.mp4", "quote'\".mp4", "ünïcødé 文.mp4", "-dash.mp4", "new\nline.mp4", "100%03d.mp4", "a:b.mp4", "#$`;.mp4"]
)
def test_any_name_works(make_video: Any, make_wav: Any, tmp_path: Path, name: str) -> None:
    folder = tmp_path / f"in {name[:-4]}"
    folder.mkdir()
    source = open_video(make_video("a.mp4", 3).rename(folder / name))
    sound = make_wav("a.wav", np.zeros(1600)).rename(folder / f"{name}.wav")
    out = write(folder / f"out{name}", source, audio=sound)
    assert len(times(out)) == 3
    assert not leftovers(folder)


def test_image_with_a_pattern_in_its_name(make_video: Any, tmp_path: Path) -> None:
    path = make_video("plain.png", 1, codec="png", pix_fmt="rgb24").rename(tmp_path / "a%03d.png")
    assert open_video(path).info.is_still


@pytest.mark.parametrize(
    ("name", "codec", "words"),
    [
        ("o.webm", "h264", ".mp4"),
        ("o", "h264", ".mp4"),
        ("o.txt", "h264", ".mkv"),
        ("o.mp4", "prores", ".mov"),
        ("o.mp4", "ffv1", ".mkv"),
        ("o.avi", "h264", "ffv1"),
        ("o.mp4", "vp9", "hevc"),
    ],
)
def test_impossible_pairs_are_refused_with_what_works(make_video: Any, tmp_path: Path, name: str, codec: str, words: str) -> None:
    info = open_video(make_video("a.mp4", 1)).info
    with pytest.raises(UsageError, match=words):
        VideoWriter(tmp_path / name, info, audio=None, codec=codec)
    with pytest.raises(UsageError, match=words):
        check_output(tmp_path / name, codec)


def test_crf_is_checked_and_works(make_video: Any, tmp_path: Path) -> None:
    source = open_video(make_video("a.mp4", 10, size=(320, 240)))
    for bad, codec in [(-1, "h264"), (52, "hevc"), (20, "ffv1"), (20, "prores")]:
        with pytest.raises(UsageError, match="crf"):
            check_output(tmp_path / ("o.mov" if codec == "prores" else "o.mkv"), codec, bad)
    fine, coarse = (write(tmp_path / f"{crf}.mp4", source, crf=crf).stat().st_size for crf in (10, 40))
    assert fine > 2 * coarse


def test_existing_output_needs_overwrite(make_video: Any, tmp_path: Path) -> None:
    source = open_video(make_video("a.mp4", 3))
    out = tmp_path / "o.mp4"
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="--overwrite"):
        VideoWriter(out, source.info, audio=None)
    assert out.read_bytes() == b"mine"
    write(out, source, overwrite=True)
    assert len(times(out)) == 3


def test_a_file_that_appears_meanwhile_is_left_alone(make_video: Any, tmp_path: Path) -> None:
    source = open_video(make_video("a.mp4", 3))
    out = tmp_path / "o.mp4"

    def run() -> None:
        with VideoWriter(out, source.info, audio=None) as writer:
            for f in source.frames():
                writer.write(f)
            out.write_bytes(b"someone else's")

    with pytest.raises(OutputError, match="meanwhile"):
        run()
    assert out.read_bytes() == b"someone else's"
    assert not leftovers(tmp_path)


def test_wrong_places_are_refused(make_video: Any, make_wav: Any, tmp_path: Path) -> None:
    path = make_video("a.mp4", 3)
    sound = make_wav("a.wav", np.zeros(100))
    source = open_video(path)
    (tmp_path / "folder.mp4").mkdir()
    for out, words in [(tmp_path / "folder.mp4", "folder"), (tmp_path / "none" / "o.mp4", "does not exist"), (path, "input")]:
        with pytest.raises(OutputError, match=words):
            VideoWriter(out, source.info, audio=sound, overwrite=True)
    link = tmp_path / "link.mp4"
    link.symlink_to(path)
    with pytest.raises(OutputError, match="input"):
        VideoWriter(link, source.info, audio=None, overwrite=True)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 2, 60])
def test_an_error_leaves_nothing(make_video: Any, make_wav: Any, tmp_path: Path, error: type[BaseException], after: int) -> None:
    source = open_video(make_video("a.mp4", 80))
    out = tmp_path / "o.mp4"

    def run() -> None:
        with VideoWriter(out, source.info, audio=make_wav("a.wav", np.zeros(64000))) as writer:
            for f in source.frames():
                if f.index == after:
                    raise error
                writer.write(f)

    with pytest.raises(error):
        run()
    assert not out.exists()
    assert not leftovers(tmp_path)


def test_no_frames_is_an_error(make_video: Any, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frames"):
        write(tmp_path / "o.mp4", open_video(make_video("a.mp4", 1)), [])
    assert not leftovers(tmp_path)


FILL = """
import sys, resource, signal
from pathlib import Path
import numpy as np
from latentsync.media.video import open_video
from latentsync.media.writer import VideoWriter
from latentsync.errors import OutputError
limit = int(sys.argv[3])
source = open_video(Path(sys.argv[1]))
out = Path(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
lossless = {"codec": "h264", "crf": 0} if out.suffix == ".mp4" else {"codec": "ffv1"}
try:
    with VideoWriter(out, source.info, audio=None, **lossless) as writer:
        for f in source.frames():
            writer.write(f)
except OutputError as e:
    print(e)
    sys.exit(6)
"""


def noise(width: int, height: int, k: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_a_file_size_limit_is_an_output_error(make_video: Any, tmp_path: Path, suffix: str) -> None:
    path = make_video("a.mkv", 10, codec="ffv1", size=(320, 240), picture=noise)
    out = tmp_path / f"o{suffix}"
    run = subprocess.run([sys.executable, "-B", "-c", FILL, str(path), str(out), "300000"], capture_output=True, text=True, check=False)
    assert run.returncode == 6, run.stderr
    assert "grow that large" in run.stdout
    assert not out.exists()
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_a_full_disk_is_an_output_error(make_video: Any, tmp_path: Path, suffix: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.name != "posix"
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small file system is not permitted here")
    try:
        path = make_video("a.mkv", 10, codec="ffv1", size=(320, 240), picture=noise)
        run = subprocess.run(
            [sys.executable, "-B", "-c", FILL, str(path), str(disk / f"o{suffix}"), "0"], capture_output=True, text=True, check=False
        )
        assert run.returncode == 6, run.stderr
        assert "disk is full" in run.stdout
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_nothing_is_printed(make_video: Any, tmp_path: Path) -> None:
    """x264, x265 and libav keep quiet on stderr."""
    path = make_video("a.mp4", 5)
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from latentsync.media.video import open_video
        from latentsync.media.writer import VideoWriter
        v = open_video(Path(sys.argv[1]))
        for codec, name in [("h264", "a.mp4"), ("hevc", "b.mp4"), ("prores", "c.mov"), ("ffv1", "d.mkv")]:
            with VideoWriter(Path(sys.argv[2]) / ("quiet-" + name), v.info, audio=None, codec=codec) as w:
                for f in v.frames():
                    w.write(f)
    """)
    run = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path)], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_interleaving_is_close(make_video: Any, make_wav: Any, tmp_path: Path) -> None:
    """Sound and picture packets of the same time stand near each other in the file, so nothing has to be held back."""
    source = open_video(make_video("a.mp4", 250))
    for name, codec in [("o.mp4", "h264"), ("o.mkv", "ffv1"), ("o.mov", "h264")]:
        out = write(tmp_path / name, source, audio=make_wav("a.wav", np.zeros(160000)), codec=codec)
        with av.open(str(out)) as c:
            found = sorted((p.pos, p.stream.type, float((p.dts or 0) * p.time_base)) for p in c.demux() if p.size and p.pos is not None)
        latest = {"video": 0.0, "audio": 0.0}
        for _, kind, time in found:
            latest[kind] = max(latest[kind], time)
            assert abs(latest["video"] - latest["audio"]) < 1.5
