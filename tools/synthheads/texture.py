"""The procedural look of one identity: palette, skin painted in texture space, hair line; and the room behind it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.interpolate import splev, splprep
from tools.synthheads.model import LM68, HeadModel

Look = dict[str, Any]  # the choices of one identity by name: plain numbers, colours as (3,) sRGB 0..1

SKIN = np.array(  # sRGB, light to dark, picked by eye
    [
        [236, 196, 172], [228, 184, 156], [226, 180, 150], [212, 162, 128], [196, 144, 108],
        [174, 121, 87], [148, 99, 70], [120, 79, 56], [94, 62, 46], [70, 47, 37],
    ], np.float32,
) / 255  # fmt: skip
HAIR = np.array(
    [
        [28, 22, 20], [44, 32, 26], [70, 48, 34], [98, 70, 46], [140, 104, 66],
        [184, 150, 102], [120, 58, 32], [128, 124, 120], [190, 188, 184],
    ], np.float32,
) / 255  # fmt: skip
IRIS = np.array([[62, 38, 22], [84, 54, 30], [110, 78, 40], [92, 104, 62], [78, 112, 132], [104, 128, 150], [112, 118, 116]], np.float32) / 255
LIPSTICK = np.array([[0.72, 0.18, 0.24], [0.62, 0.2, 0.28], [0.8, 0.36, 0.36], [0.55, 0.14, 0.2], [0.75, 0.4, 0.38]])
TEETH = np.array([[0.93, 0.92, 0.89], [0.88, 0.85, 0.78], [0.86, 0.80, 0.66], [0.78, 0.70, 0.54], [0.78, 0.73, 0.66]])  # bleached to stained
GUM = np.array([[0.62, 0.30, 0.30], [0.70, 0.38, 0.38], [0.45, 0.22, 0.24]])
FRAMES = np.array(  # of glasses
    [[0.03, 0.03, 0.035], [0.16, 0.08, 0.04], [0.55, 0.5, 0.45], [0.65, 0.5, 0.25], [0.35, 0.05, 0.07], [0.08, 0.12, 0.25], [0.7, 0.66, 0.6]]
)
STRIPE = 0.55  # brightness of the darker stripes of a shirt
SPANS = 30.0  # cm that the face's texture spans, roughly


def lin(c: npt.ArrayLike) -> np.ndarray:
    """sRGB -> linear light, by the simple power."""
    return np.asarray(c, np.float32) ** 2.2


def fbm(rng: np.random.Generator, n: int, octaves: int, base: int = 4, gain: float = 0.5) -> np.ndarray:
    """(n, n) float32 noise of unit deviation: octaves of ever finer and weaker smooth noise, the first of base x base blobs."""
    out = np.zeros((n, n), np.float32)
    a = 1.0
    for o in range(octaves):
        k = min(base * 2**o, n)
        out += a * cv2.resize(rng.standard_normal((k, k)).astype(np.float32), (n, n), interpolation=cv2.INTER_CUBIC)
        a *= gain
    return out / max(out.std(), 1e-6)


def soft(x: np.ndarray, a: float, b: float) -> np.ndarray:
    """0 at a, 1 at b, smooth between."""
    t = np.clip((x - a) / (b - a), 0, 1)
    return t * t * (3 - 2 * t)


def curve(points: npt.ArrayLike, n: int, closed: bool = False) -> np.ndarray:
    """(k, 2) -> (n, 2): a spline through the points."""
    p = np.asarray(points, np.float64)
    if closed:
        p = np.r_[p, p[:1]]
    spline, _ = splprep(p.T, s=0, per=closed, k=min(3, len(p) - 1))
    return np.stack(splev(np.linspace(0, 1, n), spline), 1)


def blurred(mask: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(mask, (0, 0), sigma)


def hair_mask(rest: np.ndarray, look: Look) -> np.ndarray:
    """Scalp membership (about -1..1, 0 at the hair line) of rest positions (.., 3)."""
    x, y, z = rest[..., 0], rest[..., 1], rest[..., 2]
    azimuth = np.degrees(np.arctan2(np.abs(x), z - 1.0))
    sideburn = look["burn_y"]
    heights = [10.6, 10.4, 9.3, 7.6, sideburn + 2.5, sideburn, 3.5, 4.8, 4.0, -1.0, -4.0]
    line = np.interp(azimuth, [0, 25, 45, 62, 74, 80, 86, 95, 115, 135, 180], heights)
    line = line + look["recede"] * np.interp(azimuth, [0, 30, 45, 60, 80], [0.6, 0.9, 1.2, 0.8, 0])
    return np.clip((y - line) / 1.5, -1, 1)


def sample_look(rng: np.random.Generator) -> Look:
    """All random choices of one identity's look."""
    u = rng.uniform
    tone = float(np.clip(rng.beta(1.1, 1.2) * 9, 0, 8.99))
    i = int(tone)
    skin = SKIN[i] * (1 - tone + i) + SKIN[i + 1] * (tone - i)
    skin = np.clip(skin * (1 + rng.normal(0, 0.02) + rng.normal(0, 0.008, 3)), 0.1, 0.95)
    male = bool(rng.random() < 0.5)
    age = float(rng.random())
    dark = tone > 4
    hair = HAIR[int(rng.choice(1 if tone > 6.5 else 3 if dark else len(HAIR)))] * float(u(0.7, 1.2))
    if age > 0.75 and rng.random() < 0.6:
        hair = hair * 0.5 + np.array([0.55, 0.54, 0.53]) * 0.5
    lip = skin * np.array([0.93, 0.66, 0.66]) * float(u(0.85, 1.02))
    makeup = (not male) and bool(rng.random() < 0.55)
    if makeup:
        colour = LIPSTICK[rng.integers(5)]
        k = float(u(0.25, 0.75))
        lip = lip * (1 - k) + colour * k * (0.5 + 0.5 * skin.mean() / 0.75)
    shirt, k = u(0.06, 0.85, 3) ** 1.3, u(0.2, 1)
    shirt = shirt * (1 - k) + shirt.mean() * k
    return {
        "skin": skin,
        "tone": tone,
        "male": male,
        "age": age,
        "lip": np.clip(lip, 0.05, 0.95),
        "makeup": makeup,
        "hair_rgb": np.clip(hair, 0.03, 0.9),
        "iris": IRIS[int(rng.choice(2 if dark else len(IRIS)))] * u(0.7, 1.0),
        "brow": float(u(0.5, 1.15)),
        "brow_w": float(u(0.32, 0.62) if male else u(0.22, 0.42)),
        "beard": float(rng.choice([0, 0, u(0.1, 0.5), u(0.5, 1.0)])) if male else 0.0,
        "moustache_only": bool(rng.random() < 0.15),
        "freckles": float(max(0, u(-1.2, 1))) * (tone < 4),
        "blush": float(u(0.05, 0.5)),
        "mottle": float(u(0.4, 1.2)),
        "oil": float(u(0.5, 1.5)),
        "bald": bool(male and rng.random() < 0.18),
        "hair_len": float(u(0.25, 1.5)),
        "hair_curl": float(u(0, 1)),
        "long": bool((not male and rng.random() < 0.7) or rng.random() < 0.08),
        "long_len": float(u(-13, -3)),
        "burn_y": float(u(-1.5, 2.5) if male else u(1.5, 3.5)),
        "recede": float(u(0, 1.2) if male else u(-0.2, 0.5)),
        "shirt": shirt,
        "collar": float(u(-13.2, -11.0)),
        "neck_k": float(u(0.012, 0.045)),
        "lash": float(u(0.5, 0.85) if makeup else u(0.12, 0.5)),
        "teeth": np.array([0.88, 0.85, 0.78]) * u(0.85, 1.05),
        "gum": np.array([0.62, 0.30, 0.30]) * u(0.75, 1.1),
        "tongue": np.array([0.66, 0.34, 0.34]) * u(0.8, 1.1),
        # What only later seeds have, see `vary_look`.
        "wrinkles": 0.0,
        "pores": 0.0,
        "blemishes": 0,
        "tooth_spread": 0.0,
        "tooth_gap": 0.0,
        "front_gap": 0.0,
        "tooth_size": 1.0,
        "stripes": 0.0,
        "glasses": None,
    }


