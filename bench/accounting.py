"""Peak memory of a computation, without the device it is meant for, and without the memory.

Tensors are PyTorch's fake ones: they have shapes, types and storages of a known size, and no contents. The `Ledger` sees every operation,
counts the storages that come into being and those that go, and so knows what is held at any time.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

N = TypeVar("N", bound=nn.Module)
COPIES = "low-precision copies of weights"


class Ledger(TorchDispatchMode):
    """What is held, by the phase in which it was made; the most that was held in each phase, and of what the highest peak consisted."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "set-up"
        self.now = 0
        self.held: dict[str, int] = defaultdict(int)  # label -> bytes
        self.peaks: dict[str, int] = defaultdict(int)  # phase -> most bytes
        self.at_peak: dict[str, dict[str, int]] = {}  # phase -> what was held then
        self._labels: dict[int, tuple[str, int]] = {}  # storage -> label, bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1  # a fake number; any finite one will do
        out = func(*args, **(kwargs or {}))
        copied = func is torch.ops.aten._to_copy.default and isinstance(args[0], nn.Parameter)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf, COPIES if copied else self.phase)
        return out

    def _see(self, tensor: Tensor, label: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._labels:
            return
        size = storage.nbytes()
        self._labels[key] = (label, size)
        weakref.finalize(storage, self._gone, key)
        self._add(label, size)

    def _add(self, label: str, size: int) -> None:
        self.now += size
        self.held[label] += size
        if self.now > self.peaks[self.phase]:
            self.peaks[self.phase] = self.now
            self.at_peak[self.phase] = dict(self.held)

    def _gone(self, key: int) -> None:
        label, size = self._labels.pop(key)
        self.now -= size
        self.held[label] -= size

    def name(self, tensor: Tensor, label: str) -> None:
        """From now on this tensor is counted under another label."""
        self._see(tensor, label)
        key = tensor.untyped_storage()._cdata
        old, size = self._labels[key]
        self._labels[key] = (label, size)
        self.held[old] -= size
        self.held[label] += size

    def drop(self, tensor: Tensor) -> None:
        """This tensor lies elsewhere: it is not counted any more."""
        key = tensor.untyped_storage()._cdata
        label, size = self._labels[key]
        self._labels[key] = (label, 0)
        self.now -= size
        self.held[label] -= size

    def forget_peaks(self) -> None:
        """Look for peaks anew, as from the second step on."""
        self.peaks.clear()
        self.at_peak.clear()


def in_float32(normalise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A normalisation as autocast runs it on GPUs: in float32. On CPUs it does not."""

    def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return normalise(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)

    return run


def fake(build: Callable[[], N], dtype: torch.dtype) -> N:
    """A network whose weights are fake, of that type. It stays where and what it is, whatever `to` is asked for."""
    with unset_fake_temporarily(), torch.device("meta"):
        network = build().to(dtype)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    network.to = lambda *_, **__: network  # type: ignore[method-assign, assignment]
    return network


@contextmanager
def pretended(gpu: bool) -> Iterator[Ledger]:
    """Within it all tensors are fake, and the ledger counts them. `gpu`: the library and autocast choose as they do on a GPU.

    The tensors still say that they lie on the CPU: this PyTorch may know of no other device. There attention is a fused kernel too, and so needs
    no matrix of weights.
    """
    with ExitStack() as stack:
        if gpu:
            stack.enter_context(patch.object(FakeTensor, "is_cpu", False, create=True))
            for name in ("group_norm", "layer_norm"):
                stack.enter_context(patch.object(F, name, in_float32(getattr(F, name))))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Ledger())
