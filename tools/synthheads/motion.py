"""How a clip moves: blendshape weights over time, the head, and the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from tools.synthheads import visemes
from tools.synthheads.render import look_at, perspective
from tools.synthheads.speech import SPEECH_RATE, Speech

FPS = 25
BLINK = np.array([0.35, 0.9, 1, 0.75, 0.35, 0.1])  # frame by frame
FACE = 10.0  # cm from the middle of the view that a face needs beside it, so that all of it is seen


@dataclass
class Motion:
    """n frames."""

    weights: np.ndarray  # (n, e) float32 blendshape weights
    articulation: np.ndarray  # (n, channels), see `visemes`
    turn: np.ndarray  # (n, 3) radians: yaw, pitch, roll of the head
    shift: np.ndarray  # (n, 3) cm


@dataclass
class Camera:
    """Fixed but for the tremble of a hand."""

    yaw: float  # radians, of the place from which the face is seen
    pitch: float
    fov: float  # degrees
    at: np.ndarray  # (3,) cm: what is in the middle of the picture
    half: float  # cm that are seen above and below that
    body_yaw: float  # radians
    tremble: np.ndarray  # (n, 3) cm

    def view(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(4, 4) body -> clip space at frame i, and the camera's place (3,) in the body's axes."""
        cy, sy, cp, sp = np.cos(self.yaw), np.sin(self.yaw), np.cos(self.pitch), np.sin(self.pitch)
        at = self.at + self.tremble[i]
        eye = at + np.array([sy * cp, sp, cy * cp]) * self.half / np.tan(np.radians(self.fov / 2))
        body = np.eye(4)
        body[:3, :3] = rotation(self.body_yaw, 0, 0)
        return perspective(self.fov, 10, 800) @ look_at(eye, at) @ body, body[:3, :3].T @ eye


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3): roll first, then pitch, then yaw; radians."""
    cy, sy, cx, sx, cz, sz = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def drift(rng: np.random.Generator, n: int, sigma: int, amplitude: float) -> np.ndarray:
    """(n,) slow random motion of about that amplitude; `sigma` frames of smoothing."""
    x = gaussian_filter1d(rng.standard_normal(n + 8 * sigma), sigma)[4 * sigma :][:n]
    if n > 4 * sigma:
        return amplitude * x / (x.std() + 1e-9)
    return amplitude * x * np.sqrt(2 * np.sqrt(np.pi) * sigma)


def articulate(speech: Speech, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, channels): the articulation, averaged over an exposure of 20 ms in the middle of each frame."""
    steps = visemes.RATE // FPS
    y = visemes.articulate(speech.phones, n / FPS + 1e-6, rng)
    return y[: n * steps].reshape(n, steps, -1)[:, 2:6].mean(1)


