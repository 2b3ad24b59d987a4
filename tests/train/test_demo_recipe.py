"""The demo model's recipe from end to end, a few steps of each stage: drawn heads with their truth -> five trainings -> files that ship -> a job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentsync import config as configs
from latentsync import train
from latentsync.config import DefaultsConfig
from latentsync.demonstrate import load_judge
from latentsync.face.demo import DemoBackend
from latentsync.media.clip_writer import write_clip
from latentsync.media.video import open_video
from latentsync.pipeline import LipSync
from latentsync.weights import shipped
from tests.face.test_demo import face_points
from tests.train.test_tracker_task import draw_face
from tools import crops, ship

FRAMES, SIDE = 60, 96
QUICK = ("run.steps=2", "run.batch=2", "run.validate_every=0", "run.validation_clips=1", "run.validation_videos=0", "run.ema=0.9")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of drawn heads whose mouths open and close with a tone."""
    folder = tmp_path_factory.mktemp("corpus")
    for seed in range(3):
        draw = np.random.default_rng(seed)
        gap = 0.5 + 0.5 * np.sin(np.arange(FRAMES) / (2 + seed))
        frames, truth = [], []
        for opening in gap:
            points = face_points((48, 48), 60, 0.02 * float(draw.normal()))
            points[[65, 66, 67]] += [0, 4 * opening]
            canvas = np.full((SIDE, SIDE, 3), 60 + 40 * seed, np.uint8)
            draw_face(canvas, points, (220, 180 - 30 * seed, 150))
            frames.append(canvas)
            truth.append(points + crops.EDGE)
        time = np.arange(FRAMES * 640) / 16000
        tone = 0.3 * np.interp(time * 25, np.arange(FRAMES), gap) * np.sin(2 * np.pi * (180 + 40 * seed) * time)
        write_clip(folder / f"clip_{seed}.mp4", np.stack(frames), 25, tone.astype(np.float32))
        tracks = {"articulation": np.stack([gap, 1 - gap], 1).astype(np.float16), "lip_gap": gap.astype(np.float32)}
        np.savez(folder / f"clip_{seed}.npz", landmarks=np.stack(truth).astype(np.float32), **tracks)
        (folder / f"clip_{seed}.json").write_text(json.dumps({"seed": seed}))
    return folder


def go(kind: Any, out: Path, *values: str) -> Path:
    config, _ = train.load(kind, "tiny", [f"run.out={out}", *QUICK, *values])
    return train.run(config).out


def test_from_drawn_heads_to_a_model_that_ships(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aligned = tmp_path / "crops"
    assert sum(frames for _, frames in crops.make_all(corpus, aligned, 64)) == 3 * FRAMES
    faces = (f"data.train={aligned}", f"data.cache={tmp_path / 'cache'}")
    speech = go("speech", tmp_path / "speech", f"data.train={corpus}", f"data.cache={tmp_path / 'cache'}")
    vae = go("autoencoder", tmp_path / "vae", *faces)
    tracker = go("tracker", tmp_path / "tracker", f"data.train={corpus}", f"data.cache={tmp_path / 'cache'}")
    judge = go("syncnet", tmp_path / "syncnet", *faces, "recipe.windows=2", "recipe.lips=1", "recipe.augment=true")
    out = tmp_path / "demo"
    assert ship.main([str(out), f"vae={vae}", f"whisper={speech}"]) == 0

    demo = configs.preset("demo")
    tiny = train.load("autoencoder", "tiny")[0], train.load("speech", "tiny")[0]
    assert isinstance(tiny[0], train.AutoencoderTrain)
    assert isinstance(tiny[1], train.SpeechTrain)
    latent = tiny[0].net.latent_channels
    model = replace(
        demo,
        resolution=64,
        unet=replace(demo.unet, channels=(16, 32), groups=8, in_channels=3 * latent + 1, out_channels=latent, audio_dim=tiny[1].net.width),
        vae=tiny[0].net,
        whisper=tiny[1].net,
        defaults=DefaultsConfig(steps=2, guidance=2.0, face_backend="demo"),
    )
    described = tmp_path / "model.yaml"
    described.write_text(configs.dump(model))
    recipe = ("late=0.4", "shared_noise=0.5", "audio_dropout=0.5", "fixed_reference=1", "flip=true", "kept=0.1", "mouth=2", "latents=once")
    unet = go(
        "unet",
        tmp_path / "unet",
        *faces,
        f"model={described}",
        f"vae={out}/vae.safetensors",
        f"whisper={out}/whisper.safetensors",
        *(f"recipe.{value}" for value in recipe),
    )
    assert ship.main([str(out), f"unet={unet}", f"tracker={tracker}", f"syncnet={judge}"]) == 0
    assert ship.main([str(out), f"tail={unet}"]) != 0

    monkeypatch.setattr(shipped, "folder", lambda: out)
    assert shipped.lacking() == []
    lipsync = LipSync.load("demo", device="cpu", dtype="fp32")
    assert lipsync.config.name == "demo"
    assert isinstance(lipsync.model.faces(), DemoBackend)
    assert load_judge()[1].config.resolution == 64
    face, heard = corpus / "clip_0.mp4", corpus / "clip_1.mp4"
    marks = tmp_path / "marks.npz"
    with np.load(face.with_suffix(".npz")) as truth:
        np.savez(marks, landmarks=truth["landmarks"] - crops.EDGE)
    result = lipsync.sync(face, heard, tmp_path / "out.mkv", points=marks, codec="ffv1", when_audio_longer="cut")
    assert (result.frames, result.faces) == (FRAMES, FRAMES)
    assert (result.steps, result.guidance) == (2, 2.0)
    with open_video(face) as before, open_video(tmp_path / "out.mkv") as after:
        for old, new in zip(before.frames(), after.frames(), strict=True):
            a, b = old.picture.rgb().astype(int), new.picture.rgb().astype(int)
            assert np.array_equal(a[:20], b[:20]), "above the brows nothing changes"
            assert not np.array_equal(a[45:80], b[45:80])
