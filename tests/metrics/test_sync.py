"""The judges of lip sync against truths that are planted, and against the published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentsync.config import SyncNetConfig
from latentsync.errors import InputError, WeightsError
from latentsync.face import align
from latentsync.face.protocols import Face
from latentsync.media.clip import read_audio
from latentsync.media.picture import Picture
from latentsync.media.video import open_video
from latentsync.metrics import sync
from latentsync.models.load import load_state
from latentsync.models.syncnet import SyncNet
from latentsync.models.syncnet_v2 import SyncNetV2
from tests.metrics.conftest import rendered

# --- distances


def vectors(n: int, seed: int, width: int = 8) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("late", [-9, -1, 0, 4, 15])
def test_sound_that_comes_late_is_found_there(late: int):
    lips = vectors(80, 1)
    sounds = torch.roll(lips, late, 0) + 0.1 * vectors(80, 2)
    found = sync.reading(sync.distances(lips, sounds))
    assert found.offset == -late  # positive: it comes early
    assert found.confidence > 2
    assert found.distance < 0.5 or abs(late) > 0
    assert found.distances.index(min(found.distances)) == 15 - found.offset
    assert len(found.seconds) == 4  # 80 windows: three seconds and a bit
    own = torch.nn.functional.normalize(lips) @ torch.nn.functional.normalize(sounds).T
    by_cosine = sync.reading(sync.cosine_distances(own))
    assert by_cosine.offset == -late
    assert 0.5 < by_cosine.confidence < 1.5


def test_every_planted_offset_of_ten_frames_either_way_is_found():
    lips = vectors(60, 1)
    for early in range(-10, 11):
        found = sync.reading(sync.distances(lips, torch.roll(lips, -early, 0) + 0.1 * vectors(60, 2)))
        assert found.offset == early
        assert found.fine == pytest.approx(early, abs=0.1)


@pytest.mark.parametrize("early", [-9.3, -0.4, 0.0, 0.15, 3.5, 9.7])
def test_an_offset_between_frames_is_found_to_a_tenth(early: float):
    """Vectors that turn with time, as those of windows that overlap do: the distance is least at the offset, and nearly a parabola around it."""
    ways = torch.randn(6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rates = torch.linspace(0.05, 0.3, 3, dtype=torch.float64)

    def at(places: Tensor) -> Tensor:
        turned = places[:, None] * rates
        return torch.cat([turned.sin(), turned.cos()], dim=1) @ ways

    places = torch.arange(80, dtype=torch.float64)
    unit = [torch.nn.functional.normalize(at(p)) for p in (places, places + early)]
    found = sync.reading(sync.cosine_distances(unit[0] @ unit[1].T))
    assert found.fine == pytest.approx(early, abs=0.1)
    assert abs(found.fine - found.offset) <= 0.5


def test_strangers_have_no_confidence():
    found = sync.reading(sync.distances(vectors(200, 1), vectors(200, 2)))
    assert found.confidence < 0.5
    by_cosine = sync.reading(sync.cosine_distances(torch.nn.functional.normalize(vectors(200, 1)) @ torch.nn.functional.normalize(vectors(200, 2)).T))
    assert by_cosine.confidence < 0.15


def test_the_second_out_of_sync_stands_out():
    lips = vectors(100, 1)
    sounds = lips.clone()
    sounds[50:75] = torch.roll(lips, 5, 0)[50:75]
    found = sync.reading(sync.distances(lips, sounds))
    assert found.offset == 0
    assert found.seconds[2] < 0.5 < 2 < min(found.seconds[0], found.seconds[1], found.seconds[3])


def test_a_clip_shorter_than_the_reach_is_judged_where_there_is_sound():
    cosines = torch.eye(3)
    found = sync.cosine_distances(cosines)
    assert found.shape == (31, 3)
    assert np.isfinite(found).sum() == 9
    assert sync.reading(found).offset == 0


def test_published_distances(golden: Path, goldenlib: ModuleType):
    truth = np.load(golden / "i_pdist.npz")
    lips = goldenlib.u((40, 64), 511, "pd:a")
    sounds = np.roll(lips, 3, axis=0) + 0.3 * goldenlib.u((40, 64), 511, "pd:b")
    found = sync.distances(torch.from_numpy(lips), torch.from_numpy(sounds))
    np.testing.assert_allclose(found, truth["dists"], atol=1e-4)
    read = sync.reading(found)
    np.testing.assert_allclose(read.distances, truth["mean_dists"], atol=1e-4)
    assert read.offset == int(truth["offset"]) == -3
    assert read.confidence == pytest.approx(float(truth["conf"]), abs=1e-4)


def test_published_reading_of_a_clip(golden: Path):
    case, truth = json.loads((golden / "i_synceval.json").read_text()), np.load(golden / "i_synceval.npz")
    found = sync.distances(torch.from_numpy(truth["lip_feat"]), torch.from_numpy(truth["aud_feat"]))
    np.testing.assert_allclose(found[:, :4], truth["dists_first4"], rtol=1e-4)
    read = sync.reading(found)
    np.testing.assert_allclose(read.distances, truth["mean_dists"], rtol=1e-4)
    assert read.offset == case["offset"]
    assert read.distance == pytest.approx(case["min_dist"], rel=1e-4)
    assert read.confidence == pytest.approx(case["conf"], abs=1e-4 * case["min_dist"])


def test_published_reading_from_the_frames_and_samples_of_a_clip(golden: Path, goldenlib: ModuleType):
    """The published numbers are of frames that went through JPEG, 2 levels darker: with random weights that makes all distances 1.6 % smaller."""
    case, truth = json.loads((golden / "i_synceval.json").read_text()), np.load(golden / "i_synceval.npz")
    state = {k: torch.from_numpy(v) for k, v in goldenlib.fill(case["keys"], case["seed"], case["gain"]).items()}
    with torch.device("meta"):
        net = SyncNetV2()
    net = load_state(net, state, "golden").eval()
    frames = [f.picture.rgb() for f in open_video(golden / case["clip"]).frames()]
    assert frames[0].shape == (224, 224, 3)
    read = sync.judged(net, frames, truth["audio_int16"].astype(np.float32) / 32768)
    assert read.offset == case["offset"]
    np.testing.assert_allclose(read.distances, truth["mean_dists"], rtol=0.03)
    assert read.confidence == pytest.approx(case["conf"], rel=0.05)


# --- sound


def test_mfcc_of_a_tone_and_of_silence():
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    found = sync.mfcc(tone)
    assert found.shape == (13, 99)
    assert found.dtype == np.float32
    assert found[:, 5:90].std(axis=1).max() < 0.02  # steady; the hop is a whole number of periods
    power = (0.5 * 32768) ** 2 / 2 * abs(1 - 0.97 * np.exp(-2j * np.pi / 16)) ** 2
    assert found[0, 10] == pytest.approx(np.log(power * 400 / 512 * 256), abs=0.1)  # Parseval, one half of the spectrum
    quieter = sync.mfcc(tone / 2)
    np.testing.assert_allclose(quieter[0, 5:90], found[0, 5:90] - 2 * np.log(2), atol=0.01)
    np.testing.assert_allclose(quieter[1:, 5:90], found[1:, 5:90], atol=0.05)
    silence = sync.mfcc(np.zeros(500))
    np.testing.assert_allclose(silence[0], np.log(np.finfo(float).eps))
    np.testing.assert_allclose(silence[1:], 0, atol=1e-4)
    assert sync.mfcc(np.array([np.nan, np.inf, 0.1])).shape == (13, 1)
    assert np.isfinite(sync.mfcc(np.array([np.nan, np.inf, 0.1]))).all()


def test_long_sound_is_cut_in_pieces_without_seams(monkeypatch: pytest.MonkeyPatch):
    samples = np.random.default_rng(0).normal(0, 0.1, 16000)
    whole = sync.mfcc(samples)
    monkeypatch.setattr(sync, "_COLUMNS_AT_ONCE", 7)
    np.testing.assert_array_equal(sync.mfcc(samples), whole)


def test_published_mfcc(golden: Path):
    truth = np.load(golden / "i_synceval.npz")
    found = sync.mfcc(truth["audio_int16"].astype(np.float32) / 32768)
    assert found.shape == truth["mfcc"].T.shape
    np.testing.assert_allclose(found, truth["mfcc"].T, atol=1e-3)


# --- pictures


def test_the_crop_has_the_published_margins(sample: Path):
    picture = next(iter(open_video(sample / "sample.mp4").frames())).picture
    whole = picture.rgb()
    where = sync.Region(160.0, 150.0, 80.0, 80.0)  # a box from 80 to 240 and 70 to 230
    np.testing.assert_array_equal(sync.face_crop(picture, where), sync.cv2.resize(whole[70:294, 48:272], (224, 224)))
    outside = sync.face_crop(picture, sync.Region(0.0, 0.0, 80.0, 80.0))
    assert (outside[:79] == 110).all()
    assert (outside[:, :111] == 110).all()
    np.testing.assert_array_equal(outside[80:, 112:], whole[:144, :112])
    assert (sync.face_crop(picture, sync.Region(-900.0, 0.0, 40.0, 40.0)) == 110).all()


def test_the_region_follows_the_face_and_is_the_same_in_the_aligned_face():
    points = align.template(256) * 0.5 + [100.0, 40.0]
    where = sync.region(points)
    assert where == pytest.approx((100 + 52.5, 40 + 52.5, 70.0, 70.0))
    turned = points.mean(0) + (points - points.mean(0)) @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    assert sync.region(turned).down == pytest.approx(70.0)
    wide = sync.region(points * [0.5, 1] - [0.25, 0], 2.0)  # samples twice as wide as high, half as many
    assert (wide.across, wide.down) == pytest.approx((35.0, 70.0))
    inside = sync.region_of_aligned(256)
    corner = np.array([where.x - where.across, where.y - where.down])
    matrix = align.squeezed(align.alignment(points, 256), 256)
    np.testing.assert_allclose(matrix @ [*corner, 1], [inside.x - inside.across, inside.y - inside.down], atol=0.6)


def test_places_are_smoothed_by_medians():
    regions = [sync.Region(10.0 + i, 5.0, 3.0, 3.0) for i in range(20)]
    assert sync.smoothed(regions)[6:14] == regions[6:14]
    regions[9] = sync.Region(500.0, 500.0, 500.0, 500.0)
    found = sync.smoothed(regions)
    assert all(abs(r.x - 10 - i) < 4 and r.down == 3 for i, r in enumerate(found))
    assert len(sync.smoothed(regions[:1])) == 1


class Blind:
    """A face finder that sees a face in some of the pictures only."""

    name = "blind"

    def __init__(self, sees: set[int]) -> None:
        self.sees = sees

    def face(self, picture: Picture) -> Face | None:
        number = int(picture.rgb()[0, 0, 0]) // 4
        if number not in self.sees:
            return None
        marks = np.random.default_rng(0).normal(0, 4, (68, 2)).astype(np.float32) + np.float32(20 + number)
        marks[[17, 18, 19, 20, 21, 36, 39]] += [-8.0, -6.0]
        marks[[22, 23, 24, 25, 26, 42, 45]] += [8.0, -6.0]
        return Face((10.0 + number, 10.0, 50.0 + number, 50.0), 0.9, marks, 0.0)

    def detect(self, rgb: np.ndarray) -> list[Face]:
        raise NotImplementedError

    def landmarks(self, picture: Picture, near: Face) -> Face | None:
        return self.face(picture)


def drawn(n: int) -> list[Picture]:
    layout = open_layout()
    return [Picture(tuple(np.full((64, 80), 4 * i, np.uint8) for _ in range(3)), layout) for i in range(n)]


def open_layout():
    from latentsync.media.layout import Colour, layout_of

    return layout_of("gbrp", Colour(), 80, 64)[0]


def test_faces_are_followed_and_gaps_bridged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("latentsync.face.track.detect", lambda backend, picture, side: [f for f in [backend.face(picture)] if f is not None])
    points = sync.follow(drawn(20), Blind(set(range(20)) - {0, 7, 8, 9, 10, 11, 12}))
    assert points.shape == (20, 3, 2)
    np.testing.assert_allclose(np.diff(points[1:, 2, 0]), 1, atol=0.01)  # the nose moves a pixel a frame, through the gap too
    np.testing.assert_allclose(points[0], points[1])
    with pytest.raises(InputError, match="a face in only 4 of 20 frames; give a clip that shows one face throughout"):
        sync.follow(drawn(20), Blind({2, 3, 4, 5}))
    with pytest.raises(InputError, match="no face in any frame"):
        sync.follow(drawn(5), Blind(set()))
    with pytest.raises(InputError, match="no frame"):
        sync.follow([], Blind(set()))


def test_points_beside_a_clip_tell_whether_it_is_cropped():
    rng = np.random.default_rng(0)
    marks = rng.normal(0, 4, (30, 68, 2)) + np.array([400, 300])
    marks[:, 17:22] += [-40, -30]
    marks[:, 22:27] += [40, -30]
    marks[:, [29, 30, 31, 35]] += [0, 30]
    upright = np.stack([align.alignment(p, 256) for p in sync.smoothed_anchors(marks)])
    matrices = np.stack([align.squeezed(m, 256) for m in upright])
    whole = sync.points_in_clip(marks, matrices, 720)
    assert whole is not None
    assert whole.shape == (30, 3, 2)
    assert sync.points_in_clip(align.mapped(marks, matrices), matrices, 256) is None


# --- judges


@pytest.fixture(scope="module")
def random_net() -> SyncNetV2:
    torch.manual_seed(0)
    return SyncNetV2().eval()


def test_pieces_of_a_clip_are_seen_as_the_whole(random_net: SyncNetV2, monkeypatch: pytest.MonkeyPatch):
    crops = list(np.random.default_rng(0).integers(0, 255, (8, 224, 224, 3)).astype(np.uint8))
    whole = sync.see(random_net, crops)
    assert whole.shape == (4, 1024)
    monkeypatch.setattr(sync, "AT_ONCE", 3)
    torch.testing.assert_close(sync.see(random_net, iter(crops)), whole, rtol=1e-3, atol=1e-4)


def test_what_is_too_short_is_refused(random_net: SyncNetV2):
    crop = np.zeros((224, 224, 3), np.uint8)
    with pytest.raises(InputError, match=r"4 frames are too few.*give a longer clip"):
        sync.judged(random_net, [crop] * 4, np.zeros(16000))
    with pytest.raises(InputError, match=r"its sound lasts 0\.10 s"):
        sync.judged(random_net, [crop] * 5, np.zeros(1600))
    least = sync.judged(random_net, [crop] * 5, np.zeros(3200))
    assert len(least.seconds) == 1


def test_windows_are_counted_as_published(random_net: SyncNetV2, monkeypatch: pytest.MonkeyPatch):
    counted: list[int] = []
    monkeypatch.setattr(sync, "see", lambda net, crops: torch.zeros(len(list(crops)) - 4, 1024))
    monkeypatch.setattr(sync, "distances", lambda lips, sounds: counted.append(len(lips)) or np.ones((31, len(lips))))
    crop = np.zeros((1, 1, 3), np.uint8)
    sync.judged(random_net, [crop] * 45, np.zeros(29696))  # the golden clip: 46 frames' worth of sound
    sync.judged(random_net, [crop] * 45, np.zeros(640 * 20))
    assert counted == [40, 15]


def test_the_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("LATENTSYNC_WEIGHTS_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"latentsync models download judges .*or take the small judge.*--sync-model demo"):
        sync.load_syncnet_v2(tmp_path)


class Plain(nn.Module):
    """A SyncNet that sees how bright each frame is, and hears how loud it is then."""

    def __init__(self, config: SyncNetConfig) -> None:
        super().__init__()
        self.config, self.nothing = config, nn.Parameter(torch.zeros(1))

    def forward(self, frames: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        bright = frames.unflatten(1, (self.config.frames, 3)).mean(dim=(2, 3, 4))
        loud = nn.functional.adaptive_avg_pool1d(mel.mean(dim=2), self.config.frames)[:, 0]
        return tuple(nn.functional.normalize(x - x.mean(1, keepdim=True)) for x in (bright, loud))


def flashes(frames: int, early: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Grey aligned faces (64, 64, 3) as bright as the noise is loud that should go with them, and that noise, which comes early."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(0, 1, frames)
    faces = [np.full((64, 64, 3), round(40 + 160 * v), np.uint8) for v in level]
    noise = rng.normal(0, 1, 640 * frames) * np.repeat(10 ** (-3 + 2 * np.roll(level, -early)), 640)
    return faces, noise.astype(np.float32)


@pytest.mark.parametrize("early", [-9, 0, 3])
def test_the_judge_of_the_package_has_the_published_sign(early: int):
    config = SyncNetConfig(frames=8, resolution=32)
    found = sync.judged_by_demo(Plain(config), config, *flashes(80, early))
    assert found.offset == early
    assert 0.5 < found.confidence < 1.2
    assert found.distance < 0.4
    with pytest.raises(InputError, match="7 frames are too few: this judge of lip sync sees 8 at a time"):
        sync.judged_by_demo(Plain(config), config, *flashes(7, 0))
    with pytest.raises(InputError, match=r"its sound lasts 0\.20 s, less than the 8 frames"):
        sync.judged_by_demo(Plain(config), config, flashes(20, 0)[0], np.zeros(3200))


class Remembering(nn.Module):
    """A SyncNet that sees the same frames once only, however often they are judged against other sounds."""

    def __init__(self, net: SyncNet) -> None:
        super().__init__()
        self.net, self.seen = net, {}

    def forward(self, frames: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        key = frames.double().sum().item()
        if key not in self.seen:
            self.seen[key] = self.net.see(frames)
        return self.seen[key], self.net.hear(mel)


def test_the_judge_of_the_package_finds_offsets_planted_into_a_clip(corpus: Path):
    """The sound is moved sample by sample. A clip has an error of its own, some 0.2 frames, so its unmoved reading is taken off."""
    try:
        config, net = sync.load_demo_judge()
    except WeightsError as e:
        pytest.skip(str(e))
    judge = Remembering(net)
    faces = rendered(corpus, 2080, 64, config.resolution)
    samples = read_audio(corpus / "clip_002080.mp4")[: 64 * 640]
    places = np.arange(len(samples))

    def read(early: float) -> sync.SyncReading:
        return sync.judged_by_demo(judge, config, faces, np.interp(places + early * 640, places, samples, left=0, right=0).astype(np.float32))

    true = read(0.0)
    assert abs(true.fine) < 0.5
    assert true.confidence > 0.1
    for early in (-10, -3, 10):
        assert read(early).offset == early
    for early in (0.4, 2.3, -5.7):
        assert read(early).fine - true.fine == pytest.approx(early, abs=0.35)  # 2.5 s: so much and no better
    other = read_audio(corpus / "clip_002081.mp4")[: 64 * 640]
    still = np.repeat(faces[:1], 64, axis=0)
    for wrong in (sync.judged_by_demo(judge, config, faces, other), sync.judged_by_demo(judge, config, still, samples)):
        assert wrong.distances[15] > true.distances[15] + 0.1  # unmoved: of other words, and of lips that stand still


def test_aligned_faces_are_cut_out_of_a_whole_picture(sample: Path):
    frames = [f.picture for f in open_video(sample / "sample.mp4").frames()][:3]
    points = np.repeat(align.template(256)[None] * 0.8 + 40, 3, axis=0)
    faces = list(sync.aligned_of(frames, points, 96))
    assert [f.shape for f in faces] == [(96, 96, 3)] * 3
    np.testing.assert_array_equal(faces[1], align.crop(frames[1], align.alignment(points[1], 96), 96))
    assert [f.shape for f in sync.aligned_of(frames, None, 96)] == [(96, 96, 3)] * 3
    crops = list(sync.crops_of(frames, points))
    np.testing.assert_array_equal(crops[2], sync.face_crop(frames[2], sync.region(points[2])))
    assert [c.shape for c in sync.crops_of(frames, None)] == [(224, 224, 3)] * 3