def vary_look(look: Look, rng: np.random.Generator) -> None:
    """Choices that the first 3000 seeds do not have: teeth, aged and blemished skin, cloth, glasses."""
    u = rng.uniform
    i = float(np.clip(rng.beta(1.3, 1.8) * 4, 0, 3.99))
    tooth = TEETH[int(i)] * (1 - i % 1) + TEETH[int(i) + 1] * (i % 1)
    look["teeth"] = np.clip(tooth * u(0.85, 1.06), 0, 0.97)
    look["gum"] = GUM[2 if look["tone"] > 6 and rng.random() < 0.6 else int(rng.integers(2))] * u(0.8, 1.1)
    look["tooth_spread"] = float(u(0, 1) ** 2)  # how irregular, 1 = crooked
    look["tooth_gap"] = float(u(0.04, 0.11) if rng.random() < 0.3 else u(0, 0.04))  # share of a tooth's width
    look["front_gap"] = float(u(0.05, 0.16) if rng.random() < 0.15 else 0)  # cm
    look["tooth_size"] = float(u(0.9, 1.14))
    look["wrinkles"] = float(np.clip(look["age"] * 1.5 - 0.45 + rng.normal(0, 0.15), 0, 1))
    look["pores"] = float(u(0, 1))
    look["blemishes"] = int(rng.integers(0, 14)) if rng.random() < 0.5 else 0
    look["stripes"] = float(u(1.5, 7)) if rng.random() < 0.25 else 0.0  # a centimetre
    look["mottle"] = float(u(0.5, 1.7))
    if rng.random() < 0.27:
        look["glasses"] = {
            "colour": (FRAMES[rng.integers(len(FRAMES))] * u(0.7, 1.3)).tolist(),
            "width": float(u(2.25, 2.85)),  # half, of a lens, cm
            "height": float(u(1.35, 2.3)),
            "square": float(u(2.0, 4.5)),  # exponent of the superellipse: 2 is round
            "thick": float(u(0.06, 0.11) if rng.random() < 0.45 else u(0.12, 0.26)),
            "drop": float(u(0.1, 0.6)),  # cm that its middle is below the eye's
            "tint": float(u(0.0, 0.05) if rng.random() < 0.85 else u(0.1, 0.35)),
            "mirror": float(u(0.1, 0.8)),
        }


