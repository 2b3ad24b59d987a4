"""The model that ships: one reference for a shot, pasting within the face, its own defaults, where it is found, and `latentsync demo`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentsync import config as configs
from latentsync import weights
from latentsync.cli import app
from latentsync.config import DefaultsConfig, ModelConfig
from latentsync.demonstrate import TILE, demonstrate, sheet
from latentsync.errors import InputError, OutputError, UsageError, WeightsError
from latentsync.face.align import crop_size
from latentsync.face.mask import hull_mask, inpaint_mask, muzzle_mask
from latentsync.face.paste import paste
from latentsync.face.points import anchor_points, lip_opening, outline
from latentsync.face.protocols import Face
from latentsync.media.video import open_video
from latentsync.options import Options, Sampling
from latentsync.pipeline import Aligned, LipSync, Progress, pieces, shots
from latentsync.reference import HELD_FRAMES, UNSEEN, with_references
from latentsync.weights import shipped, untrained
from latentsync.weights.convert import save
from tests.conftest import ROOT, loaded, write_wav

ANCHORS_AT = {**dict.fromkeys(range(17, 22), 0), **dict.fromkeys(range(22, 27), 1), **dict.fromkeys((29, 30, 31, 35), 2)}


def landmarks(pose: tuple[np.ndarray, float]) -> np.ndarray:
    """(68, 2) landmarks of the drawn face (see tools/sample.py) whose alignment points are the sample's own."""
    module = loaded(ROOT / "tools" / "sample.py")
    matrix, opening = pose
    face = np.zeros((68, 2))
    turn = np.linspace(0, np.pi, 17)
    face[:17] = np.stack([-0.98 * np.cos(turn), 0.2 + 1.15 * np.sin(turn)], axis=1)  # from ear to ear by way of the chin
    for i, which in ANCHORS_AT.items():
        face[i] = np.vstack([module.BROWS, module.NOSE])[which]
    face[36:42], face[42:48] = (-0.42, 0), (0.42, 0)
    face[48:68] = (0, 0.82)
    face[61:64], face[65:68] = (0, 0.82 - 0.08 * opening), (0, 0.82 + 0.08 * opening)
    return np.asarray(face @ matrix[:, :2].T + matrix[:, 2])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained model of the shipped one's kind: one reference, hull, v-prediction, its own defaults; 64 px."""
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    tiny = configs.preset("tiny")
    config = replace(
        tiny,
        name="small",
        summary="for tests",
        unet=replace(tiny.unet, channels=(32, 32), layers_per_block=1),
        vae=replace(tiny.vae, channels=(8, 8, 16, 16)),
        diffusion=replace(tiny.diffusion, prediction_type="v_prediction", spacing="trailing"),
        defaults=DefaultsConfig(steps=2, guidance=1.0, scheduler="ddim", face_backend="demo"),
        reference="fixed",
        hull=True,
        muzzle=True,
    )
    untrained.write(config, folder, 0)
    return folder


@pytest.fixture(scope="module")
def lipsync(small: Path) -> LipSync:
    return LipSync.load(small, device="cpu", dtype="fp32", faces=False)


