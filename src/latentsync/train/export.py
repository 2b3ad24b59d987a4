"""A checkpoint's network as one file: in the form of the published files, or as safetensors with the notes of ours."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from torch import Tensor

from latentsync import weights
from latentsync.errors import OutputError, UsageError
from latentsync.models.load import read_state
from latentsync.train import checkpoint as checkpoints
from latentsync.weights.convert import notes, save

AVERAGED = "ema"  # folder of a checkpoint with the averaged network, written like the checkpoint itself
SYNCNET = "syncnet.safetensors"


def export(checkpoint: Path, out: Path, *, ema: bool = False, home: str | Path | None = None) -> Path:
    """Write the network of a checkpoint to `out`; returns `out`.

    checkpoint: its folder, or that of a run, which means its last one. out: a .pt becomes {"global_step": int, "state_dict": tensors by the
    published names}, what the published project reads; a .safetensors also says which model it belongs to. Adapters are merged. ema: the averaged
    network. home: where the base of an adapter is looked for. Appears whole or not at all. Raises UsageError, WeightsError, OutputError.
    """
    if out.suffix not in (".pt", ".safetensors"):
        raise UsageError(f"{out} should end in .pt (as the published project reads it) or .safetensors")
    if out.exists():
        raise OutputError(f"{out} exists; name another file")
    folder = checkpoints.find(checkpoint)
    source = folder / AVERAGED if ema else folder
    if not source.is_dir():
        raise UsageError(f"{folder} has no averaged network: it was trained with run.ema=0; export without --ema")
    step = checkpoints.step_of(folder)
    state, header = _network(source, step, home)
    if out.suffix == ".safetensors":
        save(state, out, header)
    else:
        _published(state, step, out)
    return out


def _network(folder: Path, step: int, home: str | Path | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and the notes that go with them."""
    if (folder / SYNCNET).is_file():
        return read_state(folder / SYNCNET), {"format": "pt", "latentsync.role": "syncnet", "latentsync.global_step": str(step)}
    files = weights.resolve(folder, home=home, need=("unet",))
    return files.state("unet"), notes(files.config, "unet", global_step=str(step))


def _published(state: dict[str, Tensor], step: int, out: Path) -> None:
    scratch = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save_tensors(scratch, {"global_step": step, "state_dict": state})
        os.replace(scratch, out)
    except OSError as e:
        raise OutputError(f"cannot write {out}: {e.strerror or e}") from e
    finally:
        scratch.unlink(missing_ok=True)
