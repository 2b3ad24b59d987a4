"""Device and number format are chosen once, at the edge, with the reason; everything below receives tensors."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from latentsync.errors import DeviceError, UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Converting at the edges costs a little, and bf16 a little accuracy: below this gain fp32 is the better choice.
WORTHWHILE_GAIN = 1.3


@dataclass(frozen=True)
class Compute:
    """Where and in which number format the networks run, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def dtype_name(self) -> str:
        """fp32, bf16 or fp16"""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)


def choose(device: str = "auto", dtype: str = "auto") -> Compute:
    """The device ('auto', 'cpu', 'cuda', 'cuda:1', 'mps') and dtype ('auto', 'fp32', 'bf16', 'fp16') to use, with the reason.

    Auto takes CUDA, else MPS, else the CPU. Raises UsageError for a word it does not know, DeviceError for a device that is not there
    or that cannot work in the wanted dtype.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'; choose auto, {', '.join(DTYPES)}")
    found, why = _device(device)
    if dtype != "auto":
        if found.type == "cpu" and dtype == "fp16":
            raise DeviceError("fp16 on the CPU is many times slower than fp32; use --dtype auto, bf16 or fp32")
        if found.type == "cuda" and dtype == "bf16" and not _cuda_has_bf16(found):
            raise DeviceError(f"{torch.cuda.get_device_name(found)} has no bf16; use --dtype fp16")
        return Compute(found, DTYPES[dtype], f"{why}; {dtype} as asked")
    if found.type == "cuda":
        if _cuda_has_bf16(found):
            return Compute(found, torch.bfloat16, f"{why}; bf16: the GPU computes in it, and it cannot overflow as fp16 can")
        return Compute(found, torch.float16, f"{why}; fp16: the GPU is older than bf16")
    if found.type == "mps":
        return Compute(found, torch.float16, f"{why}; fp16: half the memory of fp32 and faster on Apple GPUs")
    units = _cpu_has_bf16()
    if units is not None:
        if units:
            return Compute(found, torch.bfloat16, f"{why}; bf16: this CPU computes in it")
        return Compute(found, torch.float32, f"{why}; fp32: this CPU has no bf16 instructions")
    gain = bf16_gain()
    measured = f"a bf16 convolution takes {1 / gain:.2f} of the time of fp32 here"
    if gain >= WORTHWHILE_GAIN:
        return Compute(found, torch.bfloat16, f"{why}; bf16: {measured}")
    return Compute(found, torch.float32, f"{why}; fp32: {measured}, not worth it")


def dealt(number: int) -> torch.device:
    """The device of process `number` of several on this machine: all CUDA GPUs in turn, else what auto takes."""
    found = choose("auto", "fp32").device
    return torch.device("cuda", number % torch.cuda.device_count()) if found.type == "cuda" else found


def every() -> list[str]:
    """Names of all devices that are worth a process of their own: all CUDA GPUs, else what auto takes."""
    found = choose("auto", "fp32").device
    return [f"cuda:{k}" for k in range(torch.cuda.device_count())] if found.type == "cuda" else [found.type]


def _device(name: str) -> tuple[torch.device, str]:
    if name == "auto":
        if torch.cuda.is_available():
            chosen = torch.device("cuda", torch.cuda.current_device())
            return chosen, f"{chosen}, {torch.cuda.get_device_name(chosen)}: a CUDA GPU is here"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "mps: an Apple GPU is here"
        return torch.device("cpu"), "cpu: no GPU that PyTorch can use is here"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and (kind != "cuda" or not (number.isascii() and number.isdigit()))):
        raise UsageError(f"unknown device '{name}'; choose auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            built = "this PyTorch is built without CUDA" if torch.version.cuda is None and torch.version.hip is None else "its driver finds no GPU"
            raise DeviceError(f"no CUDA GPU: {built}; use --device auto or cpu, or install a PyTorch that fits the driver")
        index = int(number) if number else torch.cuda.current_device()
        if index >= count:
            raise DeviceError(f"no device cuda:{index}: {count} CUDA GPU{'s' * (count > 1)} here, from cuda:0 to cuda:{count - 1}")
        return torch.device("cuda", index), f"cuda:{index}, {torch.cuda.get_device_name(index)}, as asked"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no Apple GPU (MPS) here; use --device auto or cpu")
    return torch.device(kind), f"{kind}, as asked"


def _cuda_has_bf16(device: torch.device) -> bool:
    """Whether the GPU computes in bf16 itself: NVIDIA's from compute capability 8.0 on; AMD's say so themselves."""
    if torch.version.hip is not None:
        return torch.cuda.is_bf16_supported()
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _cpu_has_bf16() -> bool | None:
    """Whether this x86 CPU has the instructions that pay (AVX512-BF16 or AMX); None where PyTorch does not say, as on Arm.

    Without them bf16 is emulated and can be many times slower than fp32.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    told = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(ask() for ask in told if ask is not None) if all(told) else None


def bf16_gain() -> float:
    """How many times faster this CPU runs a small bf16 convolution than the same in fp32; measured in about 50 ms."""
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        picture = torch.randn(1, 64, 32, 32, generator=generator)
        kernel = torch.randn(64, 64, 3, 3, generator=generator)
        pairs = {dtype: (picture.to(dtype), kernel.to(dtype)) for dtype in best}
        # Turns are taken, and the best of each counts, so that a busy machine slows both alike.
        deadline = time.perf_counter() + 0.05
        for turn in range(20):
            for dtype, (x, w) in pairs.items():
                begin = time.perf_counter()
                torch.nn.functional.conv2d(x, w, padding=1)
                if turn:  # the first builds the kernels
                    best[dtype] = min(best[dtype], time.perf_counter() - begin)
            if turn and time.perf_counter() > deadline:
                break
    return best[torch.float32] / best[torch.bfloat16]


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: allocated on a GPU, resident on the CPU. 0 where the system does not say."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        return int(module.max_memory_allocated(device)) if hasattr(module, "max_memory_allocated") else 0
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def memory_guard(compute: Compute, advice: tuple[str, ...] = ()) -> Iterator[None]:
    """Within it, running out of the device's memory is a DeviceError that says what to lower: `advice`, or what helps a sync."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise DeviceError(_advice(compute, advice)) from e
    except RuntimeError as e:
        # MPS, the CPU and CUDA's libraries have no exception of their own for this.
        if any(words in str(e) for words in ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")):
            raise DeviceError(_advice(compute, advice)) from e
        raise


def _advice(compute: Compute, tries: tuple[str, ...]) -> str:
    where = str(compute.device)
    if compute.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(compute.device)
        where += f" ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free)"
    if not tries:
        tries = ("a smaller --batch-windows", "--model 1.5 (256 px instead of 512)")
        if compute.dtype == torch.float32:
            tries += ("--dtype auto" if compute.device.type == "cpu" else "--dtype fp16",)
    others = "closing other programs that use the GPU" if compute.device.type != "cpu" else "closing other programs"
    return f"out of memory on {where}; try {', '.join((*tries, others))}"
