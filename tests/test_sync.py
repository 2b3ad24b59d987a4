"""The main job end to end, on a drawn face with known places: needs no clips, no downloads and no trained weights."""

import json
import threading
from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.errors import InputError, NoFaceError, OutputError
from latentsync.media.video import open_video
from latentsync.pipeline import LipSync

QUICK = {"steps": 2, "guidance": 1.0}


@pytest.fixture(scope="module")
def lipsync(tiny_model):
    return LipSync.load(tiny_model, device="cpu", dtype="fp32", faces=False)


def pictures(path):
    with open_video(path) as video:
        return [(frame.time, frame.picture) for frame in video.frames()]


def planes(picture):
    return [p.copy() for p in picture.planes]


def test_only_the_mouth_changes_and_every_frame_keeps_its_time(lipsync, sample, tmp_path):
    out = tmp_path / "out.mkv"
    result = lipsync.sync(sample / "sample.mp4", sample / "speech.wav", out, points=sample / "points.npz", codec="ffv1", **QUICK)
    before, after = pictures(sample / "sample.mp4"), pictures(out)
    assert [t for t, _ in before] == [t for t, _ in after]
    assert result.frames == result.faces == len(after) == len(before)
    points = np.load(sample / "points.npz")["points"]
    for i, ((_, a), (_, b)) in enumerate(zip(before, after, strict=True)):
        changed = (a.rgb() != b.rgb()).any(axis=2)
        ys, xs = np.nonzero(changed)
        unit = np.linalg.norm(points[i][1] - points[i][0])  # between the brows
        assert changed.mean() > 0.01, "the mouth is made anew"
        # around the mouth, below the brows: nothing else
        assert np.abs(xs - points[i][2][0]).max() < 1.6 * unit
        assert ys.min() > points[i][:2, 1].min()
        assert ys.max() < points[i][2][1] + 2.2 * unit
        for p, q in zip(planes(a), planes(b), strict=True):
            scale = p.shape[0] / a.height
            outside = np.ones(p.shape, bool)
            outside[int(ys.min() * scale) : int(np.ceil((ys.max() + 1) * scale)), int(xs.min() * scale) : int(np.ceil((xs.max() + 1) * scale))] = (
                False
            )
            assert np.array_equal(p[outside], q[outside])


def test_a_seed_gives_the_same_pictures_however_windows_are_batched(lipsync, sample):
    def run(**more):
        given = {**QUICK, "seed": 5, **more}
        return [
            f.picture.rgb().astype(int) for f in lipsync.stream(sample / "sample.mp4", sample / "speech.wav", points=sample / "points.npz", **given)
        ]

    one, same, batched, other = run(), run(), run(batch_windows=2), run(seed=6)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    # batches may round differently, and random weights amplify that; a different seed is another picture
    apart = [np.abs(a - b) for a, b in zip(one, batched, strict=True)]
    assert max(d.max() for d in apart) <= 4
    assert np.mean([d.mean() for d in apart]) < 0.01
    assert max(np.abs(a - b).max() for a, b in zip(one, other, strict=True)) > 10


def test_the_sound_moves_the_mouth(lipsync, sample, tmp_path):
    from tests.conftest import write_wav

    loud, silent = sample / "speech.wav", write_wav(tmp_path / "silent.wav", np.zeros(16000 * 2, np.float32))
    a, b = (
        [f.picture.rgb().astype(int) for f in lipsync.stream(sample / "sample.mp4", s, points=sample / "points.npz", **QUICK)] for s in (loud, silent)
    )
    assert max(np.abs(x - y).max() for x, y in zip(a, b, strict=False)) > 3


