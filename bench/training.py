# ruff: noqa: E501, RUF005 - sentences of the page that it writes
"""Training: parameters and computed memory of every preset at full size, and what can be measured of it on a CPU.

    python bench/training.py [--out bench/results/training.md] [--only parameters memory check step data]

Memory is computed, not measured: the loop's own step runs with fake tensors of full size, and every storage is counted while it lives
(`accounting.py`). `check` runs the same computation and the real thing side by side on this machine's CPU. `bench/gpu.sh` measures on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accounting import Ledger, fake, pretended
from networks import cpu_name, random_weights
from torch import Tensor, nn
from training_task import UNETS, SyncNetBench, UNetBench, settings, stepper, task

from latentsync.config import WhisperConfig
from latentsync.models.videomae import positions
from latentsync.speech.whisper import SpeechEncoder
from latentsync.train import SyncNetTrain, UNetTrain, presets
from latentsync.train.frozen import round_frozen

PARTS = ("parameters", "memory", "check", "step", "data")
GB = 1e9
ROOM = 1.1  # allocators need about a tenth more than what they hand out
SYNCNETS = [name for name in presets("syncnet") if name != "tiny"]
LORA = ("lora.rank=16", "run.batch=1")
# What an engineer may be tempted to change, and what it costs.
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "AdamW as PyTorch chooses it on a GPU": {"foreach": True},
    "frozen weights of the U-Net in float32": {"exact": True},
    "no gradient checkpointing": {"checkpointing": False},
}
# name -> preset, size, dtype, checkpointing, steps of which the last is looked at
CHECKS = {
    "stage 1, a fifth of the width, fp32": ("stage1", "mid", "fp32", True, 2),
    "stage 2, a fifth of the width, fp32": ("stage2", "mid", "fp32", True, 2),
    "stage 2, a fifth of the width, bf16": ("stage2", "mid", "bf16", True, 2),
    "stage 2, a fifth of the width, bf16, no checkpointing": ("stage2", "mid", "bf16", False, 2),
    "stage2_efficient, full size, bf16": ("stage2_efficient", "full", "bf16", True, 1),
}
STEPS = {
    "fp32, checkpointing": ("fp32", True),
    "fp32": ("fp32", False),
    "bf16, checkpointing": ("bf16", True),
    "bf16": ("bf16", False),
}
CLIPS, SECONDS = 8, 6


# Parameters


def on_meta(build: Callable[[], nn.Module], frozen: bool) -> nn.Module:
    """A network without weights, to be counted."""
    with torch.device("meta"):
        return build()


def parameters(name: str) -> dict[str, Any]:
    """How many of each kind."""
    preset, others = called(name)
    work = task(settings(preset, *others), on_meta)
    trained = sum(p.numel() for p in work.network.parameters() if p.requires_grad)
    frozen = {n: sum(p.numel() for p in network.parameters()) for n, network in judges(work).items()}
    return {"all": sum(p.numel() for p in work.network.parameters()), "trained": trained, "frozen": frozen}


def judges(work: UNetBench | SyncNetBench) -> dict[str, nn.Module]:
    """The networks around the one that is trained."""
    names = ("vae", "syncnet", "lpips", "videomae") if isinstance(work, UNetBench) else ("vae",)
    return {name: network for name in names if (network := getattr(work, name)) is not None}


def called(name: str) -> tuple[str, tuple[str, ...]]:
    """'stage2 + LoRA' -> the preset and what is changed in it."""
    preset, lora, _ = name.partition(" + LoRA")
    return preset, LORA if lora else ()


# Memory


def phases(loop: Any, ledger: Ledger) -> None:
    """Tell the ledger which part of a step is at work, and what the lasting tensors are."""
    work, network = loop.task, loop.bare

    def enter(name: str) -> None:
        ledger.phase = name

    def wrapped(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            before = ledger.phase
            enter(f"{name}, forward" if torch.is_grad_enabled() else name)
            out = call(*args, **kwargs)
            enter(before)
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: enter(f"{name}, backward"))
            return out

        return run

    network.forward = wrapped(network.forward, "SyncNet" if isinstance(work, SyncNetBench) else "U-Net")
    around = judges(work)
    for name, shown, methods in (
        ("vae", "VAE", ("encode", "decode")),
        ("syncnet", "SyncNet", ("forward",)),
        ("lpips", "LPIPS", ("forward",)),
        ("videomae", "VideoMAE", ("features",)),
    ):
        if name in around:
            for parameter in around[name].parameters():
                ledger.name(parameter, "frozen networks")
            for method in methods:
                said = {"encode": "VAE encoder", "decode": "VAE decoder"}.get(method, shown)
                setattr(around[name], method, wrapped(getattr(around[name], method), said))
    for parameter in network.parameters():
        ledger.name(parameter, "trained weights" if parameter.requires_grad else "frozen weights of the U-Net")
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: ledger.name(p.grad, "gradients"))

    def named(optimizer: Any, *_: Any) -> None:
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor) and value.dim():
                    ledger.name(value, "AdamW's state")
        enter("between steps")

    loop.optimizer.optimizer.register_step_pre_hook(lambda *_: enter("AdamW"))
    loop.optimizer.optimizer.register_step_post_hook(named)


@contextmanager
def for_each() -> Iterator[None]:
    """AdamW as PyTorch chooses it on a GPU where nothing is said: all tensors at once."""
    own = torch.optim.AdamW.__init__
    with (
        patch("torch.optim.adam._default_to_fused_or_foreach", lambda *_, **__: (False, True)),
        patch.object(torch.optim.AdamW, "__init__", lambda self, *args, **kwargs: own(self, *args, **(kwargs | {"fused": None}))),
    ):
        yield


def computed(
    config: UNetTrain | SyncNetTrain, size: str = "full", *, gpu: bool = True, steps: int = 2, foreach: bool = False, exact: bool = False
) -> Ledger:
    """The ledger of the last of so many steps, on a GPU, or as this CPU does it; the first one has no optimizer's state to begin with."""
    kept = torch.float32 if config.run.dtype == "fp32" else torch.bfloat16
    with pretended(gpu) as ledger, for_each() if foreach else nullcontext():
        work = task(config, lambda build, frozen: fake(build, kept if frozen else torch.float32), size)
        with stepper(work, config) as loop:
            if gpu and isinstance(work, UNetBench) and not exact:
                for tensor in round_frozen(work.network, kept).values():
                    ledger.drop(tensor)  # stays in the host's memory
            phases(loop, ledger)
            for _ in range(steps):
                ledger.forget_peaks()
                ledger.phase = "between steps"
                loop._step()
    positions.cache_clear()  # its tables are fake now
    return ledger