class _Canvas:
    """Colour (n, n, 3) and gloss (n, n) of one texture tile; masks (n, n) say how much of a paint takes."""

    def __init__(self, n: int, skin: np.ndarray) -> None:
        self.colour: np.ndarray = np.tile(skin, (n, n, 1)).astype(np.float32)
        self.gloss: np.ndarray = np.full((n, n), 0.42, np.float32)

    def tint(self, mask: np.ndarray, factor: npt.ArrayLike, k: float) -> None:
        """Multiplies the colour by `factor` (3,)."""
        m = np.clip(mask * k, 0, 1)[..., None]
        self.colour = self.colour * (1 - m) + self.colour * np.asarray(factor, np.float32) * m

    def put(self, mask: np.ndarray, colour: npt.ArrayLike, k: float) -> None:
        """Covers with `colour` (3,)."""
        m = np.clip(mask * k, 0, 1)[..., None]
        self.colour = self.colour * (1 - m) + np.asarray(colour, np.float32) * m


def paint_skin(
    rest: np.ndarray, valid: np.ndarray, tile: int, model: HeadModel, look: Look, rng: np.random.Generator, more: np.random.Generator | None
) -> np.ndarray:
    """(n, n, 3) rest position of each texel, (n, n) whether it has one -> (n, n, 4) uint8: sRGB albedo and gloss.

    Tile 0 is the face, 1 the rest of the head and the neck. `more` draws what only later seeds have; None leaves it out.
    """
    n = rest.shape[0]
    x, y, z = rest[..., 0], rest[..., 1], rest[..., 2]
    low, mid = fbm(rng, n, 4, 4), fbm(rng, n, 4, 32)
    fine = blurred(rng.standard_normal((n, n)).astype(np.float32), 0.8)
    fine = fine / fine.std()
    canvas = _Canvas(n, look["skin"])
    tint = canvas.tint
    canvas.colour *= 1 + (0.016 * low + 0.016 * mid * look["mottle"] + 0.03 * look["mottle"] * fine)[..., None]
    red = [1.05, 0.84, 0.82]

    def blob(cx: float, cy: float, sx: float, sy: float) -> np.ndarray:
        """A soft spot on the front of the face, mirrored."""
        return np.exp(-(((np.abs(x) - cx) / sx) ** 2) - ((y - cy) / sy) ** 2) * (z > 3)

    def spots(count: int, smallest: int, largest: int, draw: np.random.Generator) -> np.ndarray:
        s = np.zeros((n, n), np.float32)
        for _ in range(count):
            centre = (int(draw.integers(n)), int(draw.integers(n)))
            cv2.circle(s, centre, int(draw.integers(smallest, largest)), float(draw.random()) if count > 1 else 1.0, -1)
        return s

    tint(blob(4.6, -0.3, 2.2, 1.8) * (1 + 0.3 * mid), red, 0.75 * look["blush"])
    tint(blob(0, 0.4, 1.3, 1.3), red, 0.6 * look["blush"])
    tint(blob(0, -7.0, 1.6, 1.2), red, 0.35 * look["blush"])
    tint(soft(np.abs(x), 7.4, 8.6) * (y > -2) * (z < 4), red, 0.8)
    tint(blob(3.0, 2.6, 1.9, 1.1), [0.86, 0.78, 0.80], 0.35 + 0.5 * look["age"])
    tint(np.clip(fbm(rng, n, 3, 6), 0, 2) / 2, red, 0.22 * look["mottle"])
    if look["freckles"] > 0:
        tint(blurred(spots(max(2, int(900 * look["freckles"])), 1, 3, rng), 0.9) * soft(y, -5, 0) * (z > 4), [0.66, 0.5, 0.42], 0.8)
    for _ in range(int(rng.integers(0, 5))):  # moles
        tint(blurred(spots(1, 2, 4, rng), 1.0), [0.35, 0.25, 0.22], 0.9)
    canvas.gloss += 0.12 * blob(0, 1, 1.6, 5) + 0.10 * blob(0, 8, 5, 2) + 0.03 * fine
    if more is not None:
        _age(canvas, rest, look, more)
    if tile == 0:
        _paint_face(canvas, rest, model, look, rng, mid, fine)
    if look["bald"]:
        tint(soft(hair_mask(rest, look) + 0.15 * mid, 0.1, 0.6), [0.82, 0.82, 0.84], 0.5)
    else:  # the scalp under the hair
        scalp = soft(hair_mask(rest, look) + 0.12 * mid, -0.12, 0.35)
        canvas.put(scalp * (z < 9.5), look["hair_rgb"] * 0.7, 0.85)
        canvas.gloss -= 0.25 * scalp
    _paint_shirt(canvas, rest, look, low, fine)
    out = np.dstack([np.clip(canvas.colour, 0.005, 1), np.clip(canvas.gloss, 0.02, 1)])
    if not valid.all():  # grow texels over the seams
        labels = cv2.distanceTransformWithLabels((~valid).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)[1]
        rows, columns = np.nonzero(valid)
        nearest = np.zeros(labels.max() + 1, np.int64)
        nearest[labels[rows, columns]] = rows * n + columns
        out = out.reshape(-1, 4)[nearest[labels]]
    return (out * 255 + 0.5).astype(np.uint8)


