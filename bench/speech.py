"""What hearing costs: CPU time per minute of sound, memory against length, and how smooth the joins of blocks are.

The encoder has Whisper tiny's full size with random weights (the same work as the trained one). The sound is generated.

    python bench/speech.py [--hours 2] [--threads 1] [-o bench/results/speech.md]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import torch
import transformers

from latentsync.config import WhisperConfig
from latentsync.speech.mel import log_mel, normalise
from latentsync.speech.track import SPEECH_RATE, SpeechTrack
from latentsync.speech.whisper import SpeechEncoder

RATE = 16000
FPS = 25
WINDOW = 16  # frames asked for at once, as the network's windows do


def sound(seconds: int) -> Callable[[], Iterator[np.ndarray]]:
    """Speech-like noise of that length, made second by second while it is read, the same at every reading."""

    def read() -> Iterator[np.ndarray]:
        t = np.arange(RATE) / RATE
        for second in range(seconds):
            hiss = np.random.default_rng(second).standard_normal(RATE, np.float32)
            loudness = np.maximum(0, np.sin(2 * np.pi * 3.1 * (t + second)) + np.sin(2 * np.pi * 0.37 * (t + second))) / 4
            yield hiss * loudness.astype(np.float32)

    return read


def full_size() -> SpeechEncoder:
    """Whisper tiny's encoder; weights of unit gain, so that differences of the sound reach every layer."""
    torch.manual_seed(0)
    encoder = SpeechEncoder(WhisperConfig())
    for name, weight in encoder.named_parameters():
        if weight.dim() > 1 and "embed_positions" not in name:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return encoder


def cost(minutes: int = 3) -> list[str]:
    """CPU-seconds per minute of sound, in parts."""
    encoder = full_size()
    samples = sound(60 * minutes)
    start = time.process_time()
    for _ in samples():
        pass
    made = time.process_time() - start
    start = time.process_time()
    track = SpeechTrack(samples, encoder)
    survey = time.process_time() - start - made
    start = time.process_time()
    frames = 60 * minutes * FPS
    for first in range(0, frames, WINDOW):
        track.contexts([Fraction(i, FPS) for i in range(first, min(first + WINDOW, frames))])
    contexts = time.process_time() - start - made
    start = time.process_time()
    for _ in range(3):
        encoder.features(torch.zeros(80, 3000))
    block = (time.process_time() - start) / 3
    return [
        "| part | CPU-seconds per minute of sound |",
        "| --- | --- |",
        f"| first pass: length and loudest value | {survey / minutes:.2f} |",
        f"| second pass: mel, encoder, contexts at {FPS} fps | {contexts / minutes:.2f} |",
        f"| together | {(survey + contexts) / minutes:.2f} |",
        f"| (one 30 s block through the encoder; 3.2 blocks a minute | {block:.2f} each) |",
    ]


def memory(hours: float) -> list[str]:
    """Resident memory while reading through a long sound, one window in every 10 s (each block is computed)."""
    seconds = round(hours * 3600)
    process = psutil.Process()
    encoder = full_size()
    track = SpeechTrack(sound(seconds), encoder)
    rows = ["| read so far | resident memory, most so far |", "| --- | --- |"]
    most = 0.0
    marks = sorted({60, 300, 600, seconds // 4, seconds // 2, seconds})
    for second in range(0, seconds, 10):
        track.contexts([Fraction(second * FPS + i, FPS) for i in range(WINDOW)])
        most = max(most, process.memory_info().rss / 2**20)
        if second + 10 >= marks[0]:
            rows.append(f"| {marks.pop(0) / 60:g} min | {most:.0f} MiB |")
    return rows


def joins() -> list[str]:
    """Around 30 s and elsewhere: distance to a block centred on the position, and the step from one position to the next."""
    encoder = full_size()
    seconds = 75
    samples = sound(seconds)
    log_power = torch.cat(list(log_mel(samples())))
    mel = normalise(log_power, float(log_power.max())).T
    cut = encoder.config.positions
    probes = [*range(950, 2700, 50), *range(cut - 10, cut + 11, 2)]
    near = torch.tensor([abs(p - cut) <= 50 for p in probes])
    rows = [
        "| blocks | distance to a centred block, 29-31 s (mean, max) | elsewhere (mean, max) | largest step at a join | largest step elsewhere |",
        "| --- | --- | --- | --- | --- |",
    ]
    tables = encoder.encoder.embed_positions.weight
    positions = tables.clone()
    for name, overlap_s, starts in (("published, independent", 0.0, [1500, 3000]), ("overlapping, fading", 5.0, [1200, 2150])):
        track = SpeechTrack(samples, encoder, overlap_s=overlap_s)
        contexts = torch.cat([track.contexts([Fraction(p, SPEECH_RATE)]) for p in range(track.positions)])
        step = contexts.unflatten(1, (10, -1))[:, 4].diff(dim=0).square().mean((1, 2)).sqrt()
        scale = step.median()
        at_join = torch.zeros(len(step), dtype=torch.bool)
        for start in starts:
            at_join[start - 1 : start + 50] = True
        tables.zero_()  # a row of the position table differs between any two blocks; without it, what each block hears is compared
        deaf = SpeechTrack(samples, encoder, overlap_s=overlap_s)
        found = torch.stack([deaf.context(Fraction(p, SPEECH_RATE)).unflatten(0, (10, -1))[4] for p in probes])
        centred = torch.stack([encoder.features(mel[:, 2 * p - cut : 2 * p + cut])[cut // 2] for p in probes])
        tables.copy_(positions)
        distance = (found - centred).square().mean((1, 2)).sqrt() / centred.square().mean().sqrt()
        rows.append(
            f"| {name} | {distance[near].mean():.3f}, {distance[near].max():.3f} | {distance[~near].mean():.3f}, {distance[~near].max():.3f} "
            f"| {step[at_join].max() / scale:.2f} | {step[~at_join].max() / scale:.2f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="length of the sound whose reading is watched (0 leaves this out)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "speech.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    held = memory(options.hours) if options.hours else []  # first, while the process holds nothing else that could hide a growth
    lines = [
        "# Speech",
        "",
        f"Whisper tiny's encoder at full size, random weights, float32, {options.threads} thread(s) of {os.cpu_count()} on {platform.machine()}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}. Written by `bench/speech.py`.",
        "",
        "## Cost",
        "",
        *cost(),
        "",
        "## Joins of blocks",
        "",
        "Root mean square over layers and channels. Distances are relative to the size of the features, with the position table at zero; "
        "steps from one 50 Hz position to the next are in units of the median step, with the position table.",
        "",
        *joins(),
        "",
    ]
    if held:
        lines += ["## Memory", "", f"A generated sound of {options.hours:g} h, read from start to end.", "", *held, ""]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
