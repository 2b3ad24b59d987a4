"""Lip sync: a video and a soundtrack in, the same video speaking that soundtrack out.

from latentsync import LipSync
LipSync.load("1.6").sync("speaker.mp4", "speech.wav", "out.mp4")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentsync.errors import DeviceError, InputError, LatentSyncError, NoFaceError, OutputError, UsageError, WeightsError
from latentsync.options import Options

if TYPE_CHECKING:
    from latentsync.pipeline import LipSync, Progress, Result

__version__ = "0.1.0.dev0"

__all__ = [
    "DeviceError",
    "InputError",
    "LatentSyncError",
    "LipSync",
    "NoFaceError",
    "Options",
    "OutputError",
    "Progress",
    "Result",
    "UsageError",
    "WeightsError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """The pipeline brings torch along, so it is imported when it is first asked for."""
    if name in ("LipSync", "Progress", "Result"):
        from latentsync import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'latentsync' has no attribute '{name}'")
