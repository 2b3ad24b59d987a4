"""Frechet distances of what networks see in two sets of pictures (FID, Heusel et al. 2017) or of clips (FVD, Unterthiner et al. 2018).

FID: features of the Inception-v3 of the original FID code, as ported by pytorch-fid. FVD: features of the I3D of the original FVD code, 16 frames at
a time, as LatentSync's authors computed it. Both sets are taken for Gaussians; the distance is |ma - mb|^2 + tr(A + B - 2 (AB)^(1/2)).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from latentsync.errors import UsageError, WeightsError
from latentsync.models.inception import InceptionV3
from latentsync.models.load import load_state

Kind = Literal["fid", "fvd"]
CLIP = 16  # frames of a clip for FVD
WIDTH: dict[Kind, int] = {"fid": 2048, "fvd": 400}  # of the features
# Below as many samples as a feature has numbers the covariance is singular, and the distance mostly says how few they are.
LEAST: dict[Kind, int] = {"fid": 2048, "fvd": 400}
_WHAT: dict[Kind, str] = {"fid": "faces", "fvd": "clips of 16 frames"}


class Gaussian:
    """Mean and covariance of features that come in batches: float64, without keeping the features."""

    def __init__(self) -> None:
        self.n = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))  # sum of (x - mean)(x - mean)^T

    def add(self, features: np.ndarray | Tensor) -> None:
        """(n, d) more of them. UsageError where d is another than before."""
        x = np.asarray(features.double().cpu() if isinstance(features, Tensor) else features, np.float64)
        if x.ndim != 2:
            raise UsageError(f"features come as (n, d), found an array of shape {x.shape}")
        if len(x):
            mean = x.mean(axis=0)
            self._join(len(x), mean, (x - mean).T @ (x - mean))

    def merge(self, other: Gaussian) -> None:
        """Those that another one has seen, too."""
        if other.n:
            self._join(other.n, other._mean, other._scatter)

    def _join(self, n: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Chan, Golub and LeVeque 1979: means and scatters of two parts -> of both together."""
        if self.n and len(mean) != len(self._mean):
            raise UsageError(f"features of one width belong together, these have {len(self._mean)} and {len(mean)} numbers")
        if not self.n:
            self.n, self._mean, self._scatter = n, mean.copy(), scatter.copy()
            return
        apart, total = mean - self._mean, self.n + n
        self._scatter = self._scatter + scatter + np.outer(apart, apart) * (self.n * n / total)
        self._mean = self._mean + apart * (n / total)
        self.n = total

    @property
    def mean(self) -> np.ndarray:
        """(d,)"""
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """(d, d), unbiased. UsageError for fewer than two samples."""
        if self.n < 2:
            raise UsageError(f"a covariance needs two samples at least, there are {self.n}")
        return self._scatter / (self.n - 1)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance of two Gaussians, 0 for equal ones. UsageError for fewer than two samples, or for features of other widths.

    The trace of (AB)^(1/2) is the sum of the singular values of R^T S where A = R R^T and B = S S^T, from the eigenvectors of each: real for
    singular covariances too (few samples), where the square root of the product itself loses half of its digits or has none. See `too_few`.
    """
    if len(a.mean) != len(b.mean):
        raise UsageError(f"features of one width can be compared, these have {len(a.mean)} and {len(b.mean)} numbers")
    ca, cb = a.covariance, b.covariance
    apart = a.mean - b.mean
    cross = np.linalg.svd(_root(ca).T @ _root(cb), compute_uv=False).sum()
    return max(0.0, float(apart @ apart + np.trace(ca) + np.trace(cb) - 2 * cross))


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with R R^T = covariance; what rounding made negative counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    root: np.ndarray = vectors * np.sqrt(np.clip(values, 0, None))
    return root


def too_few(n: int, kind: Kind) -> str:
    """What to say of a distance between sets of which the smaller has n samples; empty where they are enough.

    The distance of finite sets lies above that of what they are drawn from, the more so the fewer they are. Compare numbers of equal n only.
    """
    if n >= LEAST[kind]:
        return ""
    return (
        f"{kind.upper()} from {n} {_WHAT[kind]}: fewer than {LEAST[kind]}, the width of its features, so it is mostly a measure of how few they are; "
        "compare it only with one from equally many, and give more"
    )


# Inception


@lru_cache(maxsize=1)
def load_inception(home: str | Path | None = None, path: str | Path = "", device: str | torch.device = "cpu") -> InceptionV3:
    """FID's Inception-v3 with its published weights, or those at `path`, kept for the next call. Raises WeightsError that names what to run."""
    from latentsync import weights

    state = weights.judge_state("inception", home, path)
    with torch.device("meta"):
        net = InceptionV3()
    return load_state(net, state, "Inception-v3").float().to(device).eval().requires_grad_(False)