def _age(canvas: _Canvas, rest: np.ndarray, look: Look, rng: np.random.Generator) -> None:
    """Pores, blemishes, spots and wrinkles."""
    n = len(rest)
    x, y, z = rest[..., 0], rest[..., 1], rest[..., 2]
    front = soft(z, 2.5, 5.0)
    grain = rng.standard_normal((n, n)).astype(np.float32)
    pores = blurred(grain, 1.3)
    pores = pores / pores.std()
    dark = np.clip(pores - 0.8, 0, 2) * front * (np.exp(-((np.abs(x) / 5.5) ** 2)) * 0.7 + 0.3)
    canvas.tint(dark, [0.74, 0.66, 0.62], 0.08 + 0.22 * look["pores"])
    canvas.gloss -= 0.10 * look["pores"] * dark
    for _ in range(look["blemishes"]):
        cx, cy = rng.normal(0, 4.2), rng.normal(-1.5, 5)
        spot = np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / rng.uniform(0.08, 0.3) ** 2)) * front
        canvas.tint(spot, [1.0, 0.68, 0.66] if rng.random() < 0.7 else [0.62, 0.5, 0.45], rng.uniform(0.4, 1.0))
    if look["age"] > 0.6:  # age spots
        patches = soft(fbm(rng, n, 3, 40), 1.5, 2.3)
        canvas.tint(patches, [0.78, 0.66, 0.56], 0.8 * (look["age"] - 0.4))
    depth = look["wrinkles"]
    if depth <= 0.02:
        return
    waver = fbm(rng, n, 3, 6)
    lines = np.zeros((n, n), np.float32)
    for height in np.sort(rng.uniform(6.6, 10.2, int(rng.integers(2, 5)))):  # forehead
        bow = height + 0.18 * waver + 0.35 * np.cos(np.clip(x / 3.2, -3, 3)) - 0.012 * x**2
        lines += rng.uniform(0.4, 1) * np.exp(-(((y - bow) / 0.09) ** 2)) * soft(-np.abs(x), -6.2, -3.5)
    for side in (-1, 1):
        across = side * x
        for slope in rng.uniform(-0.5, 0.55, 4):  # crow's feet, from the outer corner of the eye
            away = across - 5.2
            bow = 3.5 + slope * away + 0.06 * waver
            lines += 0.55 * np.exp(-(((y - bow) / 0.07) ** 2)) * soft(away, 0.0, 0.3) * soft(-away, -2.0, -0.8)
        fold = 2.35 + 0.30 * np.clip(-1.2 - y, 0, 9) ** 0.9 + 0.05 * waver  # from the wing of the nose past the mouth
        lines += 0.7 * np.exp(-(((across - fold) / 0.22) ** 2)) * soft(y, -5.3, -3.8) * soft(-y, 0.9, 1.9)
        bag = 1.75 - 0.28 * np.cos(np.clip((across - 3.1) / 1.2, -1.6, 1.6)) + 0.03 * waver  # under the eye
        lines += 0.7 * np.exp(-(((y - bag) / 0.1) ** 2)) * np.exp(-(((across - 3.1) / 1.5) ** 4))
        frown = 0.75 + 0.12 * waver
        lines += 0.7 * np.exp(-(((across - frown) / 0.08) ** 2)) * soft(y, 4.8, 5.5) * soft(-y, -7.3, -6.3)
    lines = np.clip(lines, 0, 1.2) * front
    light = np.roll(lines, 4, axis=0)  # the lower lip of a fold catches light
    canvas.tint(lines, [0.62, 0.5, 0.46], 0.55 * depth)
    canvas.tint(np.clip(light - lines, 0, 1), [1.12, 1.1, 1.08], 0.8 * depth)
    canvas.gloss += 0.05 * (light - lines) * depth