def test_frames_without_a_face_pass_untouched_or_stop_the_job(lipsync, sample, tmp_path):
    points = np.load(sample / "points.npz")["points"].copy()
    points[10:20] = np.nan
    np.savez(tmp_path / "gap.npz", points=points)
    out = tmp_path / "out.mkv"
    result = lipsync.sync(sample / "sample.mp4", sample / "speech.wav", out, points=tmp_path / "gap.npz", codec="ffv1", **QUICK)
    assert result.without_face == [(0.4, 0.8)]
    before, after = pictures(sample / "sample.mp4"), pictures(out)
    same = [all(np.array_equal(p, q) for p, q in zip(planes(a), planes(b), strict=True)) for (_, a), (_, b) in zip(before, after, strict=True)]
    assert [i for i, s in enumerate(same) if s] == list(range(10, 20))
    with pytest.raises(NoFaceError, match=r"no face in frame 10 \(0\.40 s\); pass --on-missing-face copy"):
        lipsync.sync(sample / "sample.mp4", sample / "speech.wav", tmp_path / "no.mp4", points=tmp_path / "gap.npz", on_missing_face="error", **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gap.npz", "out.mkv"]


def test_no_face_anywhere_copies_the_picture_and_takes_the_new_sound(lipsync, sample, tmp_path):
    (tmp_path / "none.json").write_text('{"points": []}')
    out = tmp_path / "out.mkv"
    result = lipsync.sync(sample / "sample.mp4", sample / "speech.wav", out, points=tmp_path / "none.json", codec="ffv1", **QUICK)
    assert result.faces == 0
    for (_, a), (_, b) in zip(pictures(sample / "sample.mp4"), pictures(out), strict=True):
        assert all(np.array_equal(p, q) for p, q in zip(planes(a), planes(b), strict=True))
    with av.open(str(out)) as c:
        assert len(c.streams.audio) == 1


@pytest.mark.parametrize(
    ("mode", "frames", "indexes"),
    [
        ("bounce", 75, [*range(50), *range(48, 23, -1)]),
        ("loop", 75, [*range(50), *range(25)]),
        ("freeze", 75, [*range(50), *([49] * 25)]),
        ("cut", 50, [*range(50)]),
    ],
)
def test_sound_longer_than_the_video(lipsync, sample, tmp_path, mode, frames, indexes):
    from tests.conftest import write_wav

    sound = write_wav(tmp_path / "long.wav", 0.1 * np.sin(np.arange(16000 * 3) / 20).astype(np.float32))
    given = {**QUICK, "when_audio_longer": mode, "steps": 1}
    seen = [(f.index, f.time) for f in lipsync.stream(sample / "sample.mp4", sound, points=sample / "points.npz", **given)]
    assert [i for i, _ in seen] == indexes
    assert [t for _, t in seen] == [Fraction(k, 25) for k in range(frames)]


def test_video_longer_than_the_sound(lipsync, sample, tmp_path):
    from tests.conftest import write_wav

    sound = write_wav(tmp_path / "short.wav", 0.1 * np.sin(np.arange(16000) / 20).astype(np.float32))
    results = {}
    for mode in ("cut", "keep"):
        results[mode] = lipsync.sync(
            sample / "sample.mp4", sound, tmp_path / f"{mode}.mkv", points=sample / "points.npz", codec="ffv1", when_video_longer=mode, **QUICK
        )
    assert (results["cut"].frames, results["cut"].faces) == (25, 25)
    assert (results["keep"].frames, results["keep"].faces) == (50, 25)
    assert results["keep"].without_face == []  # the rest has faces; it has nothing to say
    before, after = pictures(sample / "sample.mp4"), pictures(tmp_path / "keep.mkv")
    assert all(
        np.array_equal(p, q) for (_, a), (_, b) in zip(before[25:], after[25:], strict=True) for p, q in zip(planes(a), planes(b), strict=True)
    )


def test_feature_cache_and_schedulers_run_and_differ(lipsync, sample, tmp_path):
    from tests.conftest import write_wav

    sound = write_wav(tmp_path / "s.wav", 0.1 * np.sin(np.arange(16000 // 4) / 20).astype(np.float32))

    def run(**more):
        frames = lipsync.stream(sample / "sample.mp4", sound, points=sample / "points.npz", **{"steps": 4, "guidance": 1.5, **more})
        return np.stack([f.picture.rgb().astype(int) for f in frames])

    plain = run()
    for more in ({"cache": 2}, {"scheduler": "dpm++"}, {"scheduler": "unipc"}):
        other = run(**more)
        assert other.shape == plain.shape
        assert np.abs(other - plain).max() > 0, more


def test_an_error_in_the_middle_leaves_no_file_and_no_thread(lipsync, sample, tmp_path, left_running):
    class Stop(Exception):
        pass

    def progress(p):
        if p.done == 20:
            raise Stop

    with pytest.raises(Stop):
        lipsync.sync(sample / "sample.mp4", sample / "speech.wav", tmp_path / "out.mp4", points=sample / "points.npz", progress=progress, **QUICK)
    assert list(tmp_path.iterdir()) == []
    assert left_running() == []


def test_an_existing_result_is_not_touched(lipsync, sample, tmp_path):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    with pytest.raises(OutputError, match="--overwrite"):
        lipsync.sync(sample / "sample.mp4", sample / "speech.wav", out, points=sample / "points.npz", **QUICK)
    assert out.read_bytes() == b"precious"
    lipsync.sync(sample / "sample.mp4", sample / "speech.wav", out, points=sample / "points.npz", overwrite=True, when_audio_longer="cut", **QUICK)
    assert out.stat().st_size > 1000


def test_progress_tells_frames_and_steps(lipsync, sample, tmp_path):
    told = []
    lipsync.sync(sample / "sample.mp4", sample / "speech.wav", tmp_path / "o.mp4", points=sample / "points.npz", progress=told.append, **QUICK)
    assert told[0].done == 0, "something is told long before the first frame is finished"
    assert {p.step for p in told} == {1, 2}
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert told[-1].done == told[-1].total == 50


def test_stream_can_be_left_early(lipsync, sample, left_running):
    stream = lipsync.stream(sample / "sample.mp4", sample / "speech.wav", points=sample / "points.npz", **QUICK)
    frame = next(stream)
    assert frame.time == 0
    assert frame.picture.rgb().shape == (frame.picture.height, frame.picture.width, 3)
    stream.close()
    assert left_running() == []


def test_jobs_beside_each_other_do_not_meet(lipsync, sample, tmp_path):
    outs = [tmp_path / f"{i}.mkv" for i in range(2)]
    errors = []

    def job(out):
        try:
            lipsync.sync(sample / "sample.mp4", sample / "speech.wav", out, points=sample / "points.npz", codec="ffv1", **QUICK)
        except BaseException as e:  # noqa: BLE001
            errors.append(e)

    threads = [threading.Thread(target=job, args=(out,)) for out in outs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    a, b = (pictures(out) for out in outs)
    assert all(np.array_equal(x.rgb(), y.rgb()) for (_, x), (_, y) in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "is not a file of points"),
        ('{"points": [[[1, 2], [3, 4]]]}', "needs 68, 106, 478 landmarks"),
        ('{"points": [[1, 2, 3]]}', "entry 0 has the shape"),
        ("{", "is not a file of points"),
    ],
)
def test_a_bad_file_of_points_is_named(lipsync, sample, tmp_path, content, said):
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    with pytest.raises(InputError, match=said):
        lipsync.sync(sample / "sample.mp4", sample / "speech.wav", tmp_path / "o.mp4", points=bad)


def test_results_as_json(lipsync, sample, tmp_path):
    result = lipsync.sync(sample / "sample.mp4", sample / "speech.wav", tmp_path / "o.mp4", points=sample / "points.npz", **QUICK)
    plain = json.loads(json.dumps(result.plain()))
    assert plain["frames"] == 50
    assert plain["seconds"] == 2.0
    assert plain["spans_without_face"] == []
    assert "the model is untrained: its mouths are noise" in plain["notes"]
