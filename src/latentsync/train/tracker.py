"""Training of the small face finder: what the loop needs to know of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from latentsync import config as configs
from latentsync.errors import OutputError, WeightsError
from latentsync.face.demo import DemoBackend, five_of, region_of_points
from latentsync.face.face_net import CELL, FaceNet, check_config
from latentsync.face.mesh import Region, to_region
from latentsync.face.points import ANCHORS, FIVE
from latentsync.media.clip import VIDEO_SUFFIXES
from latentsync.models.load import copy_state, read_state
from latentsync.train.checkpoint import FOLDER, find
from latentsync.train.faces import Frames, chip, extent, pasted, scene, transformed
from latentsync.train.loop import Batch, Say
from latentsync.train.truth import told_split
from latentsync.train.windows import Picks
from latentsync.weights.convert import save

if TYPE_CHECKING:
    from latentsync.device import Compute
    from latentsync.train.config import TrackerTrain

DESCRIPTION = "tracker.yaml"
WEIGHTS = "tracker.safetensors"
EACH = 10  # frames kept of a clip: the heads differ from clip to clip, much less from frame to frame
VALIDATION_BATCH = 32  # frames together
_DRAWS, _HELD = 31, 32  # of this task's random numbers, so that they are shared with no other

PLACE = 1.0  # weights in the loss: the finder's boxes and points
POINTS, PRESENCE = 8.0, 0.3  # the pointer's points, in eye distances, and whether a face is there
IMPORTANT = 2.0  # what a landmark counts that the alignment or the opening of the lips is taken from


class TrackerTask:
    """The finder and the pointer, and the frames."""

    name = "tracker"
    sparse: tuple[str, ...] = ("place",)
    frames = 1

    def __init__(self, config: TrackerTrain, *, say: Say) -> None:
        self.config, self.net = config, config.net
        check_config(config.net, "net")
        self.network = FaceNet(config.net)
        if config.start:
            copy_state(self.network, read_state(_weights(Path(config.start).expanduser())), f"face finder {config.start}")
            say(f"starts from {config.start}")
        say(f"face finder: {sum(p.numel() for p in self.network.parameters()):,} parameters")
        training, validation = told_split(config.data.train, config.data.validation, VIDEO_SUFFIXES)
        folder = Path(config.data.cache or Path(config.run.out) / "cache").expanduser() / "frames"
        self.training = Frames(training, EACH, config.data.fps, folder)
        self.validation = Frames(validation, EACH, config.data.fps, folder)
        say(f"{len(self.training):,} frames of {len(training):,} clips to train on, {len(self.validation):,} of {len(validation):,} held out")

    def place(self, compute: Compute) -> None:
        pass  # there is no frozen network

    def batches(self, *, rank: int, world: int, start: int) -> Iterable[Batch]:
        run = self.config.run
        cv2.setNumThreads(1)
        for picks in Picks(len(self.training), seed=run.seed, batch=run.batch, rank=rank, world=world, start=start):
            yield _stacked([self._sample(np.random.default_rng([_DRAWS, run.seed, pick.position])) for pick in picks])

    def held_out(self, *, rank: int, world: int) -> Iterable[Batch]:
        count = min(len(self.validation), self.config.run.validation_clips)
        indexes = np.linspace(0, len(self.validation) - 1, count).round().astype(int)
        for first in range(rank * VALIDATION_BATCH, count, world * VALIDATION_BATCH):
            yield _stacked([self._plain(int(i)) for i in indexes[first : first + VALIDATION_BATCH]])

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """loss; score and place of the finder, points and presence of the pointer; anchors: error of the alignment points in eye distances."""
        maps, points, presence = network(as_pixels(batch["scene"]), as_pixels(batch["chip"]))
        maps, points, presence = maps.float(), points.float(), presence.float()
        score = focal(maps[:, 0], batch["heat"])
        wanted, counts = batch["maps"], batch["counts"]
        place = ((maps[:, 1:] - wanted).abs() * counts[:, None]).sum() / (14 * counts.gt(0).sum().clamp_min(1))
        present = batch["present"]
        eyes = self._mean(batch["points"], FIVE[68][:2])
        unit = (eyes[:, 1] - eyes[:, 0]).norm(dim=-1).clamp_min(1)
        apart = (points - batch["points"]) / unit[:, None, None]
        important = self._importance(points)
        errors = (rounded(apart).sum(-1) * important).mean(-1)
        total = present.sum().clamp_min(1)
        placed = (errors * present).sum() / total
        there = binary_cross_entropy_with_logits(presence, present)
        loss = score + PLACE * place + POINTS * placed + PRESENCE * there
        anchors = (self._mean(points, ANCHORS[68]) - self._mean(batch["points"], ANCHORS[68])).norm(dim=-1).mean(-1) / unit
        right = ((presence > 0) == (present > 0.5)).float().mean()
        found = {"place": torch.where(counts.gt(0).any(), place, torch.nan)}
        return {"loss": loss, "score": score, **found, "points": placed, "anchors": (anchors * present).sum() / total, "right": right}

    def preview(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Held-out frames and disguised scenes with what was found drawn in, as one picture; and how many of the frames' faces were found."""
        assert isinstance(network, FaceNet)
        device = next(network.parameters()).device
        backend = DemoBackend.of(network.cpu())
        tiles: list[np.ndarray] = []
        hits = count = 0
        for index in np.linspace(0, len(self.validation) - 1, min(len(self.validation), 24)).round().astype(int).tolist():
            picture = self.validation.picture(index).copy()
            faces = backend.detect(picture)
            true = five_of(self.validation.points[index])
            near = [f for f in faces if np.linalg.norm(f.landmarks - true, axis=1).mean() < 0.15 * extent(self.validation.points[index])]
            hits, count = hits + bool(near), count + 1
            tiles.append(_marked(picture, backend, faces))
        for number in range(12):
            picture = scene(self.validation, np.random.default_rng([_HELD, number]), self.net.detector).picture
            tiles.append(
                _marked(cv2.resize(picture, (256, 256), interpolation=cv2.INTER_CUBIC), backend, backend.detect(picture), 256 / self.net.detector)
            )
        network.to(device)
        rows = [np.concatenate(tiles[i : i + 6], 1) for i in range(0, len(tiles) // 6 * 6, 6)]
        if rows:
            _write(folder / "faces.png", np.concatenate(rows))
        return {"found": hits / max(1, count)}

    def write(self, folder: Path, network: nn.Module) -> None:
        save(network.state_dict(), folder / WEIGHTS, {"format": "pt", "latentsync.role": "tracker"})
        (folder / DESCRIPTION).write_text(configs.dump(self.net), encoding="utf-8")

    def read(self, folder: Path) -> None:
        copy_state(self.network, read_state(folder / WEIGHTS), f"face finder of {folder}")

    def _sample(self, draw: np.random.Generator) -> dict[str, Tensor]:
        seen = scene(self.training, draw, self.net.detector)
        cut = chip(self.training, draw, self.net.crop)
        return self._tensors(seen.picture, seen.faces, cut.picture, cut.points, cut.present)

    def _plain(self, index: int) -> dict[str, Tensor]:
        """A held-out frame as it is, and its face in a crop that is a little off."""
        draw = np.random.default_rng([_HELD, index])
        picture, points = self.validation.picture(index), self.validation.points[index]
        side = self.net.detector
        scale = side / picture.shape[0]
        small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        region = region_of_points(points, 1.0)
        off = draw.normal(0, 0.02, 3)
        region = Region(region.x + off[0] * region.side, region.y + off[1] * region.side, region.side * math.exp(off[2]), region.angle)
        matrix = to_region(region, 1.0, self.net.crop)
        cut = pasted(picture, points, matrix, self.net.crop, draw, cut=0.0)[0]
        return self._tensors(small, [(points + 0.5) * scale - 0.5], cut.astype(np.uint8), transformed(points, matrix), True)

    def _tensors(self, picture: np.ndarray, faces: list[np.ndarray], crop: np.ndarray, points: np.ndarray, present: bool) -> dict[str, Tensor]:
        heat, maps, counts = targets(faces, self.net.detector // CELL)
        arrays = {"scene": picture, "chip": crop, "heat": heat, "maps": maps, "counts": counts, "points": points.astype(np.float32)}
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()} | {"present": torch.tensor(float(present))}

    def _mean(self, points: Tensor, layout: tuple) -> Tensor:
        weights = points.new_zeros(len(layout), points.shape[1])
        for row, shares in enumerate(layout):
            for index, share in shares.items():
                weights[row, index] = share
        return weights @ points

    def _importance(self, points: Tensor) -> Tensor:
        weights = points.new_ones(points.shape[1])
        weights[17:36] = weights[60:68] = IMPORTANT
        return weights


def targets(faces: list[np.ndarray], cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Landmarks (68, 2) of each face in pixels -> heat (n, n): 1 at each face's middle cell, falling beside it; what the finder's other 14 maps
    should say (14, n, n); and what each cell counts there (n, n), 0 where it need not say anything."""
    heat = np.zeros((cells, cells), np.float32)
    maps = np.zeros((14, cells, cells), np.float32)
    counts = np.zeros((cells, cells), np.float32)
    y, x = np.mgrid[:cells, :cells].astype(np.float64)
    for points in faces:
        low, high = (points.min(0) + 0.5) / CELL, (points.max(0) + 0.5) / CELL  # from the picture's edge, in cells
        middle = (low + high) / 2 - 0.5
        size = float(np.sqrt(np.prod(high - low)))
        spread = max(0.55, 0.13 * size)
        own = np.exp(-((x - middle[0]) ** 2 + (y - middle[1]) ** 2) / (2 * spread**2)).astype(np.float32)
        column, row = (int(v) for v in np.clip(np.round(middle), 0, cells - 1))
        own[row, column] = 1.0
        mine = (own > 0.3) & (own >= heat)
        five = (five_of(points) + 0.5) / CELL - 0.5
        values = [x + 0.5 - low[0], y + 0.5 - low[1], high[0] - x - 0.5, high[1] - y - 0.5]
        values += [v for px, py in five for v in (px - x, py - y)]
        maps[:, mine] = np.stack(values)[:, mine]
        counts[mine] = own[mine] / size
        heat = np.maximum(heat, own)
    return heat, maps, counts


def focal(logits: Tensor, heat: Tensor) -> Tensor:
    """(b, n, n) scores before the sigmoid, and heat -> mean over faces of the penalty-reduced focal loss (CornerNet, arXiv 1808.01244)."""
    chance = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    middle = heat.eq(1).to(logits.dtype)
    right = -(1 - chance).square() * chance.log() * middle
    wrong = -chance.square() * (1 - chance).log() * (1 - heat) ** 4 * (1 - middle)
    return (right + wrong).sum() / middle.sum().clamp_min(1)


def rounded(errors: Tensor, knee: float = 0.02) -> Tensor:
    """Absolute errors, squared below a knee: so that the last bit is not fought over."""
    size = errors.abs()
    return torch.where(size < knee, size.square() / (2 * knee), size - knee / 2)


def as_pixels(pictures: Tensor) -> Tensor:
    """(b, h, w, 3) uint8 -> what the networks see, on the same device."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def _stacked(samples: list[dict[str, Tensor]]) -> Batch:
    batch: Batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    return batch | {"weight": torch.ones(len(samples))}


def _weights(path: Path) -> Path:
    if path.is_dir():
        path = (find(path) if (path / FOLDER).is_dir() else path) / WEIGHTS
    if not path.is_file():
        raise WeightsError(f"there is no face finder at {path}; give a checkpoint folder of `latentsync train tracker`, or its {WEIGHTS}")
    return path


class _Still:
    """An array as a picture."""

    def __init__(self, pixels: np.ndarray) -> None:
        from fractions import Fraction

        self.pixels, self.pixel_aspect = pixels, Fraction(1)
        self.height, self.width = pixels.shape[:2]

    def rgb(self, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        x0, y0, x1, y1 = box or (0, 0, self.width, self.height)
        return self.pixels[y0:y1, x0:x1]

    def small(self, max_side: int) -> np.ndarray:
        return self.pixels


def _marked(picture: np.ndarray, backend: DemoBackend, faces: list, scale: float = 1.0) -> np.ndarray:
    """The picture with boxes and landmarks drawn in; `scale` brings the faces to its pixels."""
    from dataclasses import replace

    out = picture.copy()
    for face in faces:
        box = tuple(v * scale for v in face.box)
        x0, y0, x1, y1 = (round(v) for v in box)
        cv2.rectangle(out, (x0, y0), (x1, y1), (255, 255, 0), 1)
        placed = backend.landmarks(_Still(picture), replace(face, box=box, landmarks=(face.landmarks * scale).astype(np.float32)))
        for x, y in placed.landmarks.round().astype(int).tolist() if placed is not None else ():
            cv2.circle(out, (x, y), 1, (0, 255, 0), -1)
    return out


def _write(target: Path, picture: np.ndarray) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        ok, packed = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        assert ok
        target.write_bytes(packed.tobytes())
    except OSError as e:
        raise OutputError(f"cannot write {target}: {e.strerror or e}") from e