def _paint_face(canvas: _Canvas, rest: np.ndarray, model: HeadModel, look: Look, rng: np.random.Generator, mid: np.ndarray, fine: np.ndarray) -> None:
    """Lips, rims of the eyes, brows, beard: what hangs on landmarks."""
    n = len(rest)
    x, y, z = rest[..., 0], rest[..., 1], rest[..., 2]
    uv = model.uv
    row = {int(s): i for i, s in enumerate(model.src) if 0 <= uv[i, 0] <= 1}

    def texels(landmarks: Iterable[int]) -> np.ndarray:
        """(k, 2) texture pixels of landmarks."""
        return np.stack([np.array([uv[row[LM68[k]], 0] * n, (1 - uv[row[LM68[k]], 1]) * n]) for k in landmarks])

    def outline(landmarks: Iterable[int], points: int, width: int = 3) -> np.ndarray:
        mask = np.zeros((n, n), np.float32)
        cv2.polylines(mask, [np.round(curve(texels(landmarks), points, True)).astype(np.int32)], True, 1.0, width)
        return mask

    lip_area = np.zeros((n, n), np.float32)
    cv2.fillPoly(lip_area, [np.round(curve(texels(range(48, 60)), 200, True)).astype(np.int32)], 1.0)
    lips = blurred(lip_area, n / 260)
    edge = np.abs(lips - blurred(lip_area, n / 90))
    streak = cv2.GaussianBlur(rng.standard_normal((n, n)).astype(np.float32), (0, 0), sigmaX=0.7, sigmaY=5)
    streak = streak / streak.std()
    canvas.put(lips, look["lip"], 0.92)
    canvas.colour *= 1 + (lips * (0.045 * streak + 0.05 * mid))[..., None]
    canvas.tint(blurred(outline(range(60, 68), 200), 2.5), [0.6, 0.35, 0.38], 1.2)
    if look["makeup"]:
        canvas.gloss += 0.25 * lips
    canvas.tint(edge, [0.9, 0.8, 0.8], 0.5)
    canvas.gloss += 0.16 * lips
    for eye in (range(36, 42), range(42, 48)):
        rim = outline(eye, 120)
        canvas.tint(blurred(rim, 1.6), [0.16, 0.12, 0.12] if look["makeup"] else [0.45, 0.3, 0.3], 1.4)
        if look["makeup"]:
            canvas.tint(blurred(rim, 7), [0.55, 0.45, 0.45], 1.6)
    hair = np.clip(look["hair_rgb"] * 0.75, 0.02, 0.6)
    brows = _brow_strokes(n, [texels(range(17, 22)), texels(range(22, 27))[::-1]], look, rng)
    canvas.put(np.clip(blurred(brows, 0.6), 0, 1), hair, 0.92)
    canvas.tint(blurred(brows, 5), [0.8, 0.75, 0.72], 0.5)
    if look["beard"] <= 0:
        return
    lip_y = model.v0[LM68[51], 1]
    jaw = soft(-y, 1.6, 3.6) * soft(y, -10.5, -8.6) * soft(z, 0.5, 3)
    cheek = soft(np.abs(x) * 0.55 + y, -0.2, -3.2)
    moustache = np.exp(-((np.abs(x) / 3.0) ** 2) - ((y - lip_y - 0.55) / 0.9) ** 2) * (z > 3) * (y < 0)
    area = np.clip(moustache * 1.3 if look["moustache_only"] else jaw * (0.25 + 0.75 * cheek) + moustache, 0, 1)
    area = area * (1 - np.clip(blurred(lip_area, n / 180) * 1.6, 0, 1)) * (z > 0)
    dots = np.clip(blurred((rng.random((n, n)) < 0.16).astype(np.float32), 0.7) * 3, 0, 1)
    canvas.tint(area, [0.78, 0.78, 0.82], 0.6)
    canvas.put(area * dots, hair * 0.9, 0.9 * look["beard"])
    if look["beard"] > 0.5:
        canvas.put(area * (0.65 + 0.12 * mid), hair, (look["beard"] - 0.4) * 1.4)
    canvas.gloss -= 0.15 * area


