"""Peak memory and seconds of a training step on a GPU: every preset at full size, random weights, batches that are made up.

    bash bench/gpu.sh training [--out bench/results/training_gpu.md] [--minutes 9]

The step is the loop's own, in the GPU's precision: batch, forward, backward, clipping, AdamW; reading clips is not in it. Eager and compiled, with
and without gradient checkpointing, then larger batches; each in a process of its own, since an allocator remembers. What does not fit in the
minutes or in the memory is named. `--device cpu --tiny` tries the script itself without a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from networks import random_weights
from torch import nn
from training_task import UNETS, settings, stepper, task

from latentsync.device import choose, peak_memory
from latentsync.train import presets

COMPUTED = Path(__file__).parent / "results" / "training.json"
SYNCNETS = [name for name in presets("syncnet") if name != "tiny"]
GB = 1e9


class Case(NamedTuple):
    """What is measured in one process."""

    preset: str
    batch: int
    checkpointing: bool
    compile: bool


def plan(tiny: bool) -> list[Case]:
    """The cases, those first that say most."""
    first = [Case(name, 1, True, False) for name in UNETS]
    plain = [Case(name, 1, False, False) for name in UNETS]
    compiled = [Case(name, 1, checkpointing, True) for checkpointing in (True, False) for name in UNETS]
    larger = [Case(name, 4, True, False) for name in UNETS]
    judges = [
        Case(name, 4 if tiny else cast(Any, settings(name)).run.batch, checkpointing, False) for checkpointing in (True, False) for name in SYNCNETS
    ]
    return [*first, *plain, *judges[: len(SYNCNETS)], *larger, *compiled, *judges[len(SYNCNETS) :]]


def measure(case: Case, device: str, tiny: bool) -> dict[str, Any]:
    """Seconds of the first and of later steps, and the most memory that was held."""
    compute = choose(device)
    config = settings(
        case.preset, device=device, dtype=compute.dtype_name, batch=case.batch, gradient_checkpointing=case.checkpointing, compile=case.compile
    )
    on_gpu = compute.device.type == "cuda"

    def make(build: Callable[[], nn.Module], frozen: bool) -> nn.Module:
        with torch.device("meta"):
            network = build()
        # what is trained comes from the CPU, as in a run, where it is read from a file
        return random_weights(network, compute.dtype if frozen else torch.float32, str(compute.device) if frozen else "cpu")

    def step() -> float:
        begin = time.perf_counter()
        loop._step()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    with stepper(task(config, make, "tiny" if tiny else "full"), config) as loop:
        first = step()
        step()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        times = [step() for _ in range(2 if tiny else 5)]
        skipped = loop.meter._skipped
        frames = case.batch * loop.task.frames
    best = sorted(times)[len(times) // 2]
    found = {"first": first, "seconds": best, "frames": frames / best, "allocated": peak_memory(compute.device) / GB, "skipped": skipped}
    if on_gpu:
        found["reserved"] = torch.cuda.max_memory_reserved() / GB
    return found


def report(rows: list[tuple[Case, dict[str, Any]]], left_out: list[str], about: str) -> str:
    """The page."""
    computed = json.loads(COMPUTED.read_text(encoding="utf-8"))["results"].get("memory", {}) if COMPUTED.is_file() else {}
    text = [
        "# Training on a GPU",
        "",
        f"`bash bench/gpu.sh training`, random weights, without reading clips. {about}. GB are 10^9 bytes; 'held' is what tensors took at most,",
        "'reserved' what PyTorch took from the driver for it. Computed: by `bench/training.py`, without a GPU. Seconds: the median step; first: of",
        "the first step, compilation included.",
        "",
        "| preset | batch | checkpointing | mode | held, GB | computed | reserved | published need | s per step | frames a second | first, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, found in rows:
        variant = computed.get(f"{case.preset}: {'as it is' if case.checkpointing else 'no gradient checkpointing'}", {})
        known = f"{variant['peak']:.1f}" if variant.get("batch") == case.batch and not case.compile else ""
        need = UNETS.get(case.preset, "") if case.batch == 1 else ""
        reserved = f"{found['reserved']:.1f}" if "reserved" in found else ""
        broken = f" ({found['skipped']} steps without a finite gradient)" if found["skipped"] else ""
        text.append(
            f"| {case.preset} | {case.batch} | {'on' if case.checkpointing else 'off'} | {'compiled' if case.compile else 'eager'}{broken} "
            f"| {found['allocated']:.1f} | {known} | {reserved} | {need} | {found['seconds']:.3f} | {found['frames']:.1f} | {found['first']:.1f} |"
        )
    if left_out:
        text += ["", f"Left out: {'; '.join(left_out)}."]
    return "\n".join([*text, ""])


def main() -> None:
    """Measure, then write the page and the numbers; both after every case, so that nothing is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/training_gpu.md"))
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="very small networks, to try this script")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        print(json.dumps(measure(Case(*json.loads(chosen.case)), chosen.device, chosen.tiny)))
        return
    deadline = time.monotonic() + 60 * chosen.minutes
    about = f"{choose(chosen.device).reason}; PyTorch {torch.__version__}"
    rows: list[tuple[Case, dict[str, Any]]] = []
    left_out: list[str] = []
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for case in plan(chosen.tiny):
        name = f"{case.preset}, batch {case.batch}{', compiled' * case.compile}{'' if case.checkpointing else ', no checkpointing'}"
        left = deadline - time.monotonic()
        if left < 20:
            left_out.append(f"{name} (no time)")
        else:
            command = [sys.executable, __file__, "--device", chosen.device, "--case", json.dumps(case), *["--tiny"] * chosen.tiny]
            try:
                done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=left)
            except subprocess.TimeoutExpired:
                left_out.append(f"{name} (no time)")
                continue
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                left_out.append(f"{name} ({'out of memory' if 'OutOfMemoryError' in done.stderr else last})")
            else:
                rows.append((case, json.loads(done.stdout.splitlines()[-1])))
            print(name, rows[-1][1] if not done.returncode else left_out[-1], flush=True)
        numbers = {"about": about, "rows": [case._asdict() | found for case, found in rows], "left_out": left_out}
        chosen.out.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        chosen.out.write_text(report(rows, left_out, about), encoding="utf-8")


if __name__ == "__main__":
    main()
