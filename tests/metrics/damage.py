"""What goes wrong with lip sync, planted into faces (n, R, R, 3) uint8: each damage in a dose, all of it inside the mask unless said."""

import cv2
import numpy as np

from latentsync.metrics.regions import generated


def pasted(faces: np.ndarray, new: np.ndarray, hard: bool = False) -> np.ndarray:
    """Other faces, in the generated part only, with a soft rim inside it."""
    inside = generated(faces.shape[1]).astype(np.float64)
    if not hard:
        inside = np.clip((cv2.GaussianBlur(inside, (0, 0), 0.02 * faces.shape[1]) - 0.5) / 0.48, 0, 1)
    mixed = faces + (np.asarray(new, np.float64) - faces) * inside[..., None]
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def blurred(faces: np.ndarray, dose: float) -> np.ndarray:
    """A soft mouth: blurred by so many pixels."""
    return pasted(faces, np.stack([cv2.GaussianBlur(f, (0, 0), dose) for f in faces])) if dose else faces


def flickering(faces: np.ndarray, dose: float) -> np.ndarray:
    """Brighter and darker by so many levels, from frame to frame."""
    return pasted(faces, faces + dose * (-1.0) ** np.arange(len(faces))[:, None, None, None]) if dose else faces


def frozen(faces: np.ndarray, dose: float = 1.0) -> np.ndarray:
    """A mouth that stays as it is in the first frame; half of the dose: that shows half."""
    return pasted(faces, faces + dose * (faces[:1].astype(np.float64) - faces)) if dose else faces


def seamed(faces: np.ndarray, dose: float) -> np.ndarray:
    """A mask that shows: so many levels brighter inside."""
    return pasted(faces, faces + dose, hard=True) if dose else faces


def moved(face: np.ndarray, x: float, y: float) -> np.ndarray:
    """One picture, moved by a part of a pixel."""
    matrix = np.array([[1.0, 0.0, x], [0.0, 1.0, y]])
    return cv2.warpAffine(face.astype(np.float32), matrix, face.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


def off(faces: np.ndarray, dose: float) -> np.ndarray:
    """Pasted so many pixels to the right."""
    return pasted(faces, np.stack([moved(f, dose, 0) for f in faces])) if dose else faces


def trembling(faces: np.ndarray, dose: float) -> np.ndarray:
    """Pasted so many pixels off, another way in every frame."""
    ways = np.random.default_rng(5).normal(0, 1, (len(faces), 2)) * dose
    return pasted(faces, np.stack([moved(f, *way) for f, way in zip(faces, ways, strict=True)])) if dose else faces
