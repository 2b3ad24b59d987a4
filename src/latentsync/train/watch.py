"""What an experienced eye would see in a run's rows, in words: a loss at chance, a term that is no number, processors that wait for data.

Every warning is said once; when its cause has gone and comes again, so does the warning.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

# SyncNet's loss is a binary cross-entropy over as many pairs that belong together as pairs that do not. Whoever knows nothing and says "one half"
# of each pays ln 2.
CHANCE_LOSS = math.log(2)
# At ln 2 - 0.02 the right answer is given 51 % instead of 50 %: still nothing that has been learned. The mean over a stretch is compared, since
# single rows of small batches scatter more than this.
CHANCE_BAND = 0.02
# Every run begins near ln 2, and small batches leave it late: a stretch much shorter would warn of good runs. The number itself is a judgement.
STUCK_STEPS = 2000
# A coin is right in 50 of 100 cases; over 300 held-out windows that scatters by 3 (one standard deviation).
CHANCE_ACCURACY = 0.53
# Validations in a row at chance, so that one unlucky draw is not called a failure.
POOR_VALIDATIONS = 2
# From here on more time goes into waiting for data than into everything else, so faster data nearly doubles the speed.
WAITING_SHARE = 0.5
# Rows in a row that must show it: the first ones also start workers and fill caches.
WAITING_ROWS = 3

_MEASURES = ("learning_rate", "seconds_per_step", "data_seconds_per_step", "frames_per_second", "memory_gb", "bad_clips", "skipped_steps")


class Watch:
    """Looks at every logged row of one run of a task, "unet" or "syncnet"."""

    def __init__(self, task: str) -> None:
        self.task = task
        self._said: set[str] = set()
        self._waiting = 0  # rows in a row
        self._losses: deque[tuple[int, float]] = deque()  # (step, loss) of SyncNet's rows over the last STUCK_STEPS
        self._poor = 0  # validations in a row
        self._learned = math.nan  # accuracy on training data, last row

    def look(self, step: int, split: str, values: Mapping[str, float]) -> list[str]:
        """What is worth a word after the row of `split` ("train" or "validation") at a step; mostly nothing.

        values: the terms by name, among them "loss" and for SyncNet "accuracy" (0..1); "seconds_per_step" and "data_seconds_per_step" where known.
        """
        causes = self._not_finite(step, split, values)
        if split == "train":
            causes |= self._waits(values)
        if self.task == "syncnet":
            causes |= self._stuck(step, values) if split == "train" else self._at_chance(step, values)
        self._said -= {cause for cause, text in causes.items() if not text}
        new = {cause: text for cause, text in causes.items() if text and cause not in self._said}
        self._said |= new.keys()
        return list(new.values())

    # Each gives its causes: with words where they hold, with '' where they do not, and not at all where the row does not tell.

    def _not_finite(self, step: int, split: str, values: Mapping[str, float]) -> dict[str, str]:
        out = {}
        for name, value in values.items():
            if name not in _MEASURES:
                what = {"loss": "the loss", "grad_norm": "the norm of the gradient"}.get(name, f"the term '{name}'")
                out[f"{split} {name}"] = (
                    ""
                    if math.isfinite(value)
                    else f"{what} is {value} at step {step} ({split}). Steps without a finite gradient change nothing; if it stays so, go on from a "
                    "checkpoint before it with run.dtype=bf16 or fp32 (fp16 ends at 65504) or a lower optimizer.learning_rate, and look for damaged "
                    "clips with `latentsync train check`"
                )
        return out

    def _waits(self, values: Mapping[str, float]) -> dict[str, str]:
        waited, whole = values.get("data_seconds_per_step"), values.get("seconds_per_step")
        if waited is None or not whole:
            return {}
        self._waiting = self._waiting + 1 if waited > WAITING_SHARE * whole else 0
        if 0 < self._waiting < WAITING_ROWS:
            return {}
        return {
            "waits": f"data is the bottleneck: {waited:.2f} of the {whole:.2f} s of a step ({waited / whole:.0%}) are spent waiting for clips. Raise "
            "data.workers (up to the number of processor cores), keep the clips and data.cache on a local disk, and prepare clips in the size of the "
            "training. The first pass over the data is the slowest: it fills the cache of sound features"
            if self._waiting
            else ""
        }

    def _stuck(self, step: int, values: Mapping[str, float]) -> dict[str, str]:
        self._learned = values.get("accuracy", math.nan)
        loss = values.get("loss", math.nan)
        if not math.isfinite(loss):
            return {}
        self._losses.append((step, loss))
        while len(self._losses) > 1 and self._losses[1][0] <= step - STUCK_STEPS:
            self._losses.popleft()
        if step - self._losses[0][0] < STUCK_STEPS:
            return {}
        mean = sum(value for _, value in self._losses) / len(self._losses)
        return {
            "stuck": f"SyncNet's loss has stood at {mean:.2f} for {STUCK_STEPS} steps: ln 2 = 0.69 is what a guess costs, so nothing is learned. "
            "What helps, first things first: 256 samples or more a step (run.batch x run.accumulation x processes; 128 are known to stay here, "
            "1024 do best); windows of 16 frames (25 are known to stay here); faces aligned first and the offset of sound and picture corrected "
            "after that; clips whose sound is really there and theirs (`latentsync train check`)"
            if abs(mean - CHANCE_LOSS) < CHANCE_BAND
            else ""
        }

    def _at_chance(self, step: int, values: Mapping[str, float]) -> dict[str, str]:
        accuracy = values.get("accuracy", math.nan)
        if not math.isfinite(accuracy) or step < STUCK_STEPS:
            return {}
        self._poor = self._poor + 1 if accuracy < CHANCE_ACCURACY else 0
        if 0 < self._poor < POOR_VALIDATIONS:
            return {}
        if not self._poor:
            return {"chance": ""}
        if self._learned > CHANCE_ACCURACY + 0.1:
            why = f"while it is {self._learned:.0%} on the training clips: they are learned by heart. Take more clips of more people, or stop earlier"
        else:
            why = "as good as a coin. It has not begun to learn: see that faces are aligned, sound and picture in step, and the batch 256 or more"
        return {"chance": f"SyncNet's accuracy on held-out clips is {accuracy:.0%} at step {step}, {why}"}
