"""One clip from its seed: identity, speech, motion -> frames -> files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tools.synthheads import files, motion, render, speech, texture
from tools.synthheads.model import LM68, HeadModel
from tools.synthheads.motion import FPS, Camera, Motion
from tools.synthheads.speech import SPEECH_RATE

from latentsync.errors import UsageError

VERSION = 2  # of what a seed from FIRST_VARIED on stands for: raise it when a change makes other clips of the same seeds
FIRST_VARIED = 3000  # seeds below look as the first version of this tool made them
CRF = 23
BATCH = 32  # frames posed at once
WIDEST_LIPS = 1.3  # cm of lip gap at which the mouth is lit through


@dataclass
class Streams:
    """The sources of chance of one clip, so that a change to one thing leaves the others. Old seeds have a single one for all."""

    look: np.random.Generator
    shape: np.random.Generator
    speech: np.random.Generator
    motion: np.random.Generator
    camera: np.random.Generator
    grain: np.random.Generator
    more: np.random.Generator | None  # what only later seeds have


def streams(seed: int, *, split: bool | None = None) -> Streams:
    """Those of a seed; `split` (by default for seeds from FIRST_VARIED on) says whether they are independent. UsageError for a negative seed."""
    if seed < 0:
        raise UsageError(f"a seed is a whole number from 0, found {seed}")
    if not (seed >= FIRST_VARIED if split is None else split):
        one = np.random.default_rng(seed)
        return Streams(one, one, one, one, one, one, None)
    return Streams(*(np.random.default_rng([seed, k]) for k in range(7)))


def name(seed: int) -> str:
    return f"clip_{seed:06d}"


def is_done(folder: Path, seed: int) -> bool:
    """Whether the clip is finished: its .json is written last."""
    return (folder / f"{name(seed)}.json").is_file()


@dataclass
class Grain:
    """What lens, sensor and codec do to the frames of one clip."""

    blur: float  # pixels
    noise: float  # levels
    gamma: float
    white: np.ndarray  # (3,) float32
    vignette: np.ndarray  # (size, size, 1) float32
    shutter: float = 0.0  # share of a frame's time that it is open: motion blur
    coarse: float = 1.0  # below 1: taken with so much less resolution

    def apply(self, image: np.ndarray, moved: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(size, size, 3) uint8 -> the same; `moved` (2,) are the pixels by which the face moves in a frame's time."""
        f: np.ndarray = image.astype(np.float32)
        f = _smeared(f, moved * self.shutter)
        if self.blur > 0.25:
            f = cv2.GaussianBlur(f, (0, 0), self.blur)
        f = f * self.vignette * self.white
        f = 255 * np.clip(f / 255, 0, 1) ** self.gamma
        luma = rng.standard_normal((*f.shape[:2], 1)).astype(np.float32) * 0.7
        f += (luma + rng.standard_normal(f.shape).astype(np.float32) * 0.5) * self.noise
        if self.coarse < 1:
            h, w = f.shape[:2]
            f = cv2.resize(f, (round(w * self.coarse), round(h * self.coarse)), interpolation=cv2.INTER_AREA)
            f = cv2.resize(f, (w, h), interpolation=cv2.INTER_LINEAR)
        return np.clip(f, 0, 255).astype(np.uint8)


def _smeared(image: np.ndarray, way: np.ndarray) -> np.ndarray:
    """The image averaged along a straight way (2,) in pixels; ways under 0.6 px do nothing."""
    length = float(np.hypot(*way))
    if length < 0.6:
        return image
    reach = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * reach + 1,) * 2, np.float32)
    for t in np.linspace(-0.5, 0.5, 4 * reach):
        x, y = reach + t * way[0], reach + t * way[1]
        i, j = int(x), int(y)
        kernel[j, i] += (1 - x + i) * (1 - y + j)
        kernel[j, i + 1] += (x - i) * (1 - y + j)
        kernel[j + 1, i] += (1 - x + i) * (y - j)
        kernel[j + 1, i + 1] += (x - i) * (y - j)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def sample_grain(rng: np.random.Generator, size: int, more: np.random.Generator | None) -> Grain:
    u = rng.uniform
    g = np.linspace(-1, 1, size)
    grain = Grain(
        blur=float(u(0, 0.75)) * size / 256,
        noise=float(u(0, 4)),
        gamma=float(u(0.88, 1.15)),
        white=np.clip(1 + rng.normal(0, 0.02, 3), 0.9, 1.1).astype(np.float32),
        vignette=(1 - u(0, 0.22) * (g[:, None] ** 2 + g[None] ** 2) / 2)[..., None].astype(np.float32),
    )
    if more is not None:
        grain.shutter = float(more.uniform(0.2, 1.0)) if more.random() < 0.5 else 0.0
        grain.noise = float(more.uniform(4, 9)) if more.random() < 0.12 else grain.noise
        grain.coarse = float(more.uniform(0.6, 0.95)) if more.random() < 0.12 else 1.0
        grain.white = grain.white * np.clip(1 + more.normal(0, 0.035, 3), 0.88, 1.12).astype(np.float32)
    return grain


def lip_gap(landmarks: np.ndarray) -> np.ndarray:
    """(n, 68, 3) landmarks of the head at rest -> (n,) cm between the inner lips, upwards; a little below 0 where they press."""
    return (landmarks[:, 62] - landmarks[:, 66])[:, 1]