@pytest.fixture(scope="module")
def job(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Video, sound of 0.8 s, landmarks: the lips open and close."""
    folder = tmp_path_factory.mktemp("job")
    module = loaded(ROOT / "tools" / "sample.py")
    np.savez(folder / "marks.npz", landmarks=np.stack([landmarks(module.pose(i / 25, 320)) for i in range(50)]))
    return sample / "sample.mp4", write_wav(folder / "voice.wav", 0.3 * np.sin(np.arange(12800) / 9)), folder / "marks.npz"


# one reference for a shot


class Kept:
    """A picture that knows its size only."""

    def __init__(self, nbytes: int = 10) -> None:
        self.planes = (np.zeros(nbytes, np.uint8),)


def shot(openings: list[float | None], *, cuts: tuple[int, ...] = (), missing: tuple[int, ...] = (), picture: int = 10) -> list[Aligned]:
    """Frames at 25 a second whose crops say their number."""
    out = []
    for i, opening in enumerate(openings):
        frame = SimpleNamespace(time=Fraction(i, 25), duration=Fraction(1, 25), picture=Kept(picture))
        tracked: Any = SimpleNamespace(frame=frame, cut=i in cuts, opening=opening, person=0)
        out.append(Aligned(i, tracked, None, None if i in missing else np.full((2, 2, 3), i, np.uint8)))
    return out


def references(items: list[Aligned]) -> list[int | None]:
    return [None if item.reference is None else int(item.reference[0, 0, 0]) for item in items]


def test_the_reference_has_the_median_opening_of_the_first_two_seconds() -> None:
    openings: list[float | None] = [0.5, 0.1, 0.9, 0.3, 0.2, *[0.0, 1.0] * 22, 0.31, *[5.0] * 60]
    notes: list[str] = []
    found = references(list(with_references(shot(openings), notes)))
    first = np.argsort(np.array(openings[:50], float), kind="stable")[24]
    assert set(found) == {int(first)}
    assert len(found) == len(openings)
    assert notes == []


def test_each_shot_has_its_own_reference_and_lost_frames_do_not_count() -> None:
    items = list(with_references(shot([0.1, 0.2, 0.3, 9, 8, 7], cuts=(3,), missing=(1,)), []))
    assert references(items) == [0, 0, 0, 4, 4, 4]
    assert [i.number for i in items] == list(range(6))
    assert references(list(with_references(shot([0.1] * 4, missing=(0, 1)), []))) == [None, None, 2, 2]
    changed = shot([0.1, 0.2, 0.3, 0.4])
    for item in changed[2:]:
        item.tracked.person = 1  # type: ignore[misc]
    assert references(list(with_references(changed, []))) == [0, 0, 2, 2]


def test_without_lips_it_is_the_first_frame_and_said_once() -> None:
    notes: list[str] = []
    assert references(list(with_references(shot([None] * 4, cuts=(2,)), notes))) == [0, 0, 2, 2]
    assert notes == [UNSEEN]


@pytest.mark.parametrize(("picture", "most"), [(10, HELD_FRAMES), (1 << 26, 4)])
def test_few_frames_are_held_however_long_the_shot(picture: int, most: int) -> None:
    taken = 0

    def counted(items: list[Aligned]) -> Iterator[Aligned]:
        nonlocal taken
        for item in items:
            taken += 1
            yield item

    lazy = with_references(counted(shot([0.1] * 80, picture=picture if picture < 100 else 0)), [])
    if picture > 100:  # large pictures: a plane that says it is large without being so

        class Large:
            planes = (SimpleNamespace(nbytes=picture),)

        frames = shot([0.1] * 80)
        for item in frames:
            item.tracked.frame.picture = Large()  # type: ignore[misc]
        lazy = with_references(counted(frames), [])
    given = 0
    for _ in lazy:
        given += 1
        assert taken - given < most
    assert given == 80


def test_a_window_has_one_reference() -> None:
    items = list(with_references(shot([0.1] * 6, cuts=(4,)), []))
    assert [[i.number for i in piece] for piece in pieces(items, 3)] == [[0, 1, 2], [3], [4, 5]]


def test_windows_of_a_shot_belong_together() -> None:
    items = list(with_references(shot([0.1] * 16, cuts=(9,), missing=(14,)), []))
    found = [(faces, [[i.number for i in window] for window in windows]) for faces, windows in shots(pieces(items, 4))]
    assert found == [
        (True, [[0, 1, 2, 3], [4, 5, 6, 7], [8]]),
        (True, [[9, 10, 11, 12], [13]]),
        (False, [[14]]),
        (True, [[15]]),
    ]
    assert list(shots(iter([]))) == []


@contextmanager
def heard(lipsync: LipSync) -> Iterator[list[torch.Tensor]]:
    """What the U-Net is given meanwhile: (b, 3 c + 1, f, h, w) for each call."""
    seen: list[torch.Tensor] = []
    watch = lipsync.model.unet.register_forward_hook(lambda _, given, out: seen.append(given[0].float()))
    try:
        yield seen
    finally:
        watch.remove()


def test_windows_shift_unless_a_cache_wants_them_to_stay(lipsync: LipSync, job: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    video, voice, marks = job

    def run(**settings: Any) -> np.ndarray:
        return np.stack([f.picture.rgb() for f in lipsync.stream(video, voice, points=marks, **settings)]).astype(int)

    stay, cached = run(), run(cache=2)
    monkeypatch.setattr(lipsync, "config", replace(lipsync.config, shift=4))
    with heard(lipsync) as seen:
        shifted = run()
    apart = np.abs(shifted - stay).max(axis=(1, 2, 3))
    assert (apart[:12] <= 4).all(), "rounding, no more"
    assert (apart[12:] > 8).all(), "the second step's second window holds frames 4 to 19, and counts from 12 on"
    assert np.abs(run(cache=2) - cached).max() <= 4
    faces = lipsync.config.vae.latent_channels  # the last channels of what the network is given are the reference
    assert all(torch.equal(given[:, -faces:, :1].expand_as(given[:, -faces:]), given[:, -faces:]) for given in seen), "one face for all"


def test_windows_of_a_step_run_together(lipsync: LipSync, job: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    video, _, marks = job
    voice = write_wav(marks.with_name("longer.wav"), 0.3 * np.sin(np.arange(32000) / 9))  # 2 s
    monkeypatch.setattr(lipsync, "config", replace(lipsync.config, shift=4))
    made, sizes = [], []
    for batch in (1, 2):
        with heard(lipsync) as seen:
            made.append(np.stack([f.picture.rgb() for f in lipsync.stream(video, voice, points=marks, batch_windows=batch)]).astype(int))
        sizes.append(max(len(given) for given in seen))
    assert sizes[1] == 2 * sizes[0]
    assert np.abs(made[0] - made[1]).max() <= 4


def test_a_shot_is_made_of_its_own_frames(lipsync: LipSync, job: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows shift within a shot; a frame without a face ends it."""
    monkeypatch.setattr(lipsync, "config", replace(lipsync.config, shift=2, window=4))
    video, voice, marks = job
    broken = dict(np.load(marks))
    broken["landmarks"][9] = np.nan
    np.savez(marks.with_name("broken.npz"), **broken)
    with heard(lipsync) as seen:
        frames = list(lipsync.stream(video, voice, points=marks.with_name("broken.npz")))
    assert len(frames) == 20
    assert {given.shape[2] for given in seen} == {3, 4}, "the ninth frame has no other half"
    nine, ten = 3 + 3, 3 + 3  # windows of two steps; in the second one the first and the last lie within the shot
    assert len(seen) == nine + ten


def test_who_leaves_early_leaves_nothing_behind(lipsync: LipSync, job: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lipsync, "config", replace(lipsync.config, shift=4))
    video, voice, marks = job
    frames = lipsync.stream(video, voice, points=marks)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert not torch.is_inference_mode_enabled()

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    out = marks.with_name("stopped.mp4")
    with pytest.raises(KeyboardInterrupt):
        lipsync.sync(video, voice, out, points=marks, progress=stop)
    assert not torch.is_inference_mode_enabled()
    assert not out.exists()


@pytest.mark.parametrize("shift", [0, 4])
def test_less_noise_is_asked_for_by_name(lipsync: LipSync, job: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    video, voice, marks = job
    begun = []
    for temperature in (1.0, 0.5):
        monkeypatch.setattr(lipsync, "config", replace(lipsync.config, shift=shift, temperature=temperature))
        with heard(lipsync) as seen:
            list(lipsync.stream(video, voice, points=marks))
        begun.append(seen[0][:, : lipsync.config.vae.latent_channels])
    torch.testing.assert_close(begun[1], begun[0] / 2)


@pytest.mark.parametrize("wrong", ["shift: 5", "shift: 16", "shift: -4", "temperature: 0", "temperature: 1.5"])
def test_windows_shift_by_equal_parts_and_noise_only_shrinks(wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong.partition(":")[0]):
        configs.parse(f"name: x\n{wrong}\n", "x.yaml")


def test_every_window_sees_the_chosen_face(lipsync: LipSync, job: tuple[Path, Path, Path]) -> None:
    video, voice, marks = job
    seen = []
    watch = lipsync.model.unet.register_forward_hook(lambda _, given, out: seen.append(given[0]))
    try:
        list(lipsync.stream(video, voice, points=marks))
    finally:
        watch.remove()
    channels = lipsync.config.vae.latent_channels
    shown = [given[:, -channels:] for given in seen]  # the reference comes last
    assert len(shown) == 4  # two windows of two steps
    first = shown[0][:, :, :1]
    assert all((s == first).all() for s in shown), "one face for all frames of all windows"


def test_only_the_face_changes_whatever_the_batches(lipsync: LipSync, job: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Two clips: the rest of the frame leaves as it came, bit for bit, and the paste stays within the hull and its soft edge."""
    video, voice, marks = job
    results = []
    for batched in (1, 2):
        out = tmp_path / f"{batched}.mkv"
        result = lipsync.sync(video, voice, out, points=marks, codec="ffv1", batch_windows=batched)
        assert (result.steps, result.guidance, result.scheduler) == (2, 1.0, "ddim")  # the model's own
        assert result.plain()["steps"] == 2
        with open_video(out) as made, open_video(video) as source:
            results.append([f.picture.rgb() for f in made.frames()])
            if batched == 1:
                before = [f.picture.rgb() for f in source.frames()][: len(results[0])]
    points = np.load(marks)["landmarks"]
    for i, (a, b) in enumerate(zip(before, results[0], strict=True)):
        changed = np.argwhere((a != b).any(axis=2))[:, ::-1].astype(np.float32)
        assert len(changed) > 500
        import cv2

        hull = cv2.convexHull(points[i, :27].astype(np.float32))
        away = max(-cv2.pointPolygonTest(hull, (float(x), float(y)), True) for x, y in changed[::7])
        assert away < 0.03 * 320, "beyond the jaw nothing is touched"
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(*results, strict=True)) <= 4


# hull


def test_the_hull_is_one_inside_and_ends_at_the_outline() -> None:
    turn = np.linspace(0, 2 * np.pi, 40)
    hull = hull_mask(np.stack([64 + 30 * np.cos(turn), 64 + 40 * np.sin(turn)], axis=1), 128)
    y, x = np.mgrid[:128, :128]
    radius = np.hypot((x - 64) / 30, (y - 64) / 40)
    assert hull[(np.abs(y - 64) < 30) & (np.abs(x - 64) < 2)].min() > 0.99
    assert hull[(radius > 1) & (np.abs(y - 64) < 30)].max() < 0.12, "the frame's own edge is seen"
    assert hull[radius > 1].max() < 0.3, "at the chin too"
    assert hull[radius > 1.1].max() < 0.01
    assert not hull_mask(np.full((5, 2), np.nan), 64).any()


def test_the_hull_of_a_turned_head_keeps_the_near_side_and_the_crops_edge_is_no_edge_of_it() -> None:
    cheek = np.array([[44.0, -20], [160, -20], [160, 120], [44, 120]])  # the outline runs at x = 44; to the right the face leaves the crop
    row = hull_mask(cheek, 128)[80]
    assert row[:41].max() < 0.01
    assert row[44] < 0.1
    assert (np.diff(row[40:60]) >= -1e-6).all(), "the new face comes in slowly"
    assert row[60:].min() > 0.999


def test_the_paste_weight_is_mask_times_hull() -> None:
    matrix = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    face, mask = np.full((256, 256, 3), 200, np.float32), inpaint_mask(256)
    everywhere = np.array([[-50.0, -50], [400, -50], [400, 400], [-50, 400]])
    left = np.array([[-50.0, -50], [100, -50], [100, 400], [-50, 400]])
    plain = paste(face, matrix, 220, 290, mask=mask)
    whole = paste(face, matrix, 220, 290, mask=mask, outline=everywhere)
    half = paste(face, matrix, 220, 290, mask=mask, outline=left)
    np.testing.assert_allclose(whole.alpha, plain.alpha, atol=1e-6)
    assert half.box[0] == plain.box[0]
    assert 95 < half.box[2] < 115 < plain.box[2]


def test_the_muzzle_is_mouth_and_chin_at_every_size() -> None:
    for size in (64, 128, 256, 512):
        muzzle = muzzle_mask(size)
        one = size / 256
        assert muzzle[int(160 * one) : int(220 * one), int(85 * one) : int(171 * one)].min() > 0.99, "lips and chin"
        assert muzzle[:, : int(14 * one)].max() == muzzle[:, int(242 * one) :].max() == 0, "cheeks and jaw"
        assert muzzle[: int(84 * one)].max() == 0, "nose and eyes"
        np.testing.assert_allclose(muzzle, muzzle[:, ::-1], atol=0.02)


def test_the_paste_is_narrowed_to_the_muzzle_and_to_the_hull_besides() -> None:
    matrix = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    face, mask = np.full((256, 256, 3), 200, np.float32), inpaint_mask(256)
    left = np.array([[-50.0, -50], [100, -50], [100, 400], [-50, 400]])
    plain, narrow = paste(face, matrix, 220, 290, mask=mask), paste(face, matrix, 220, 290, mask=mask, muzzle=True)
    both, hull = paste(face, matrix, 220, 290, mask=mask, muzzle=True, outline=left), paste(face, matrix, 220, 290, mask=mask, outline=left)
    assert plain.box[0] < narrow.box[0] - 15
    assert narrow.box[2] < plain.box[2] - 15
    weights = []
    for patch in (plain, narrow, both, hull):
        whole = np.zeros((290, 220), np.float32)
        x0, y0, x1, y1 = patch.box
        whole[y0:y1, x0:x1] = patch.alpha
        weights.append(whole)
    x, y = (np.array(crop_size(256)) * (0.5, 0.68)).astype(int)
    assert weights[1][y, x] == pytest.approx(weights[0][y, x], abs=1e-3), "the lips are the new ones"
    assert (weights[1] <= weights[0] + 1e-5).all()
    assert (weights[2] <= np.minimum(weights[1], weights[3]) + 1e-5).all()
    assert 0 < both.box[2] - both.box[0] < narrow.box[2] - narrow.box[0]


def test_lips_and_outline_come_from_the_landmarks() -> None:
    module = loaded(ROOT / "tools" / "sample.py")
    matrix, _ = module.pose(0.3, 320)
    shut, wide = (landmarks((matrix, opening)) for opening in (0.0, 1.0))
    a, b = lip_opening(shut), lip_opening(wide)
    assert a == pytest.approx(0, abs=1e-6)
    assert b == pytest.approx(0.16 / 0.84, rel=1e-4)  # gap over distance of the eyes
    assert lip_opening(wide * 3) == pytest.approx(b, rel=1e-4)
    around = outline(wide)
    assert around is not None
    assert around.shape == (27, 2)
    np.testing.assert_allclose(anchor_points(Face((0, 0, 1, 1), 1.0, wide)), module.points(0.3, 320), atol=1e-3)
    assert outline(np.zeros((5, 2))) is None
    assert lip_opening(np.zeros((106, 2))) is None


# defaults


def test_what_is_not_chosen_is_the_models_own() -> None:
    own = DefaultsConfig(steps=8, guidance=3.0, scheduler="dpm++", face_backend="demo")
    assert Options().sampling(own) == Sampling(8, 3.0, "dpm++")
    assert Options(steps=5, guidance=0.0, scheduler="ddim").sampling(own) == Sampling(5, 0.0, "ddim")
    assert Options().sampling(ModelConfig(name="x").defaults) == Sampling(20, 1.5, "ddim")  # the published
    for name in ("1.0", "1.5", "1.6"):
        assert configs.preset(name).defaults == DefaultsConfig()
        assert "yunet" in weights.roles()(configs.preset(name))
    assert weights.roles()(ModelConfig(name="x", defaults=own))[-1] == "tracker"
    assert "yunet" in weights.roles(face_backend="mediapipe")(ModelConfig(name="x", defaults=own))
    with pytest.raises(UsageError, match="--steps 0"):
        Options(steps=0)


# the shipped files


@pytest.fixture
def package(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the package with an untrained model in it, and a home without weights."""
    folder = tmp_path / "package" / "demo"
    folder.mkdir(parents=True)
    for name in ("unet.safetensors", "whisper.safetensors", "vae.safetensors", "model.yaml"):
        (folder / name).hardlink_to(small / name)
    for name in ("tracker", "syncnet"):
        save({"weight": torch.zeros(3)}, folder / f"{name}.safetensors", {"format": "pt"})
        (folder / f"{name}.yaml").write_text("")
    monkeypatch.setattr(shipped, "folder", lambda: folder)
    monkeypatch.delenv("LATENTSYNC_WEIGHTS_PATH", raising=False)
    monkeypatch.setenv("LATENTSYNC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    return folder


def test_the_shipped_model_is_found_listed_and_described(package: Path) -> None:
    found = weights.resolve("demo", need=weights.roles())
    assert found.folder == package
    assert set(found.files) >= {"unet", "whisper", "vae", "tracker", "syncnet"}
    assert set(found.faces) == {"tracker.safetensors", "tracker.yaml"}
    row = next(r for r in weights.available() if r.name == "demo")
    assert (row.state, row.downloadable, row.resolution) == ("shipped", False, 64)
    assert "shipped with the package" in row.line()
    text = CliRunner().invoke(app, ["models", "info", "demo"]).output
    assert "tracker" in text
    assert "missing" not in text
    assert LipSync.load("demo", device="cpu", faces=False).config.reference == "fixed"


def test_without_released_weights_both_ways_are_offered(package: Path) -> None:
    with pytest.raises(WeightsError, match=r"5.49 GB in all. Run: latentsync models download 1.6\nOr try --model demo, which comes with the package"):
        weights.resolve("1.6")
    (package / "unet.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"models download 1\.6") as e:
        weights.resolve("1.6")
    assert "demo" not in str(e.value)


def test_a_package_without_its_model_says_so(package: Path, tmp_path: Path) -> None:
    (package / "vae.safetensors").unlink()
    (package / "syncnet.yaml").unlink()
    with pytest.raises(WeightsError, match=r"lacks files of the demo model: vae.safetensors in .*package.demo"):
        weights.resolve("demo")
    assert next(r for r in weights.available() if r.name == "demo").state == "absent"
    with pytest.raises(InputError, match="lacks the sample of the demo"):
        demonstrate(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# latentsync demo


def test_files_of_an_earlier_demo_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mouth.png").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"mouth.png exists; pass --overwrite"):
        demonstrate(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mouth.png"]


def test_the_sheet_has_a_column_for_each_moment() -> None:
    tile = (TILE[1], TILE[0], 3)
    page = sheet([(i / 5, np.full(tile, 10 * i, np.uint8), np.full(tile, 10 * i + 5, np.uint8)) for i in range(12)])
    assert page.dtype == np.uint8
    for i in range(12):
        assert (page == 10 * i + 5).all(axis=2).sum() >= tile[0] * tile[1]


def test_the_sample_is_small_and_sounds(tmp_path: Path) -> None:
    from latentsync.media.audio import open_audio

    folder = shipped.folder()
    assert sum(p.stat().st_size for p in folder.glob("s*.[mw]*")) < 2_000_000
    with open_video(folder / "sample.mp4") as video:
        assert video.info.rate == 25
    assert 3 < open_audio(next(folder.glob("speech.*"))).info.duration < 10


@pytest.mark.slow
def test_the_demo_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shipped.lacking():
        pytest.skip(f"the package has no demo model yet: {', '.join(shipped.lacking())} missing in {shipped.folder()}")
    monkeypatch.setenv("LATENTSYNC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LATENTSYNC_OFFLINE", "1")
    done = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["demo.mp4", "mouth.png", "side_by_side.mp4"]
    assert said["result"]["frames_with_face"] == said["result"]["frames"]
    if shipped.file(shipped.JUDGE) is not None:
        made, original = said["sync"]["result"], said["sync"]["original_with_new_sound"]
        assert made["confidence"] > original["confidence"]
        assert abs(made["offset_frames"]) <= 1
    with open_video(tmp_path / "out" / "demo.mp4") as one, open_video(tmp_path / "out" / "side_by_side.mp4") as two:
        assert two.info.width == 2 * one.info.width
