"""The choice of device and number format. What this machine lacks is tested for its message."""

from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from latentsync import device
from latentsync.config import UNetConfig, VAEConfig
from latentsync.device import DTYPES, WORTHWHILE_GAIN, Compute, bf16_gain, choose, memory_guard
from latentsync.errors import DeviceError, UsageError
from latentsync.models.unet import UNet
from latentsync.models.vae import VAE
from latentsync.pipeline import LipSync


def test_auto_takes_the_best_device_with_a_reason():
    compute = choose()
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert compute.device.type == best
    assert compute.reason.startswith(str(compute.device))
    assert compute.dtype_name in compute.reason


@pytest.mark.parametrize(
    ("units", "gain", "expected", "why"),
    [
        (True, 0.1, torch.bfloat16, "computes in it"),
        (False, 9.0, torch.float32, "no bf16 instructions"),
        (None, 2 * WORTHWHILE_GAIN, torch.bfloat16, "0.38 of the time"),
        (None, 1.0, torch.float32, "not worth it"),
    ],
)
def test_cpu_dtype_follows_the_instructions_else_a_measurement(monkeypatch, units, gain, expected, why):
    monkeypatch.setattr(device, "_cpu_has_bf16", lambda: units)
    monkeypatch.setattr(device, "bf16_gain", lambda: gain)
    compute = choose("cpu")
    assert compute.dtype == expected
    assert why in compute.reason


def test_what_the_cpu_says_of_itself():
    said = device._cpu_has_bf16()
    flags = Path("/proc/cpuinfo")
    if said is None or not flags.is_file():
        assert bf16_gain() > 0
        return
    words = set(flags.read_text().split())
    assert said == bool(words & {"avx512_bf16", "amx_tile"})


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_wanted_dtype_is_taken(name: str):
    compute = choose("cpu", name)
    assert compute == Compute(torch.device("cpu"), DTYPES[name], compute.reason)
    assert compute.dtype_name == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA", ""])
def test_unknown_devices_are_refused_with_the_known_ones(name: str):
    with pytest.raises(UsageError, match="auto, cpu, cuda"):
        choose(name)


def test_unknown_dtypes_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="fp32, bf16, fp16"):
        choose("cpu", "int8")


def test_fp16_on_the_cpu_is_refused():
    with pytest.raises(DeviceError, match="many times slower"):
        choose("cpu", "fp16")


def test_absent_devices_are_told():
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(DeviceError, match=r"CUDA"):
        choose(f"cuda:{count}")
    if not torch.backends.mps.is_available():
        with pytest.raises(DeviceError, match="MPS"):
            choose("mps")


def test_running_out_of_memory_says_what_to_lower():
    compute = Compute(torch.device("cpu"), torch.float32, "")
    with pytest.raises(DeviceError, match=r"--batch-windows.*--model 1\.5"), memory_guard(compute):
        torch.empty(2**60)
    with pytest.raises(DeviceError, match="--batch-windows"), memory_guard(compute):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(DeviceError, match="--batch-windows"), memory_guard(compute):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def test_a_model_that_does_not_fit_says_what_to_lower(tiny_model, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(DeviceError, match=r"out of memory on cpu.*--model 1\.5"):
        LipSync.load(tiny_model, device="cpu", dtype="fp32", faces=False)


def test_other_errors_pass_the_memory_guard():
    with pytest.raises(RuntimeError, match="shape"), memory_guard(Compute(torch.device("cpu"), torch.float32, "")):
        torch.zeros(2) + torch.zeros(3).reshape(4)
    with pytest.raises(KeyError), memory_guard(Compute(torch.device("cpu"), torch.float32, "")):
        raise KeyError("x")


class NoFloat64(TorchFunctionMode):
    """Fails where any operation makes a float64 tensor."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert not (isinstance(out, torch.Tensor) and out.dtype == torch.float64), func
        return out


@torch.no_grad()
def test_no_float64_in_the_networks():
    """Apple GPUs have none."""
    with pytest.raises(AssertionError), NoFloat64():
        torch.zeros(2).double()
    with NoFloat64():
        unet = UNet(UNetConfig(channels=(8, 8), layers_per_block=1, heads=2, audio_dim=12, groups=4))
        unet(torch.zeros(1, 13, 2, 4, 4), 5.5, torch.zeros(1, 2, 5, 12))
        vae = VAE(VAEConfig(channels=(8, 8), layers_per_block=1, groups=4))
        vae.decode(vae.encode(torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 8, 8)))