def project(landmarks: np.ndarray, moved: Motion, turns: list[np.ndarray], camera: Camera, neck: np.ndarray, size: int) -> np.ndarray:
    """(n, 68, 3) landmarks at rest -> (n, 68, 2) pixels, counted from the picture's edge. `neck` (68,) is the share of the head's motion."""
    out = np.zeros((len(landmarks), 68, 2), np.float32)
    pivot, share = np.array(render.PIVOT), neck[:, None]
    for i, p in enumerate(landmarks):
        q = p * (1 - share) + share * ((p - pivot) @ turns[i].T + pivot + moved.shift[i])
        h = np.c_[q, np.ones(68)] @ camera.view(i)[0].T
        out[i] = (h[:, :2] / h[:, 3:] * [1, -1] * 0.5 + 0.5) * size
    return out


def head_turns(moved: Motion, camera: Camera) -> list[np.ndarray]:
    """(3, 3) for each frame, in the body's axes: a turned body keeps its head a little towards the camera."""
    return [motion.rotation(yaw - camera.body_yaw * 0.7, pitch, roll) for yaw, pitch, roll in moved.turn]


def make_clip(model: HeadModel, renderer: render.Renderer, folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Writes NAME.mp4, NAME.npz and, last, NAME.json into the folder; what the .json holds. The folder must exist."""
    begun = time.process_time()
    chance = streams(seed)
    more = chance.more
    look = texture.sample_look(chance.look)
    verts = model.make_identity(chance.shape, float(chance.shape.uniform(0.6, 1.0)))
    shade = None
    if more is not None:
        texture.vary_look(look, more)
        verts, shade = render.crooked(model, verts, look, more)
    bound = model.bind(verts)
    renderer.set_identity(verts, look, chance.look, more, shade)
    renderer.set_light(render.sample_light(chance.look, look["skin"], more))
    n = int(seconds * FPS)
    spoken = speech.speak(chance.speech, seconds)
    moved = motion.animate(model.eidx, spoken, n, chance.motion, chance.speech)
    camera = motion.sample_camera(chance.camera, n, more)
    grain = sample_grain(chance.camera, renderer.size, more)
    landmarks = model.landmarks(verts, moved.weights)
    gap = lip_gap(landmarks)
    turns = head_turns(moved, camera)
    places = project(landmarks, moved, turns, camera, render.neck_weight(model.v0[LM68]), renderer.size)
    speed = np.gradient(places.mean(1), axis=0)

    def frames() -> Iterator[np.ndarray]:
        for a in range(0, n, BATCH):
            posed = bound.pose(moved.weights[a : a + BATCH])
            for i in range(a, min(a + BATCH, n)):
                view, place = camera.view(i)
                opening = float(np.clip(gap[i] / WIDEST_LIPS, 0, 1))
                image = renderer.frame(posed[i - a], turns[i], moved.shift[i], view, place, opening)
                yield grain.apply(image, speed[i], chance.grain)

    base = folder / name(seed)
    files.write_video(base.with_suffix(".mp4"), frames(), FPS, renderer.size, crf=CRF, add_sound=files.spoken(spoken.samples, SPEECH_RATE))
    files.write_arrays(
        base.with_suffix(".npz"),
        landmarks=np.round(places * 32) / 32,
        weights=moved.weights.astype(np.float16),
        articulation=moved.articulation.astype(np.float16),
        lip_gap=gap.astype(np.float32),
    )
    about = {
        **_about(seed, n, spoken),
        "size": renderer.size,
        "camera": {"yaw": float(np.degrees(camera.yaw)), "pitch": float(np.degrees(camera.pitch)), "fov": camera.fov, "half": camera.half},
        "look": {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in look.items()},
        "crf": CRF,
        "cpu_seconds": round(time.process_time() - begun, 2),
    }
    files.write_json(base.with_suffix(".json"), about)
    return about


def make_sound(model: HeadModel, folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Writes NAME.wav (16 kHz mono), NAME.npz with `articulation` and `lip_gap`, and, last, NAME.json. The folder must exist.

    Speech and mouth are those of the rendered clip of the same seed, from FIRST_VARIED on.
    """
    chance = streams(seed, split=True)
    verts = model.make_identity(chance.shape, float(chance.shape.uniform(0.6, 1.0)))
    n = int(seconds * FPS)
    spoken = speech.speak(chance.speech, seconds)
    moved = motion.animate(model.eidx, spoken, n, chance.motion, chance.speech)
    base = folder / name(seed)
    files.write_wave(base.with_suffix(".wav"), spoken.samples, SPEECH_RATE)
    gap = lip_gap(model.landmarks(verts, moved.weights))
    files.write_arrays(base.with_suffix(".npz"), articulation=moved.articulation.astype(np.float16), lip_gap=gap.astype(np.float32))
    about = _about(seed, n, spoken)
    files.write_json(base.with_suffix(".json"), about)
    return about


def _about(seed: int, n: int, spoken: speech.Speech) -> dict[str, Any]:
    phones = [[round(start, 4), round(end, 4), symbol] for start, end, symbol in spoken.phones]
    return {"seed": seed, "version": VERSION, "fps": FPS, "frames": n, "speech": spoken.info, "phones": phones}