def _brow_strokes(n: int, brows: list[np.ndarray], look: Look, rng: np.random.Generator) -> np.ndarray:
    """(n, n): hairs along each brow (5, 2), leaning outwards."""
    strokes = np.zeros((n, n), np.float32)
    cm = n / SPANS
    for brow in brows:
        line = curve(brow, 300)
        along = np.gradient(line, axis=0)
        along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
        for _ in range(int(900 * look["brow"])):
            u = rng.random()
            i = int(u * 299)
            width = look["brow_w"] * cm * (np.sin(np.pi * min(1, 0.12 + 0.88 * u)) ** 0.6 + 0.15)
            off = rng.normal(0, 0.38) * width
            start = line[i] + np.array([-along[i, 1], along[i, 0]]) * off
            length = cm * rng.uniform(0.25, 0.6)
            way = -along[i] * (0.4 + 0.8 * (1 - u)) + np.array([0, -1.0]) * (0.2 + 0.9 * u) + rng.normal(0, 0.15, 2)
            end = start + way / (np.linalg.norm(way) + 1e-6) * length
            a, b = (tuple(int(v) for v in np.round(p * 16)) for p in (start, end))
            cv2.line(strokes, a, b, float(rng.uniform(0.4, 1)), 1, cv2.LINE_AA, 4)
    return strokes


