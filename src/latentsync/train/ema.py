"""The moving average of a network's parameters, which often gives better pictures than the parameters of any one step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from latentsync.errors import UsageError, WeightsError


class EMA:
    """An exponential moving average of parameters, in their dtype (float32 under mixed precision) and on their device.

    The n-th update (from 0) has the decay min(decay, (1 + n) / (10 + n)), so that the random start is soon forgotten whatever the decay.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"the decay of a moving average lies between 0 and 1, not {decay}; usual values are 0.999 and 0.9999")
        self.decay = decay
        self.updates = 0
        self._parameters = list(parameters)
        self._averages = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters of a step in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self._averages, [p.detach() for p in self._parameters], 1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within it the network has the averages; afterwards it has its own values again, to the bit. Costs the memory of one tensor."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            own = parameter.clone()
            parameter.copy_(average)
            average.copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; the tensors are the averages themselves."""
        return {"updates": self.updates, "averages": list(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises WeightsError where it belongs to other parameters."""
        given: list[Tensor] = state["averages"]
        if [tuple(t.shape) for t in given] != [tuple(t.shape) for t in self._averages]:
            raise WeightsError("the moving average of the checkpoint belongs to other parameters: `trainable`, `lora` or the network was another one")
        self.updates = int(state["updates"])
        for average, tensor in zip(self._averages, given, strict=True):
            average.copy_(tensor)
