"""Seconds per second of video and peak memory of the sampling stage on a GPU, full-size networks with random weights.

    bench/gpu.sh [--out bench/results/gpu.md] [--minutes 9]

One call measures 256 and 512 px, eager and compiled, every scheduler at 20 and 8 steps, feature cache off and at 3, guidance on. A window is 16
frames, 0.64 s at 25 fps; its time is that of `latentsync.denoise.sample` plus two encodings and one decoding by the VAE. Decoding of video,
tracking, pasting and encoding run beside the network on the CPU and are measured elsewhere. What does not fit in the minutes is left
out and named. `--device cpu --tiny` tries the script itself without a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import random_weights

from latentsync.config import ModelConfig, UNetConfig, VAEConfig
from latentsync.denoise import make_scheduler, sample
from latentsync.device import choose
from latentsync.models.unet import UNet
from latentsync.models.vae import VAE
from latentsync.options import SCHEDULERS

WINDOW, FPS, TOKENS = 16, 25, 50
TINY = {"channels": (32, 32), "layers_per_block": 1}


class Bench:
    """The networks on one device, and the clock."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.compute = choose(device)
        where, dtype = str(self.compute.device), self.compute.dtype
        with torch.device("meta"):
            unet = UNet(UNetConfig(**TINY) if tiny else UNetConfig())  # type: ignore[arg-type]
            vae = VAE(VAEConfig(**{**TINY, "groups": 8}) if tiny else VAEConfig())  # type: ignore[arg-type]
        self.unet, self.vae = random_weights(unet, dtype, where), random_weights(vae, dtype, where)
        self.cuda = self.compute.device.type == "cuda"
        self.diffusion = ModelConfig(name="bench").diffusion

    def timed(self, work: Callable[[], Any]) -> tuple[float, float]:
        """Seconds by the clock, and peak memory of the device in GB (0 on a CPU)."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        work()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin, torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0

    def denoise(self, side: int, scheduler: str, steps: int, cache: int, windows: int = 1) -> None:
        """One guided run over windows of 16 frames with a latent grid of that side."""
        device, dtype = self.compute.device, self.compute.dtype
        shape = (windows, 4, WINDOW, side, side)
        generator = torch.Generator(device).manual_seed(0)
        latents = [torch.randn(shape, generator=generator, device=device) for _ in range(3)]
        sample(
            self.unet,
            make_scheduler(scheduler, self.diffusion),
            noise=latents[0],
            mask=torch.ones((windows, 1, WINDOW, side, side), device=device),
            masked=latents[1],
            reference=latents[2],
            audio=torch.randn((windows, WINDOW, TOKENS, 384), generator=generator, device=device).to(dtype),
            steps=steps,
            guidance=1.5,
            cache=self.unet.make_cache(cache) if cache > 1 else None,
        )

    def autoencode(self, side: int) -> None:
        """Two encodings and a decoding of one window."""
        size = side * self.vae.factor
        pixels = torch.zeros((WINDOW, 3, size, size), device=self.compute.device)
        self.vae.encode(pixels)
        self.vae.decode(self.vae.encode(pixels))


@torch.inference_mode()
def measure(bench: Bench, minutes: float, sides: tuple[int, ...]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows, and the names of what there was no time for."""
    deadline = time.monotonic() + 60 * minutes
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    per_second = FPS / WINDOW
    for compiled in (False, True):
        if compiled:
            bench.unet.compile(dynamic=False)
        for side in sides:
            mode = f"{side * 8} px, {'compiled' if compiled else 'eager'}"
            if time.monotonic() > deadline:
                left_out.append(mode)
                continue
            bench.autoencode(side)
            vae_seconds, vae_memory = bench.timed(lambda side=side: bench.autoencode(side))  # type: ignore[misc]
            warm, _ = bench.timed(lambda side=side: bench.denoise(side, "ddim", 2, 2))  # type: ignore[misc]
            bench.denoise(side, "ddim", 1, 1)
            plan = [(s, n, c, 1) for s in SCHEDULERS for n in (20, 8) for c in (1, 3)] + [("ddim", 20, 1, 4)]
            for scheduler, steps, cache, windows in plan:
                name = f"{mode}, {scheduler}, {steps} steps, cache {cache}, {windows} at once"
                if time.monotonic() > deadline:
                    left_out.append(name)
                    continue
                if windows > 1:
                    bench.denoise(side, "ddim", 1, 1, windows)  # builds or chooses kernels for the new shape
                seconds, memory = bench.timed(lambda a=(side, scheduler, steps, cache, windows): bench.denoise(*a))  # type: ignore[misc]
                rows.append(
                    {
                        "resolution": side * 8,
                        "compiled": compiled,
                        "scheduler": scheduler,
                        "steps": steps,
                        "cache": cache,
                        "windows": windows,
                        "sampling": seconds / windows * per_second,
                        "vae": vae_seconds * per_second,
                        "memory": max(memory, vae_memory),
                        "first_use": warm,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows, left_out


def report(rows: list[dict[str, Any]], left_out: list[str], about: str) -> str:
    """The page."""
    text = [
        "# Sampling on a GPU",
        "",
        f"`bench/gpu.sh`, random weights, guidance on, 25 fps. {about}.",
        "Seconds per second of video; the VAE's part is two encodings and a decoding. First use: seconds of the first two steps, compilation",
        "included.",
        "",
        "| pixels | mode | scheduler | steps | cache | windows at once | sampling, s/s | VAE, s/s | together, s/s | peak GB | first use, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        mode, cache = "compiled" if r["compiled"] else "eager", "off" if r["cache"] == 1 else r["cache"]
        text.append(
            f"| {r['resolution']} | {mode} | {r['scheduler']} | {r['steps']} | {cache} | {r['windows']} | {r['sampling']:.3f} "
            f"| {r['vae']:.3f} | {r['sampling'] + r['vae']:.3f} | {r['memory']:.1f} | {r['first_use']:.1f} |"
        )
    if left_out:
        text += ["", f"No time was left for: {'; '.join(left_out)}."]
    return "\n".join([*text, ""])


def main() -> None:
    """Measure, then write the page and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu.md"))
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a very small network, to try this script")
    chosen = parser.parse_args()
    bench = Bench(chosen.device, chosen.tiny)
    rows, left_out = measure(bench, chosen.minutes, (4, 8) if chosen.tiny else (32, 64))
    about = f"{bench.compute.reason}; PyTorch {torch.__version__}"
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows, "left_out": left_out}, indent=2) + "\n")
    chosen.out.write_text(report(rows, left_out, about))


if __name__ == "__main__":
    main()