def _paint_shirt(canvas: _Canvas, rest: np.ndarray, look: Look, low: np.ndarray, fine: np.ndarray) -> None:
    n = len(rest)
    x, y, z = rest[..., 0], rest[..., 1], rest[..., 2]
    neckline = look["collar"] + look["neck_k"] * x**2 - 1.2 * soft(z, -2, 7) + 0.04 * low
    covered = soft(neckline - y, -0.06, 0.06)
    cloth = np.tile(look["shirt"], (n, n, 1)).astype(np.float32)
    cloth *= (1 + 0.03 * fine)[..., None]
    m = covered[..., None]
    if look["stripes"]:
        cloth[np.mod(y * look["stripes"], 1) < 0.5] *= STRIPE
    canvas.colour = canvas.colour * (1 - m) + cloth * m
    canvas.gloss = canvas.gloss * (1 - covered) + 0.12 * covered
    seam = np.exp(-(((neckline - y) / 0.12) ** 2))
    canvas.colour *= 1 - 0.35 * seam[..., None]


def background(rng: np.random.Generator, n: int = 512) -> np.ndarray:
    """(n, n, 3) uint8: a defocused, made-up room of gradients, soft boxes and lights."""
    a, b = rng.uniform(0.03, 0.8, 3), rng.uniform(0.03, 0.8, 3)
    grey = rng.random() ** 0.4
    a, b = a * (1 - grey) + a.mean() * grey, b * (1 - grey) + b.mean() * grey
    t = np.linspace(0, 1, n)[:, None, None]
    im = ((a * (1 - t) + b * t) * np.ones((n, n, 1))).astype(np.float32)
    for _ in range(int(rng.integers(0, 14))):
        x, y, w, h = rng.uniform(-0.2, 1.1), rng.uniform(-0.2, 1.1), rng.uniform(0.03, 0.5), rng.uniform(0.05, 0.8)
        colour = np.clip(im.mean((0, 1)) * rng.uniform(0.3, 1.7) + rng.normal(0, 0.06, 3), 0.01, 1.2)
        cv2.rectangle(im, (int(x * n), int(y * n)), (int((x + w) * n), int((y + h) * n)), colour.tolist(), -1)
    for _ in range(int(rng.integers(0, 6))):
        centre, radius = (int(rng.integers(n)), int(rng.integers(n))), int(rng.integers(6, 40))
        cv2.circle(im, centre, radius, (rng.uniform(0.4, 1.4, 3)).tolist(), -1)
    im = blurred(im, float(rng.uniform(2, 28)))
    im += 0.012 * fbm(rng, n, 6, 4)[..., None]
    return (np.clip(im, 0, 1) ** (1 / 1.4) * 255).astype(np.uint8)