def memory(name: str, **variant: Any) -> dict[str, Any]:
    """Peak of a step as on a GPU in bf16, and what it consists of."""
    preset, others = called(name)
    changed = {"gradient_checkpointing": variant.pop("checkpointing", True)} | ({"batch": variant.pop("batch")} if "batch" in variant else {})
    config = settings(preset, *others, device="cpu", dtype="bf16", **changed)
    ledger = computed(config, **variant)
    top = max(ledger.peaks, key=lambda phase: ledger.peaks[phase])
    return {
        "batch": config.run.batch,
        "peak": ledger.peaks[top] / GB,
        "phase": top,
        "phases": {k: v / GB for k, v in ledger.peaks.items()},
        "held": {k: v / GB for k, v in ledger.at_peak[top].items() if v > 1e6},
    }


def fitting(name: str, limit: float) -> dict[str, Any]:
    """The largest batch whose peak, with room for the allocator, stays within so many GB."""
    peaks: dict[int, float] = {}

    def fits(batch: int) -> bool:
        if batch not in peaks:
            peaks[batch] = memory(name, batch=batch)["peak"]
        return peaks[batch] * ROOM <= limit

    if not fits(1):
        return {"fits": 0, "peaks": peaks}
    fits(4)
    batch = max(1, int((limit / ROOM - peaks[1]) / ((peaks[4] - peaks[1]) / 3)) + 1)
    while not fits(batch):
        batch -= 1
    while fits(batch + 1):
        batch += 1
    return {"fits": batch, "peaks": dict(sorted(peaks.items()))}


