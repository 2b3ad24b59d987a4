"""Pieces of faces: where they lie, what is done to them, and that nothing but (seed, position) decides it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.face.mask import inpaint_mask, resized_mask
from latentsync.media.clip import read_frames
from latentsync.train import pictures
from latentsync.train.cache import Cache
from latentsync.train.clips import ClipSet
from latentsync.train.pictures import Pieces, mouth_box, mouth_weight
from latentsync.train.windows import Pick, collate


@pytest.fixture(scope="module")
def clips(others: Path) -> ClipSet:
    return ClipSet.open(others, frames=1, resolution=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No jitter."""
    monkeypatch.setattr(pictures, "_jittered", lambda pixels, _: pixels)


def pieces(clips, cache, **values):
    return Pieces(clips, **{"resolution": 64, "crop": 32, "mouth": 0.5, "masked": 0.0, "channels": 4, "seed": 7, "cache": cache, **values})


def pick(position: int, index: int = 0) -> Pick:
    return Pick(0, index, position)


def test_the_seed_and_the_position_decide_all(clips, cache):
    first, again, other = (pieces(clips, cache, seed=seed)[pick(3)] for seed in (7, 7, 8))
    assert first["pixels"].shape == (3, 32, 32)
    assert first["noise"].shape == (4, 4, 4)
    assert first["mouth"].shape == (1, 32, 32)
    for name in ("pixels", "noise", "mouth"):
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["noise"], other["noise"])
    assert not torch.equal(first["noise"], pieces(clips, cache)[pick(4)]["noise"])


@pytest.mark.usefixtures("plain")
def test_a_piece_is_a_piece_of_a_frame_or_of_its_mirror(clips, cache):
    """With jitter left out each is found, at some place, in a frame of its clip; half of them in the mirrored one."""
    short = ClipSet([clips[0]._replace(frames=3)], fps=clips.fps, frames=1, resolution=64, size="exact", on_bad="error")
    some = pieces(short, cache)
    frames = some.store.frames(short[0]).astype(np.float32) / 127.5 - 1
    seen = {True: 0, False: 0}
    for position in range(12):
        piece = some[pick(position)]["pixels"].numpy().transpose(1, 2, 0)
        found = [mirrored for mirrored in (False, True) if _lies_in(piece, frames[:, :, ::-1] if mirrored else frames)]
        assert found, position
        for mirrored in found:
            seen[mirrored] += 1
    assert min(seen.values()) >= 2


def _lies_in(piece: np.ndarray, frames: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(frames[..., 0], (32, 32), axis=(1, 2))
    rough = np.argwhere(np.abs(windows[:, :, :, ::31, ::31] - piece[::31, ::31, 0]).max(axis=(3, 4)) < 1e-6)
    return any(np.abs(frames[n, y : y + 32, x : x + 32] - piece).max() < 1e-6 for n, y, x in rough)


def test_pieces_aimed_at_the_mouth_hold_it(clips, cache):
    """The weight is largest in the mouth's middle, so its sum says how much of the mouth a piece holds."""
    whole = float(mouth_weight(64).sum())
    held = {share: np.mean([float(pieces(clips, cache, mouth=share)[pick(i)]["mouth"].sum()) / whole for i in range(40)]) for share in (0.0, 1.0)}
    assert held[1.0] > 0.75 > 0.6 > held[0.0]


@pytest.mark.usefixtures("plain")
def test_masked_pieces_are_grey_where_the_face_is_made_anew(clips, cache):
    hidden = torch.from_numpy(resized_mask(64) == 0)
    bare, masked = (pieces(clips, cache, crop=64, masked=share)[pick(5)] for share in (0.0, 1.0))
    assert (masked["pixels"][:, hidden] == 0).all()
    assert (masked["mouth"][0, hidden] == 0).all()
    assert torch.equal(masked["pixels"][:, ~hidden], (bare["pixels"] * torch.from_numpy(resized_mask(64)))[:, ~hidden])
    assert (bare["pixels"][:, hidden] != 0).any()


def test_jitter_is_mild_and_stays_within_range(clips, cache, monkeypatch):
    jittered = [pieces(clips, cache)[pick(i)]["pixels"] for i in range(20)]
    monkeypatch.setattr(pictures, "_jittered", lambda pixels, _: pixels)
    bare = [pieces(clips, cache)[pick(i)]["pixels"] for i in range(20)]
    away = torch.stack([(a - b).abs().mean() for a, b in zip(jittered, bare, strict=True)])
    assert 0.01 < away.mean() < 0.15
    assert max(x.abs().max() for x in jittered) <= 1


def test_whole_faces_are_the_frames_as_they_are(clips, cache):
    some = pieces(clips, cache, whole=2)
    sample = some[Pick(1, 3, 0)]
    clip = clips[3]
    frame = read_frames(clip.path, [(3 * clip.frames // 4) / clips.fps], side=64)[0]
    assert torch.equal(sample["pixels"], torch.from_numpy(frame.astype(np.float32).transpose(2, 0, 1)) / 127.5 - 1)
    assert not sample["noise"].any()
    assert torch.equal(sample["mouth"][0], torch.from_numpy(mouth_weight(64)))


def test_the_mouth_lies_within_what_is_made_anew():
    y, x = np.unravel_index(mouth_weight(256).argmax(), (256, 256))
    assert x in (127, 128)  # as the nose, in the middle
    rows, columns = mouth_box(256)
    assert rows.start < y < rows.stop
    assert columns.start < x < columns.stop
    assert (inpaint_mask(256)[rows, columns] == 0).mean() > 0.9


def test_a_clip_that_fails_counts_nothing(clips, cache, tmp_path):
    gone = tmp_path / "gone.mp4"
    gone.write_bytes(b"no clip")
    some = ClipSet([clips[0]._replace(path=gone), clips[1]], fps=clips.fps, frames=1, resolution=64, size="exact", on_bad="skip")
    batch = collate([pieces(some, cache)[pick(0, index)] for index in (0, 1)])
    assert batch["weight"].tolist() == [0.0, 1.0]
    assert batch["pixels"].shape == (2, 3, 32, 32)
    assert "gone.mp4" in batch["bad"][0]
