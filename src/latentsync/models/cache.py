"""Reuse of deep features between neighbouring sampling steps (DeepCache: Ma, Fang, Wang, arXiv 2312.00858)."""

from __future__ import annotations

from torch import Tensor

from latentsync.errors import UsageError


class FeatureCache:
    """The deep features of one sampling run; make a new one for every run.

    Every `interval`-th forward, from the first on, runs the whole network and stores what enters its very last layer.
    The forwards between run only the shallowest branch (branch 0 of the paper): conv_in, whose output is the skip
    connection of the last layer, that last layer on the stored feature, and the output convolution.
    An interval of 1 never reuses. Deep features change slowly between neighbouring steps, which is why this works.
    """

    def __init__(self, interval: int = 3) -> None:
        if interval < 1:
            raise UsageError(f"feature cache interval {interval} is not 1 or more; 1 means off, 3 is usual")
        self.interval = interval
        self.step = 0
        self.deep: Tensor | None = None
        self._shape: tuple[int, ...] | None = None

    @property
    def reuses(self) -> bool:
        """Whether the next forward will reuse the stored feature."""
        return self.step % self.interval != 0 and self.deep is not None

    def put(self, deep: Tensor, shape: tuple[int, ...]) -> None:
        """Keep the feature (b*f, c, h, w) of a whole forward on a sample of that shape, and count the step."""
        self.deep = deep if self.interval > 1 else None
        self._shape = tuple(shape)
        self.step += 1

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """The stored feature for a sample of that shape, counting the step."""
        if self.deep is None:
            raise UsageError("the feature cache is empty; run a whole forward first")
        if tuple(shape) != self._shape:
            raise UsageError(f"a feature cache serves one sampling run: it holds a sample of shape {self._shape}, not {tuple(shape)}; make a new one")
        self.step += 1
        return self.deep
