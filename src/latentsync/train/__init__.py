"""Clips -> weights: training of the U-Net, of SyncNet, and of the small networks of the model that ships.

from latentsync import train
config, notes = train.load("unet", "stage2", ["data.train=clips", "run.out=runs/first", "start=1.5"])
outcome = train.run(config)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentsync.train.config import AutoencoderTrain, SpeechTrain, SyncNetTrain, TrackerTrain, Train, UNetTrain, dump, load, presets, require

if TYPE_CHECKING:
    from latentsync.train.loop import Outcome, Say, Show, Task

__all__ = ["AutoencoderTrain", "SpeechTrain", "SyncNetTrain", "TrackerTrain", "UNetTrain", "dump", "load", "presets", "run"]


def run(config: Train, *, notes: Sequence[str] = (), home: str | Path | None = None, say: Say | None = None, show: Show | None = None) -> Outcome:
    """Train what the configuration says, from where the run in its folder stands.

    `say` hears words for people, first the `notes`; `show` (steps done, steps in all, values of the last row) is called after every step; both in
    the main process only. home: where weights are kept, as for `LipSync.load`. Raises the errors of the package.
    """
    import random

    import numpy as np
    import torch

    from latentsync.train.loop import is_main, train

    require(config)
    tell: Say = say if say is not None and is_main() else lambda _: None
    for note in notes:
        tell(f"note: {note}")
    torch.manual_seed(config.run.seed)  # what is new in the networks is drawn from it
    random.seed(config.run.seed)  # nothing here draws from these two, but if anything else does, a seed means the same run again
    np.random.seed(config.run.seed % 2**32)
    return train(_task(config, home, tell), config.run, config.optimizer, dump(config), say=say, show=show)


def _task(config: Train, home: str | Path | None, say: Say) -> Task:
    """What the configuration trains, its networks and clips at hand."""
    if isinstance(config, UNetTrain):
        from latentsync.train.unet import UNetTask

        return UNetTask(config, home=home, say=say)
    if isinstance(config, SyncNetTrain):
        from latentsync.train.syncnet import SyncNetTask

        return SyncNetTask(config, home=home, say=say)
    if isinstance(config, AutoencoderTrain):
        from latentsync.train.autoencoder import AutoencoderTask

        return AutoencoderTask(config, say=say)
    if isinstance(config, SpeechTrain):
        from latentsync.train.speech import SpeechTask

        return SpeechTask(config, say=say)
    from latentsync.train.tracker import TrackerTask

    return TrackerTask(config, say=say)
