"""Trained networks -> the files that ship in the package.

    python -m tools.ship OUT [unet=RUN[,RUN]] [vae=RUN] [whisper=RUN] [tracker=RUN] [syncnet=RUN]

Each RUN is a folder of `latentsync train` (its last checkpoint is taken) or a checkpoint's. Its averaged weights are taken where it has them
(run.ema). Of several RUNs the mean is taken, each counting alike (Wortsman et al., arXiv 2203.05482): of one that goes on from another, say.
Written are OUT/ROLE.safetensors, in half precision, and the description that belongs to each (the last run's); what is not named stays as it is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from latentsync import config as configs
from latentsync.errors import LatentSyncError, UsageError
from latentsync.models.load import read_state
from latentsync.train import checkpoint
from latentsync.train.export import AVERAGED
from latentsync.weights.convert import save
from latentsync.weights.shipped import DESCRIPTIONS, FILES, NAME

LIMIT = 60_000_000  # bytes, all files together


def ship(role: str, runs: Sequence[Path], out: Path) -> Path:
    """Write one network, the mean of the runs' (one or more); returns its file. Raises UsageError, WeightsError, OutputError."""
    if role not in FILES:
        raise UsageError(f"'{role}' is not shipped; roles are {', '.join(FILES)}")
    folders = [checkpoint.find(run) for run in runs]
    sources = [folder / AVERAGED if (folder / AVERAGED).is_dir() else folder for folder in folders]
    step, source = checkpoint.step_of(folders[-1]), sources[-1]
    file = FILES[role]
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in mean([s / file for s in sources]).items()}
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UsageError(f"{source}: '{broken[0]}' does not fit half precision, or is not finite")
    target = out / file
    save(state, target, {"format": "pt", "latentsync.role": role, "latentsync.global_step": str(step)})
    if role == "unet":
        config = replace(configs.load(source / DESCRIPTIONS[role]), name=NAME, summary=configs.preset(NAME).summary)
        (out / DESCRIPTIONS[role]).write_text(configs.dump(config), encoding="utf-8")
    elif role in DESCRIPTIONS:
        shutil.copyfile(source / DESCRIPTIONS[role], out / DESCRIPTIONS[role])
    return target


def mean(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of the last file, those of floating point averaged over all files. UsageError where shapes differ."""
    states = [read_state(file) for file in files]
    last = states[-1]
    for file, state in zip(files, states, strict=True):
        if {name: tensor.shape for name, tensor in state.items()} != {name: tensor.shape for name, tensor in last.items()}:
            raise UsageError(f"{file} and {files[-1]} are not of one shape, so they have no mean; give runs of the same model")
    return {n: torch.stack([s[n].float() for s in states]).mean(0) if t.is_floating_point() else t for n, t in last.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.ship", description="Trained networks -> the files that ship in the package.")
    parser.add_argument("out", type=Path, help="folder of the package's model")
    parser.add_argument("networks", nargs="+", metavar="ROLE=RUN[,RUN]", help=f"roles are {', '.join(FILES)}")
    given = parser.parse_args(arguments)
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        for text in given.networks:
            role, _, run = text.partition("=")
            file = ship(role, [Path(one) for one in run.split(",")], given.out)
            print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    except LatentSyncError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    total = sum(f.stat().st_size for f in given.out.glob("*.safetensors"))
    print(f"{total / 1e6:.1f} MB in all")
    if total > LIMIT:
        print(f"error: more than the {LIMIT / 1e6:.0f} MB that may ship", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
