"""Is it still the same person? Cosine of face embeddings, with a recogniser of your own choice; InsightFace's is built in as an option."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from latentsync.errors import InputError, LatentSyncError, WeightsError
from latentsync.face import align

FILE = "w600k_r50.onnx"  # of the buffalo_l pack
_SIDE = 112  # pixels of what ArcFace looks at
# Where ArcFace wants both eyes, the tip of the nose and the corners of the mouth.
_WANTED = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
# Where they lie in an upright crop of 210 x 280, which is aligned by brows and nose: means over 20 drawn heads, which differ by some 5 px.
_FOUND = ((63.5, 84.0), (144.7, 84.2), (106.1, 121.1), (69.4, 175.8), (138.4, 175.9))


class Embedder(Protocol):
    """What tells faces apart."""

    name: str

    def embed(self, face: np.ndarray) -> np.ndarray:
        """An aligned face (R, R, 3) uint8 RGB -> its vector (d,), of any length."""
        ...


class ArcFace:
    """InsightFace's recogniser w600k_r50. The package is MIT, the model for non-commercial research only; nothing here fetches it."""

    name = "insightface"

    def __init__(self, file: Path) -> None:
        """LatentSyncError without the package, WeightsError without the file."""
        try:
            from insightface.model_zoo import get_model  # type: ignore[import-not-found, unused-ignore]
        except ImportError as e:
            raise LatentSyncError(
                f"identity needs the package insightface, which cannot be imported ({e}); `pip install 'latentsync[insightface]'` mends it (its "
                "models are for non-commercial research only), or leave identity out"
            ) from e
        if not file.is_file():
            raise WeightsError(f"InsightFace's recogniser {file} is missing; take it from the buffalo_l pack (non-commercial research only)")
        self._model: Any = get_model(str(file), providers=["CPUExecutionProvider"])
        if self._model is None or not hasattr(self._model, "get_feat"):
            raise WeightsError(f"{file} is not an InsightFace recogniser; take {FILE} of the buffalo_l pack")
        self._model.prepare(-1)

    def embed(self, face: np.ndarray) -> np.ndarray:
        """(R, R, 3) uint8 RGB -> (512,)"""
        return np.asarray(self._model.get_feat(np.ascontiguousarray(portrait(face)[..., ::-1])), np.float64).ravel()


@lru_cache(maxsize=1)
def load_identity(folder: str | Path | None = None) -> Embedder:
    """InsightFace's recogniser from a folder, by default where that package keeps the buffalo_l pack; kept for the next call."""
    return ArcFace((Path(folder).expanduser() if folder is not None else Path.home() / ".insightface" / "models" / "buffalo_l") / FILE)


def portrait(face: np.ndarray) -> np.ndarray:
    """An aligned face (R, R, 3) -> (112, 112, 3) as ArcFace was trained on: not squeezed, and less close.

    Nearly so: its five points are taken for those of a mean face. Both faces of a comparison go the same way.
    """
    width, height = align.crop_size(256)
    upright = cv2.resize(face, (width, height), interpolation=cv2.INTER_AREA)
    matrix = _portrait_matrix()
    return cv2.warpAffine(upright, matrix, (_SIDE, _SIDE), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=1)
def _portrait_matrix() -> np.ndarray:
    """(2, 3) scale and shift, without a turn, of least squares."""
    found, wanted = np.array(_FOUND), np.array(_WANTED)
    a, b = found - found.mean(axis=0), wanted - wanted.mean(axis=0)
    scale = float((a * b).sum() / (a * a).sum())
    shift = wanted.mean(axis=0) - scale * found.mean(axis=0)
    return np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors, -1 to 1; 0 where one of them is zero."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else 0.0


def identity(embedder: Embedder, made: Iterable[np.ndarray], true: Iterable[np.ndarray]) -> float:
    """Aligned faces and the true ones, pair by pair -> mean cosine of their embeddings, 1 for equal ones. InputError without any."""
    found = [cosine(embedder.embed(a), embedder.embed(b)) for a, b in zip(made, true, strict=False)]
    if not found:
        raise InputError("there is no face whose identity could be compared")
    return float(np.mean(found))