def animate(shapes: dict[str, int], speech: Speech, n: int, rng: np.random.Generator, mouth: np.random.Generator) -> Motion:
    """All motion of n frames for shapes by name: the mouth from the speech (drawn from `mouth`), the rest from `rng`."""
    y = articulate(speech, n, mouth)
    w = visemes.to_weights(y, shapes, mouth)
    loud = np.sqrt(np.convolve(speech.samples**2, np.ones(640) / 640, "same"))[:: SPEECH_RATE // FPS][:n]
    loud = gaussian_filter1d(np.pad(loud, (0, n - len(loud))), 3)
    loud /= loud.max() + 1e-6
    _face(w, shapes, loud, rng, mouth)
    nod = float(rng.uniform(0.4, 1.5))
    yaw = np.radians(drift(rng, n, 16, 4 * nod))
    pitch = np.radians(drift(rng, n, 11, 2 * nod) + 3.0 * nod * (gaussian_filter1d(loud, 2) - 0.4))
    roll = np.radians(drift(rng, n, 18, 2 * nod))
    shift = np.stack([drift(rng, n, 20, 0.25 * nod), drift(rng, n, 14, 0.12 * nod), drift(rng, n, 20, 0.25 * nod)], 1)
    return Motion(w, y, np.stack([yaw, pitch, roll], 1), shift)


def _face(w: np.ndarray, shapes: dict[str, int], loud: np.ndarray, rng: np.random.Generator, mouth: np.random.Generator) -> None:
    """Adds blinks, lids, brows, gaze and, drawn from `mouth`, the mood to the weights (n, e)."""
    n = len(w)
    f = int(rng.integers(5, 60))
    while f < n:
        b = BLINK[: n - f]
        w[f : f + len(b), shapes["eyeBlink_L"]] = w[f : f + len(b), shapes["eyeBlink_R"]] = b * 0.95
        f += int(rng.gamma(3, 22)) + 8
    squint, lid = float(rng.uniform(0.05, 0.45)), float(rng.uniform(0.02, 0.2))
    for s in "LR":
        w[:, shapes[f"eyeSquint_{s}"]] += squint
        w[:, shapes[f"eyeBlink_{s}"]] = np.maximum(w[:, shapes[f"eyeBlink_{s}"]], lid)
        w[:, shapes[f"browInnerUp_{s}"]] += np.clip(drift(rng, n, 10, 0.08) + 0.25 * (loud - 0.5), 0, 0.8)
    brow = np.clip(drift(rng, n, 12, 0.18) + 0.2 * (loud - 0.5), -0.3, 0.8)
    for s in "LR":
        w[:, shapes[f"browOuterUp_{s}"]] += np.clip(brow, 0, 1)
        w[:, shapes[f"browDown_{s}"]] += np.clip(-brow, 0, 1) + 0.1 * squint
    mood = float(mouth.normal(0.05, 0.12))
    for s in "LR":
        w[:, shapes[f"mouthSmile_{s}"]] += max(mood, 0)
        w[:, shapes[f"mouthFrown_{s}"]] += max(-mood, 0)
        w[:, shapes[f"cheekSquint_{s}"]] += max(mood, 0) * 0.8
    across, up = np.zeros(n), np.zeros(n)
    f = 0
    while f < n:  # saccades
        k = int(rng.integers(6, 50))
        across[f : f + k], up[f : f + k] = rng.normal(0, 0.16), rng.normal(0, 0.10)
        f += k
    across, up = gaussian_filter1d(across, 0.7), gaussian_filter1d(up, 0.7)
    gaze = {"Out_L": across, "In_R": across, "In_L": -across, "Out_R": -across, "Up_L": up, "Up_R": up, "Down_L": -up, "Down_R": -up}
    for name, value in gaze.items():
        w[:, shapes[f"eyeLook{name}"]] += np.clip(value, 0, 1)


def sample_camera(rng: np.random.Generator, n: int, more: np.random.Generator | None) -> Camera:
    """A random camera; `more` adds what only later seeds have: smaller faces, off the middle, turned up to 40 degrees."""
    u = rng.uniform
    yaw, pitch = np.radians(np.clip(rng.normal(0, 11), -25, 25)), np.radians(np.clip(rng.normal(0, 6), -18, 22))
    fov, half, height = u(12, 32), u(12.5, 18), u(-2.0, 1.5)
    at = np.array([u(-2, 2), height, 2.0])
    body_yaw = np.radians(rng.normal(0, 6))
    if more is not None:
        side = more.uniform(-40, 40) if more.random() < 0.35 else np.clip(more.normal(0, 13), -35, 35)
        yaw, pitch = np.radians(side), np.radians(np.clip(more.normal(0, 7.5), -20, 24))
        nearest, farthest = ((12.5, 19), (19, 28), (28, 42))[int(more.choice(3, p=(0.55, 0.3, 0.15)))]
        half, fov = more.uniform(nearest, farthest), more.uniform(14, 34)
        room = max(half - FACE, 2.0)
        at = np.array([more.uniform(-0.85, 0.85) * room, height + more.uniform(-0.7, 0.5) * max(half - FACE - 3, 0.0), 2.0])
    tremble = np.stack([drift(rng, n, 9, 0.10 * u(0, 1)), drift(rng, n, 9, 0.10 * u(0, 1)), np.zeros(n)], 1)
    return Camera(float(yaw), float(pitch), float(fov), at, float(half), float(body_yaw), tremble)