# The computation against the real thing


def real(build: Callable[[], nn.Module], frozen: bool, dtype: torch.dtype) -> nn.Module:
    """A network with random weights on this CPU."""
    with torch.device("meta"):
        network = build()
    return random_weights(network, dtype if frozen else torch.float32)


def check(name: str) -> dict[str, Any]:
    """Peak of a step on this CPU: computed, handed out by PyTorch's allocator, and resident in the process."""
    from torch.profiler import ProfilerActivity, profile

    preset, size, dtype, checkpointing, steps = CHECKS[name]
    config = settings(preset, device="cpu", dtype=dtype, gradient_checkpointing=checkpointing)
    wanted = computed(config, size, gpu=False, steps=steps)
    found: dict[str, Any] = {"computed": max(wanted.peaks.values()) / GB}
    if size == "full" and available() < 1.25 * found["computed"]:
        return found | {"left_out": f"{available():.1f} GB were free"}
    warm = settings("tiny", device="cpu", dtype=dtype)  # loads libraries and builds what every network needs
    with stepper(task(warm, partial(real, dtype=torch.float32), "tiny"), warm) as loop:
        loop._step()
    before = resident()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work = task(config, partial(real, dtype=torch.float32 if dtype == "fp32" else torch.bfloat16), size)
        with stepper(work, config) as loop:
            for _ in range(steps):
                Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
                began = time.monotonic_ns()
                loop._step()
        found["resident"] = resident("VmHWM") - before
    held = peak = 0
    changes = [(e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    offset = time.time_ns() - time.monotonic_ns() if changes and changes[0][0] > 2 * began else 0
    for when, change in sorted(changes):
        held += change
        if when >= began + offset:
            peak = max(peak, held)
    return found | {"allocated": peak / GB}


def resident(which: str = "VmRSS") -> float:
    """Resident memory of this process, or the highest (VmHWM), GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) * 1024 / GB


def available() -> float:
    """Memory that other programs leave, GB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024 / GB


# A step on the CPU


def step(name: str) -> dict[str, float]:
    """CPU-seconds of a step of stage 2 at a fifth of the width: of one after the first."""
    dtype, checkpointing = STEPS[name]
    config = settings("stage2", device="cpu", dtype=dtype, gradient_checkpointing=checkpointing)
    times, adam = [], []
    with stepper(task(config, partial(real, dtype=torch.float32 if dtype == "fp32" else torch.bfloat16), "mid"), config) as loop:
        loop.optimizer.optimizer.register_step_pre_hook(lambda *_: adam.append(-time.process_time()))
        loop.optimizer.optimizer.register_step_post_hook(lambda *_: adam.append(adam.pop() + time.process_time()))
        for _ in range(3):
            begin = time.process_time()
            loop._step()
            times.append(time.process_time() - begin)
    return {"seconds": min(times[1:]), "adamw": min(adam[1:])}


# Data


def whisper() -> SpeechEncoder:
    """Whisper tiny's encoder at full size with random weights."""
    torch.manual_seed(0)
    return SpeechEncoder(WhisperConfig())


def data(side: int) -> dict[str, Any]:
    """Windows a second of clips that are drawn here, from an empty and from a full cache, by so many workers."""
    from footage import draw, sound

    from latentsync.train.cache import Cache
    from latentsync.train.clips import ClipSet
    from latentsync.train.windows import Picks, SyncNetWindows, UNetWindows, loader

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_clips(Path(folder) / "clips", side, draw, sound)
        clips = ClipSet.open(Path(folder) / "clips", frames=16, resolution=side)
        for workers in (0, 1, 2):
            cache = Cache(Path(folder) / f"cache{workers}")
            kinds = {
                "U-Net": UNetWindows(clips, frames=16, resolution=side, seed=0, cache=cache, whisper=whisper, mels=True),
                "SyncNet": SyncNetWindows(clips, frames=16, resolution=side, lower_half=True, seed=0, cache=cache),
            }
            for kind, windows in kinds.items():
                batches = iter(loader(windows, Picks(len(clips), seed=0, batch=1), workers))
                rates = []
                for passes in (1, 4):  # in the first, features are computed; of the others only the last three count
                    counted = len(clips) * (passes - (passes > 1))
                    for _ in range(len(clips) * (passes > 1)):
                        next(batches)
                    begin = time.perf_counter()
                    for _ in range(counted):
                        next(batches)
                    rates.append(counted / (time.perf_counter() - begin))
                found[f"{kind}, {workers}"] = {"cold": rates[0], "warm": rates[1]}
                del batches
    return found


def make_clips(folder: Path, side: int, draw: Any, sound: Any) -> None:
    """Clips of the drawn face with vowels."""
    import av

    folder.mkdir()
    for i in range(CLIPS):
        silent, heard = folder.parent / "silent.mp4", folder.parent / "sound.wav"
        draw(silent, side, side, SECONDS)
        sound(heard, SECONDS + i / 100)  # of another length, so that no two clips are one to the cache
        with av.open(str(silent)) as pictures, av.open(str(heard)) as speech, av.open(str(folder / f"{i}.mp4"), "w") as out:
            video = out.add_stream_from_template(pictures.streams.video[0])
            audio: Any = out.add_stream("aac", rate=16000, layout="mono")
            for packet in pictures.demux(video=0):
                if packet.dts is not None:
                    packet.stream = video
                    out.mux(packet)
            for frame in speech.decode(audio=0):
                out.mux(audio.encode(frame))
            out.mux(audio.encode(None))


# The report


def jobs(part: str) -> dict[str, Callable[[], Any]]:
    """The measurements of a part, each for a process of its own."""
    unets = [*UNETS, "stage2 + LoRA", "stage2_efficient + LoRA"]
    if part == "parameters":
        return {name: partial(parameters, name) for name in (*unets, *SYNCNETS)}
    if part == "memory":
        found: dict[str, Callable[[], Any]] = {f"{name}: {v}": partial(memory, name, **VARIANTS[v]) for name in unets for v in VARIANTS}
        found |= {f"{name}: {v}": partial(memory, name, **VARIANTS[v]) for name in SYNCNETS for v in ("as it is", "no gradient checkpointing")}
        return found | {f"{name}: batch": partial(fitting, name, limit) for name, limit in UNETS.items()}
    if part == "data":
        return {f"{side} px": partial(data, side) for side in (256, 512)}
    measured: dict[str, Callable[[str], Any]] = {"check": check, "step": step}
    return {name: partial(measured[part], name) for name in (CHECKS if part == "check" else STEPS)}


def report(kept: dict[str, Any]) -> str:
    """The page, of the parts that there are."""
    writers = {"parameters": say_parameters, "memory": say_memory, "check": say_check, "step": say_step, "data": say_data}
    about = kept["about"]
    text = [
        "# Training",
        "",
        f"`bench/training.py`, networks of full size with random weights. {about['cpu']}, PyTorch {about['torch']}. GB are 10^9 bytes.",
        "**Memory on GPUs is computed, not measured**; how well the computation fits is below. `bash bench/gpu.sh training` measures on a GPU.",
    ]
    for part, write in writers.items():
        if part in kept["results"]:
            text += ["", *write(kept["results"][part])]
    return "\n".join([*text, ""])


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of markdown."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def say_parameters(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, n in found.items():
        frozen = n["all"] - n["trained"]
        around = sum(n["frozen"].values())
        lasting = 16 * n["trained"] + 2 * frozen + 2 * around
        rows.append(
            [name, f"{n['all']:,}", f"{n['trained']:,}", f"{n['trained'] / n['all']:.1%}"]
            + [f"{16 * n['trained'] / GB:.2f}", f"{2 * frozen / GB:.2f}", f"{2 * around / GB:.2f}", f"**{lasting / GB:.2f}**"]
            + [f"{(16 * n['trained'] + 4 * frozen + 4 * around) / GB:.2f}"]
        )
    sizes: dict[str, int] = {}
    for n in found.values():
        for name, count in n["frozen"].items():
            sizes[name] = max(sizes.get(name, 0), count)
    shown = {"vae": "autoencoder", "syncnet": "SyncNet", "lpips": "VGG16 and LPIPS' heads", "videomae": "VideoMAE V2 giant"}
    return [
        "## Parameters",
        "",
        "Trained weights are float32, and so are their gradients and AdamW's two moments: 16 bytes for each. In a run in bf16 (or fp16), frozen weights take 2 bytes.",
        f"Frozen networks around the U-Net: {', '.join(f'{shown[k]} {v:,}' for k, v in sizes.items())}.",
        "With LoRA the counts include the adapters (rank 16).",
        "",
        *table(
            ["preset", "parameters", "trained", "share", "trained, GB", "frozen, GB", "other networks, GB", "together, GB", "the same all in fp32"],
            rows,
        ),
    ]


def say_memory(found: dict[str, Any]) -> list[str]:
    names = dict.fromkeys(key.split(": ")[0] for key in found)
    asis = {name: found[f"{name}: as it is"] for name in names}
    lines = [
        "## Memory of a step on a GPU, computed",
        "",
        "The most that a step of the loop holds, from its second step on: bf16, gradient checkpointing, everything counted that PyTorch's allocator would",
        "hand out. Not counted: the driver's own (about half a GB), workspaces of cuDNN and cuBLAS, and what the allocator loses by fragmentation; so the largest",
        f"batch is one that leaves {1 - 1 / ROOM:.0%} of the published need free. The published needs are what the original says of its presets, without a batch; here it is the one in the table.",
        "",
    ]
    rows = []
    for name in names:
        need = UNETS.get(name)
        peaks = [found.get(f"{name}: {v}") for v in VARIANTS]
        fit = found.get(f"{name}: batch")
        rows.append(
            [name, str(asis[name]["batch"]), str(need or ""), f"**{asis[name]['peak']:.1f}**"]
            + [f"{asis[name]['peak'] / need:.2f}" if need else "", str(fit["fits"]) if fit else ""]
            + [f"{p['peak']:.1f}" if p else "" for p in peaks[1:]]
        )
    heads = ["preset", "batch", "published, GB", "here, GB", "of published", "largest batch within the published need"]
    lines += table([*heads, *(f"here, {v}" for v in list(VARIANTS)[1:])], rows)
    lines += ["", "What it consists of at the peak, GB:", ""]
    lasting = ["trained weights", "gradients", "AdamW's state", "frozen weights of the U-Net", "frozen networks"]
    rows = [
        [name, d["phase"], *(f"{d['held'].get(k, 0):.2f}" for k in lasting), f"{d['peak'] - sum(d['held'].get(k, 0) for k in lasting):.2f}"]
        for name, d in asis.items()
    ]
    lines += table(["preset", "highest in", *lasting, "activations and all else"], rows)
    lines += ["", "The highest in each phase, GB:", ""]
    every = list(dict.fromkeys(phase for d in asis.values() for phase in d["phases"] if phase != "between steps"))
    order = [p for p in every if not p.endswith("backward")] + [p for p in reversed(every) if p.endswith("backward")]
    order = [p for p in order if p != "AdamW"] + ["AdamW"]
    rows = [[phase, *(f"{d['phases'][phase]:.1f}" if phase in d["phases"] else "" for name, d in asis.items() if name in UNETS)] for phase in order]
    return lines + table(["phase", *(n for n in asis if n in UNETS)], rows)


def say_check(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, c in found.items():
        if "left_out" in c:
            rows.append([name, f"{c['computed']:.3f}", f"not measured: {c['left_out']}", "", "", ""])
        else:
            apart = [f"{c[k] / c['computed'] - 1:+.2%}" for k in ("allocated", "resident")]
            rows.append([name, f"{c['computed']:.3f}", f"{c['allocated']:.3f}", apart[0], f"{c['resident']:.3f}", apart[1]])
    return [
        "## Computed against measured, on the CPU",
        "",
        "The same step computed as this CPU does it (fewer frames at once than on a GPU, frozen weights exact), and really done by a process of its own:",
        "the most that PyTorch's CPU allocator had handed out, by its profiler, and by how much the resident memory of the process grew. The second has in it what",
        "oneDNN packs and works in, and what the system's allocator keeps. The full-size step is a first one: AdamW's state comes into being in it.",
        "",
        *table(["step", "computed, GB", "handed out, GB", "apart", "resident, GB", "apart"], rows),
    ]


def say_step(found: dict[str, Any]) -> list[str]:
    base = found["fp32, checkpointing"]["seconds"]
    rows = [[name, f"{s['seconds'] / base:.2f}", f"{s['adamw'] / s['seconds']:.1%}"] for name, s in found.items()]
    return [
        "## A step on the CPU",
        "",
        "Stage 2 with all its losses, networks of a fifth of the width, 16 frames of 256 px, batch 1: CPU time of a step, of that of the first row. One run, the better of two steps each;",
        "on a machine that did other work.",
        "",
        *table(["", "CPU time", "AdamW's share of it"], rows),
    ]


def say_data(found: dict[str, Any]) -> list[str]:
    rows = []
    for side, rates in found.items():
        base = rates["U-Net, 0"]["warm"]
        for kind in ("U-Net", "SyncNet"):
            for workers in (0, 1, 2):
                r = rates[f"{kind}, {workers}"]
                rows.append([side, kind, str(workers), f"{r['cold']:.1f}", f"{r['warm']:.1f}", f"{r['warm'] / base:.2f}"])
    return [
        "## Reading data",
        "",
        f"Windows a second by the clock, {CLIPS} drawn clips of {SECONDS} s (H.264, a key frame every 10 s, AAC), two cores that did other work too. Cold: each clip's speech features and mels are",
        "computed when it is first met (Whisper tiny's encoder on the CPU); they are then kept for all later epochs and runs. A U-Net window is 32 frames from two places of the clip, a SyncNet window 16.",
        "",
        *table(["clips", "windows", "workers", "cold cache", "warm cache", "warm, of the first row of its size"], rows),
    ]


def main() -> None:
    """Run what is asked for, each measurement in a process of its own, and write the page and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/training.md"))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--missing", action="store_true", help="measure only what the numbers do not have yet")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        print(json.dumps(jobs(chosen.job[0])[chosen.job[1]]()))
        return
    numbers = chosen.out.with_suffix(".json")
    kept = json.loads(numbers.read_text(encoding="utf-8")) if numbers.exists() else {"results": {}}
    # one thread, asleep when it waits; and freed memory goes back to the system, so that resident memory says what is held
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for part in chosen.only:
        had = kept["results"].get(part, {})
        results = kept["results"][part] = {name: had[name] for name in jobs(part) if name in had}
        for name in jobs(part):
            if chosen.missing and name in results:
                continue
            command = [sys.executable, __file__, "--job", part, name]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=quiet)
            results[name] = json.loads(done.stdout.splitlines()[-1])
            kept["about"] = {"cpu": cpu_name(), "torch": torch.__version__}
            kept["results"] = {p: kept["results"][p] for p in PARTS if p in kept["results"]}
            kept["results"][part] = {n: results[n] for n in jobs(part) if n in results}
            numbers.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            print(part, name, json.dumps(results[name]), file=sys.stderr, flush=True)
    chosen.out.write_text(report(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