@torch.inference_mode()
def inception_features(net: nn.Module, pictures: Iterable[np.ndarray], at_once: int = 16) -> np.ndarray:
    """Pictures (h, w, 3) uint8 RGB of one size -> (n, 2048) float32, which `Gaussian.add` takes."""
    device = next(net.parameters()).device
    found: list[np.ndarray] = []
    held: list[np.ndarray] = []

    def look() -> None:
        batch = torch.from_numpy(np.stack(held)).to(device).permute(0, 3, 1, 2).float() / 255
        found.append(net(batch).float().cpu().numpy())
        held.clear()

    for picture in pictures:
        held.append(picture)
        if len(held) == at_once:
            look()
    if held:
        look()
    return np.concatenate(found) if found else np.zeros((0, WIDTH["fid"]), np.float32)


# I3D


@lru_cache(maxsize=1)
def load_i3d(home: str | Path | None = None, path: str | Path = "", device: str | torch.device = "cpu") -> nn.Module:
    """FVD's I3D as it is published, a TorchScript archive, kept for the next call.

    Such an archive brings its own program, so only the file of the known sha256 is opened. Raises WeightsError for any other, and one that names
    what to run where it is not here.
    """
    from latentsync import weights

    file = weights.judge_file("i3d", home, path, checked=True)
    try:
        net: nn.Module = torch.jit.load(str(file), map_location=device)
    except (RuntimeError, ValueError, OSError) as e:
        raise WeightsError(f"{file} cannot be opened as a TorchScript archive ({str(e).strip().splitlines()[0][:200]}); fetch it again") from e
    return net.eval()


@torch.inference_mode()
def i3d_features(net: nn.Module, clips: Iterable[np.ndarray]) -> np.ndarray:
    """Clips (16, h, w, 3) uint8 RGB -> (n, 400) float32: I3D's numbers for the 400 kinds of action, before the softmax.

    As the original: each frame scaled to 224 x 224 (bilinear), values to [-1, 1]; both are done by the network.
    """
    found = []
    for clip in clips:
        if clip.ndim != 4 or len(clip) != CLIP:
            raise UsageError(f"FVD looks at clips of {CLIP} frames, this has {len(clip)}")
        batch = torch.from_numpy(np.ascontiguousarray(clip)).permute(3, 0, 1, 2)[None].float()
        device = next(iter(net.parameters()), batch).device
        found.append(net(batch.to(device), rescale=True, resize=True, return_features=True).float().cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, WIDTH["fvd"]), np.float32)


def windows16(crops: Iterable[np.ndarray], side: int = 0) -> Iterator[np.ndarray]:
    """Consecutive frames (h, w, 3) -> clips (16, h, w, 3), one behind the other without overlap; a rest of fewer is left out.

    side: scale each to side x side first, so that clips of other sizes go together.
    """
    held: list[np.ndarray] = []
    for crop in crops:
        if side and crop.shape[:2] != (side, side):
            crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA if crop.shape[0] > side else cv2.INTER_CUBIC)
        held.append(crop)
        if len(held) == CLIP:
            yield np.stack(held)
            held.clear()
