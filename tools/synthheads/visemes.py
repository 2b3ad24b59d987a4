"""IPA phones -> articulation over time (dominance blending, after Cohen and Massaro 1993) -> blendshape weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Phone = tuple[float, float, str]  # start and end in seconds, IPA symbol; "_" is silence

CHANNELS = ["jaw", "close", "funnel", "pucker", "spread", "tuck", "upper", "lower", "tip", "tongue_fwd"]
INDEX = {c: i for i, c in enumerate(CHANNELS)}
RATE = 200  # samples of the articulation per second
LEAD = 0.02  # seconds by which the mouth is ahead of the sound
CLOSE_PER_JAW = 0.86  # mouthClose weight that closes the lips again, per unit of jawOpen


class Target(NamedTuple):
    """Where a phone pulls the mouth (channels,), and how strongly."""

    place: np.ndarray
    strength: float


def _target(strength: float, **channels: float) -> Target:
    place = np.zeros(len(CHANNELS), np.float32)
    for name, value in channels.items():
        place[INDEX[name]] = value
    return Target(place, strength)


_P = _target(1.2, jaw=0.10, close=1)
_K = _target(0.35, jaw=0.17)
_L = _target(0.6, jaw=0.21, tip=1)
_W = _target(1.4, jaw=0.07, pucker=0.95, close=0.25)
_ER = _target(0.9, jaw=0.2, funnel=0.35, pucker=0.15)
SILENCE = _target(0.8, jaw=0.02, close=0.6)
TARGETS: dict[str, Target] = {
    "p": _P,
    "b": _P,
    "m": _P,
    "f": _target(1.3, jaw=0.09, tuck=1, upper=0.25),
    "v": _target(1.3, jaw=0.10, tuck=0.9, upper=0.2),
    "θ": _target(0.9, jaw=0.15, lower=0.2, tongue_fwd=1),
    "ð": _target(0.9, jaw=0.15, lower=0.2, tongue_fwd=0.9),
    "t": _target(0.6, jaw=0.11, spread=0.15, lower=0.2, tip=1),
    "d": _target(0.6, jaw=0.12, spread=0.15, lower=0.2, tip=1),
    "n": _target(0.6, jaw=0.13, spread=0.1, lower=0.2, tip=1),
    "ɾ": _target(0.4, jaw=0.15, tip=1),
    "s": _target(1.1, jaw=0.05, spread=0.3, lower=0.4, upper=0.15, tip=0.5),
    "z": _target(1.1, jaw=0.06, spread=0.3, lower=0.4, upper=0.15, tip=0.5),
    "ʃ": _target(1.3, jaw=0.07, funnel=0.65, pucker=0.25, lower=0.25, upper=0.2),
    "ʒ": _target(1.3, jaw=0.08, funnel=0.65, pucker=0.25, lower=0.25, upper=0.2),
    "k": _K,
    "ɡ": _K,
    "g": _K,
    "ŋ": _K,
    "x": _target(0.35, jaw=0.2),
    "ʔ": _target(0.1, jaw=0.2),
    "h": _target(0.25, jaw=0.26),
    "l": _L,
    "ɫ": _L,
    "ɹ": _target(0.9, jaw=0.12, funnel=0.4, pucker=0.3),
    "r": _target(0.7, jaw=0.16, tip=0.7),
    "w": _W,
    "ʍ": _W,
    "j": _target(0.7, jaw=0.10, spread=0.4),
    "i": _target(1.0, jaw=0.12, spread=0.65, lower=0.1),
    "ɪ": _target(0.9, jaw=0.20, spread=0.4),
    "ᵻ": _target(0.8, jaw=0.18, spread=0.3),
    "e": _target(1.0, jaw=0.26, spread=0.45),
    "ɛ": _target(1.0, jaw=0.36, spread=0.35),
    "æ": _target(1.1, jaw=0.50, spread=0.4, lower=0.25, upper=0.15),
    "a": _target(1.1, jaw=0.55, spread=0.15, lower=0.15),
    "ɑ": _target(1.1, jaw=0.58),
    "ɐ": _target(0.8, jaw=0.35),
    "ɒ": _target(1.1, jaw=0.50, funnel=0.35),
    "ɔ": _target(1.1, jaw=0.42, funnel=0.55, pucker=0.2),
    "o": _target(1.1, jaw=0.32, funnel=0.5, pucker=0.45),
    "ʊ": _target(1.0, jaw=0.18, funnel=0.3, pucker=0.55),
    "u": _target(1.2, jaw=0.11, funnel=0.15, pucker=0.95),
    "ʉ": _target(1.1, jaw=0.11, funnel=0.15, pucker=0.8),
    "y": _target(1.2, jaw=0.11, pucker=0.9),
    "ʌ": _target(1.0, jaw=0.42),
    "ə": _target(0.5, jaw=0.24),
    "ɜ": _target(0.9, jaw=0.28, funnel=0.3),
    "ɚ": _ER,
    "ɝ": _ER,
    "_": SILENCE,
}
VOWELS = frozenset("iɪᵻeɛæaɑɐɒɔoʊuʉyʌəɜɚɝ")
BILABIALS, LABIODENTALS = frozenset("pbm"), frozenset("fv")


def segments(phones: Sequence[Phone]) -> list[Phone]:
    """Phones with symbols of `TARGETS` only: diphthongs and affricates are split, unknown symbols take the schwa, empty ones are left out."""
    out: list[Phone] = []
    for start, end, name in phones:
        if end <= start:
            continue
        symbols = [c for c in name if c in TARGETS and c != "_"]
        if not symbols:
            symbols = ["_"] if (not name.strip("ˈˌ") or "_" in name) else ["ə"]
        if len(symbols) == 1:
            out.append((start, end, symbols[0]))
        else:
            middle = start + (0.5 if symbols[0] in VOWELS else 0.4) * (end - start)
            out += [(start, middle, symbols[0]), (middle, end, symbols[-1])]
    return out


def articulate(phones: Sequence[Phone], seconds: float, rng: np.random.Generator) -> np.ndarray:
    """-> (int(seconds * RATE), channels): the articulation over time, 0..1.1. `rng` varies how far each phone is carried out."""
    parts = segments(phones)
    t = (np.arange(int(seconds * RATE)) + 0.5) / RATE
    pull = np.tile(SILENCE.place * 0.02, (len(t), 1))
    total = np.full((len(t), 1), 0.02, np.float32)
    for start, end, name in parts:
        place, strength = TARGETS[name]
        place = place * (1 + 0.12 * rng.standard_normal())
        length = end - start
        width = min(max(0.62 * length, 0.045), 0.16)
        away = np.abs(t - ((start + end) / 2 - LEAD))
        if name == "_":  # silence: hold while it lasts, ease in over about 80 ms
            away = np.maximum(np.maximum(start - t, t - end), 0)
            width = 0.07
            strength = strength * min(1.0, length / 0.25)
        dominance = strength * np.exp(-((away / width) ** 1.6))
        pull += dominance[:, None] * place
        total += dominance[:, None]
    y = pull / total
    # Closures are all or nothing: they are reached whatever the neighbours want.
    for start, end, name in parts:
        if name not in BILABIALS and name not in LABIODENTALS:
            continue
        near = np.clip(1 - np.maximum(np.maximum(start - 0.005 - t, t - (end - 0.012)), 0) / 0.045, 0, 1)
        near = near * near * (3 - 2 * near)
        if name in BILABIALS:
            y[:, INDEX["close"]] = 1 - (1 - y[:, INDEX["close"]]) * (1 - near)
            y[:, INDEX["tuck"]] *= 1 - near
        else:
            y[:, INDEX["tuck"]] = np.maximum(y[:, INDEX["tuck"]], near * 0.9)
            y[:, INDEX["jaw"]] = np.minimum(y[:, INDEX["jaw"]], 0.13 + (1 - near))
    return np.clip(y, 0, 1.1)


def to_weights(y: np.ndarray, shapes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    """(n, channels) articulation -> (n, len(shapes)) blendshape weights, in a personal way of speaking drawn from `rng`."""
    gain = {c: float(rng.uniform(0.75, 1.25)) for c in CHANNELS}
    gain["close"] = 1.0
    gain["jaw"] = float(rng.uniform(0.6, 1.15))
    a = {c: y[:, i] * gain[c] for c, i in INDEX.items()}
    w = np.zeros((len(y), len(shapes)), np.float32)
    upper_lift = float(rng.uniform(0.1, 0.6))
    skew = float(rng.normal(0, 0.08))

    def put(name: str, x: np.ndarray) -> None:
        w[:, shapes[name]] += x

    def put_both(name: str, x: np.ndarray) -> None:
        put(f"{name}_L", x * (1 + skew))
        put(f"{name}_R", x * (1 - skew))

    close, jaw, tuck = np.clip(a["close"], 0, 1), a["jaw"], np.clip(a["tuck"], 0, 1)
    open_ = 1 - close  # lips can be open only as far as they are not closed
    press = np.clip((close - 0.85) / 0.15, 0, 1)
    put("jawOpen", jaw)
    put("mouthClose", jaw * close * CLOSE_PER_JAW)
    put_both("mouthPress", 0.35 * press)
    put("mouthRollLower", 0.12 * press + 0.45 * a["tuck"])
    put("mouthRollUpper", 0.10 * press)
    put("mouthFunnel", a["funnel"] * 0.8 * (1 - 0.7 * close))
    put("mouthPucker", a["pucker"] * 0.75)
    put_both("mouthStretch", a["spread"] * 0.45)
    put_both("mouthSmile", a["spread"] * 0.18)
    put_both("mouthUpperUp", (a["upper"] * 0.5 + upper_lift * jaw) * open_)
    put_both("mouthLowerDown", (a["lower"] * 0.5 + 0.06 * jaw) * open_ * (1 - tuck))
    put("mouthShrugLower", 0.25 * a["tuck"])
    put("tongueUp", 0.8 * a["tip"] * np.clip(0.2 + 2.2 * jaw, 0, 1))
    put("tongueFwd", a["tongue_fwd"] * 0.9)
    return w
