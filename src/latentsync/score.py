"""How well lips follow their sound, judged by a SyncNet: for previews of training, and for what the demo says of itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentsync import config as configs
from latentsync.config import SyncNetConfig
from latentsync.models.load import load_state, read_state
from latentsync.models.syncnet import SyncNet, visual_input
from latentsync.speech.sync_mel import mel_start
from latentsync.weights import shipped

LAGS = range(-10, 11)  # frames that the sound is shifted: 0.4 s each way, twice what viewers notice
SCORED_AT_ONCE = 8  # windows through SyncNet together


class SyncScore(NamedTuple):
    """How well lips follow the sound, as SyncNet hears and sees it."""

    cosine: float  # mean over the windows, the sound unshifted
    confidence: float  # how far the best shift stands out: its cosine minus the median over all shifts
    offset: int  # that shift, in frames; positive: the sound comes late


@torch.no_grad()
def sync_score(net: SyncNet, config: SyncNetConfig, frames: Tensor, mel: Tensor, fps: int = 25) -> SyncScore | None:
    """Frames (n, 3, h, w) in [-1, 1] and their mel (80, t) -> scores over all windows; None where n is less than one window.

    Each window is compared with the sound at shifts of -10 to 10 frames, as far as the sound reaches; the scheme is that of
    Chung and Zisserman 2016 (Out of time), with cosines instead of distances. For networks that see pixels, not latents.
    """
    cosines = agreement(net, config, frames, mel, fps)
    if cosines is None:
        return None
    by_lag = {lag: cosines.diagonal(lag).mean().item() for lag in LAGS if abs(lag) < len(cosines)}
    best = max(by_lag, key=lambda lag: by_lag[lag])
    return SyncScore(by_lag[0], by_lag[best] - float(np.median(list(by_lag.values()))), best)


@torch.no_grad()
def agreement(net: SyncNet, config: SyncNetConfig, frames: Tensor, mel: Tensor, fps: int = 25) -> Tensor | None:
    """Frames (n, 3, h, w) in [-1, 1] and their mel (80, t) -> (w, w) cosines of each window of frames with each window of sound, float32.

    A window begins at each frame, as far as both reach; None where they do not reach for one.
    """
    starts = range(frames.shape[0] - config.frames + 1)
    if not starts:
        return None
    device = next(net.parameters()).device
    columns = config.mel_columns
    vision, audio = [], []
    places = [mel_start(i, fps) for i in starts]
    inside = [k for k in range(len(places)) if places[k] + columns <= mel.shape[1]]
    if not inside:
        return None
    for i in range(0, len(inside), SCORED_AT_ONCE):
        some = inside[i : i + SCORED_AT_ONCE]
        seen = torch.stack([frames[k : k + config.frames] for k in some])
        heard = torch.stack([mel[None, :, places[k] : places[k] + columns] for k in some])
        v, a = net(visual_input(seen.to(device), config), heard.to(device))
        vision.append(v.float().cpu())
        audio.append(a.float().cpu())
    with torch.autocast("cpu", enabled=False):  # whoever calls may compute in bf16; cosines this close together need more
        return torch.cat(vision) @ torch.cat(audio).T


def load_judge() -> tuple[SyncNetConfig, SyncNet]:
    """The shipped SyncNet, float32 on the CPU. Raises WeightsError where it is not there."""
    path = shipped.file(shipped.JUDGE)
    if path is None:
        raise shipped.absent([shipped.JUDGE])
    description = path.with_name(shipped.DESCRIPTIONS[shipped.JUDGE])
    config = configs.parse_as(SyncNetConfig, description.read_text(encoding="utf-8"), str(description))
    with torch.device("meta"):
        net = SyncNet(config)
    return config, load_state(net, read_state(path), "the shipped SyncNet").float().eval()
