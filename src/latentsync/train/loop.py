"""The loop that trains any of the networks: batches in, checkpoints, curves and words out.

What is trained is a `Task`; how long, how large and where is the configuration's `run` and `optimizer`. `accelerate` moves the work: the same
loop runs in one process, on many GPUs and on many nodes. Everything that is drawn at random depends on the seed and on a sample's place in the
endless order of samples alone, so a run that was interrupted goes on as if it had not been, and two processes see what one with the double
batch would see.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from latentsync.device import Compute, choose, memory_guard, peak_memory
from latentsync.errors import LatentSyncError, OutputError, UsageError, WeightsError
from latentsync.hub import locked
from latentsync.train import checkpoint
from latentsync.train.charts import draw
from latentsync.train.ema import EMA
from latentsync.train.log import History
from latentsync.train.watch import Watch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from latentsync.train.config import OptimizerConfig, RunConfig

T = TypeVar("T")
Batch = dict[str, Any]
Say = Callable[[str], None]
Show = Callable[[int, int, Mapping[str, float]], None]

PRECISION = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
BROKEN = 20  # steps in a row without a finite gradient before the run is given up: an overflow now and then is normal, this is not
MEMORY_ADVICE = (
    "a smaller run.batch with a larger run.accumulation (the same training)",
    "run.gradient_checkpointing=true",
    "run.dtype=bf16",
    "the preset stage2_efficient",
)


class Task(Protocol):
    """What is trained, and on what. Tasks hold the networks and the data; the loop knows neither."""

    name: str
    frames: int  # of one sample

    @property
    def sparse(self) -> Collection[str]:
        """Terms of which a batch may have none, and then gives NaN."""

    @property
    def network(self) -> nn.Module:
        """Its trainable parameters require gradients, the others do not."""

    def place(self, compute: Compute) -> None:
        """Bring the frozen networks to the device, in the precision of the run."""

    def batches(self, *, rank: int, world: int, start: int) -> Iterable[Batch]:
        """The endless training batches of one process, from micro-batch `start` on."""

    def held_out(self, *, rank: int, world: int) -> Iterable[Batch]:
        """The same few validation batches every time, this process's share of them."""

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Scalars of one batch; 'loss' is the one to go down."""

    def preview(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Something to look at, written to a folder (which may not exist yet), and what was measured on it. One process runs it."""

    def write(self, folder: Path, network: nn.Module) -> None:
        """Write the network and its description into a checkpoint's folder."""

    def read(self, folder: Path) -> None:
        """Put a checkpoint's network into `network`."""


class Position(NamedTuple):
    """Where a run stands when it begins or goes on."""

    step: int  # optimizer steps done
    folder: Path | None  # the checkpoint


@dataclass
class Outcome:
    """What a run did."""

    out: Path
    step: int  # steps done, all runs together
    stopped: bool = False  # by a signal, before the last step
    checkpoint: Path | None = None  # the last one
    bad: list[str] = field(default_factory=list)  # clips left out while training, with the reason
    row: dict[str, float] = field(default_factory=dict)  # what was logged last


def learning_rate(step: int, steps: int, settings: OptimizerConfig) -> float:
    """The rate of step 0, 1, ...: rises over `warmup` steps, then stays, or falls to zero at `steps` along half a cosine."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(task: Task, run: RunConfig, settings: OptimizerConfig, described: str, *, say: Say | None = None, show: Show | None = None) -> Outcome:
    """Train until `run.steps`, from where the run in `run.out` stands.

    `described` is the whole configuration as text, kept in every checkpoint. `say` hears words for people, `show` (step, steps, values of the
    last row) after every step; both in the main process only. A first SIGINT or SIGTERM ends the run after the step at work, with a
    checkpoint. Raises UsageError, InputError, OutputError (disk), WeightsError (checkpoint), DeviceError.
    """
    if not run.out:
        raise UsageError("where should the checkpoints go? Set run.out=FOLDER")
    out = Path(run.out).expanduser()
    accelerator, compute = _accelerator(run)
    main = accelerator.is_main_process
    tell: Say = say if say is not None and main else lambda _: None
    with contextlib.ExitStack() as stack:

        def enter() -> Position:
            _make(out)
            stack.enter_context(_alone(out))
            begin = _position(out, run)
            try:
                (out / "train.yaml").write_text(described, encoding="utf-8")
            except OSError as e:
                raise OutputError(f"cannot write {out / 'train.yaml'}: {e.strerror or e}; make room, or choose another run.out") from e
            return begin

        begin = _agreed(accelerator, enter)
        if begin.folder is not None and not begin.folder.is_dir():
            raise OutputError(f"this machine does not see {begin.folder}; the folder of a run must be shared by all that train")
        tell(f"{compute.reason}; {accelerator.num_processes} process{'es' * (accelerator.num_processes > 1)}")
        if begin.folder is not None:
            task.read(begin.folder)
            tell(f"goes on from step {begin.step}: {begin.folder}")
            for line in _differences(begin.folder, described):
                tell(f"note: {line}")
        stack.enter_context(memory_guard(compute, MEMORY_ADVICE))
        stop = stack.enter_context(_Stop())
        loop = _Loop(task, run, settings, described, out, accelerator, compute, begin, stop, tell, show if main else None)
        stack.callback(loop.close)
        return loop.go()


class _Loop:
    """One run. Kept apart from `train` so that its steps can be read one by one."""

    def __init__(
        self,
        task: Task,
        run: RunConfig,
        settings: OptimizerConfig,
        described: str,
        out: Path,
        accelerator: Accelerator,
        compute: Compute,
        begin: Position,
        stop: _Stop,
        tell: Say,
        show: Show | None,
    ) -> None:
        self.task, self.run, self.settings, self.described, self.out = task, run, settings, described, out
        self.accelerator, self.compute, self.stop, self.tell, self.show = accelerator, compute, stop, tell, show
        self.step = begin.step
        self.main = accelerator.is_main_process
        self.trained = [name for name, p in task.network.named_parameters() if p.requires_grad]
        trainable = [p for p in task.network.parameters() if p.requires_grad]
        if not trainable:
            raise UsageError("nothing is left to train: no parameter's name contains any of the patterns in `trainable`")
        task.place(compute)
        task.network.to(compute.device)
        task.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the activations are: faster, and so are the gradients
        task.network.train()
        self.bare = task.network  # outside every wrapper
        optimizer = torch.optim.AdamW(
            trainable,
            lr=settings.learning_rate,
            betas=(settings.betas[0], settings.betas[1]),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            # one pass over each tensor; the usual way on GPUs needs room for all weights once more
            fused=True,
        )
        self.ema = EMA(trainable, run.ema) if run.ema else None
        if run.compile:
            task.network.compile()
        self.network, self.optimizer = accelerator.prepare(task.network, optimizer)
        self.trainable = trainable
        self.outcome = Outcome(out, self.step, checkpoint=begin.folder)
        self.history = History(out, after=self.step, earlier=begin.folder) if self.main else None
        self.watch = Watch(task.name)
        self.meter = _Meter(task.sparse)
        self.broken = 0
        self.heard: list[tuple[str, str]] = []  # ("bad" or "notes", line), not yet said
        self.noted: set[str] = set()
        self.batches = iter(task.batches(rank=accelerator.process_index, world=accelerator.num_processes, start=self.step * run.accumulation))
        if begin.folder is not None:  # after all else, which may draw random numbers
            self._restore(begin.folder)

    def go(self) -> Outcome:
        """Step after step; a row, a validation and a checkpoint whenever their time has come."""
        run = self.run
        saved = self.step
        while self.step < run.steps:
            self._step()
            self.step += 1
            ended = self.step == run.steps or self._asked_to_stop()
            saves = ended or _due(self.step, run.checkpoint_every)
            # a row ends at a checkpoint too, so that what is logged does not depend on where a run was interrupted
            if saves or _due(self.step, run.log_every):
                self._row()
            with self.meter.paused():
                if _due(self.step, run.validate_every) or self.step == run.steps:
                    self._validate()
                if saves:
                    self._save()
                    saved = self.step
            if self.show is not None:
                self.show(self.step, run.steps, self.outcome.row)
            if ended:
                break
        self.outcome.step = self.step
        self.outcome.stopped = self.step < run.steps
        if saved != self.step:
            raise AssertionError("a run ends with a checkpoint")
        return self.outcome

    def close(self) -> None:
        """Let go of workers, logs and the accelerator's wrappers."""
        with _ended(self.batches):
            self.batches = iter(())
        if self.history is not None:
            self.history.close()
        self.bare.__dict__.pop("forward", None)  # accelerate puts its own in place of the method
        self.accelerator.free_memory()

    # The parts of a step.

    def _step(self) -> None:
        rate = learning_rate(self.step, self.run.steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for micro in range(self.run.accumulation):
            batch = self._next()
            last = micro == self.run.accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.network):
                terms = self.task.terms(self.network, batch)
                self.accelerator.backward(terms["loss"] / self.run.accumulation)
            self.meter.means.add(terms, batch["weight"].sum())
        norm = self.accelerator.clip_grad_norm_(self.trainable, self.settings.max_grad_norm)
        norm = float(norm) if norm is not None else math.nan
        # A norm of 0 means that no sample counted: all their clips were left out. AdamW would still move the weights by its momentum.
        skipped = not math.isfinite(norm) or norm == 0
        if not skipped or self.accelerator.scaler is not None:  # the scaler leaves out what is not finite itself, and learns from it
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None and not skipped:
            self.ema.update()
        self.meter.step(norm, rate, skipped, self.run.batch * self.run.accumulation * self.accelerator.num_processes * self.task.frames)
        self.broken = self.broken + 1 if skipped else 0
        if self.broken >= BROKEN:
            why, advice = (
                "no finite gradient",
                "Try run.dtype=bf16 or fp32, a lower optimizer.learning_rate, and `latentsync train check` on the data",
            )
            if norm == 0:
                why, advice = "no gradient: none of their clips could be read", "Are they still there? `latentsync train check` tells"
            raise LatentSyncError(
                f"{BROKEN} steps in a row, up to step {self.step + 1}, gave {why}, so nothing is learned any more; the last checkpoint in "
                f"{self.out / checkpoint.FOLDER} is good. {advice}"
            )

    def _next(self) -> Batch:
        began = time.perf_counter()
        batch = next(self.batches)
        self.meter.waited(time.perf_counter() - began)
        self._hear(batch)
        return {k: v.to(self.compute.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _hear(self, batch: Batch) -> None:
        """Take out of a batch what is to be said of its clips; with many processes that waits for all of them to meet."""
        self.heard += [(kind, line) for kind in ("bad", "notes") for line in batch.pop(kind, ())]
        if self.accelerator.num_processes == 1:
            self._pass_on()

    def _pass_on(self) -> None:
        """Name and count the clips that any process left out, and say their notes; each once."""
        heard, self.heard = self._gathered(self.heard), []
        for kind, line in heard:
            if kind == "bad" and line not in self.outcome.bad:
                self.outcome.bad.append(line)
                self.tell(f"left out a clip that cannot be read ({len(self.outcome.bad)} so far): {line}")
            elif kind == "notes" and line not in self.noted:
                self.noted.add(line)
                self.tell(f"note: {line}")

    def _gathered(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order of their ranks."""
        from accelerate.utils import gather_object

        return list(gather_object(items))

    def _asked_to_stop(self) -> bool:
        """Whether any process was; all must agree, since they save together."""
        if self.accelerator.num_processes == 1:
            return self.stop.asked
        flag = torch.tensor(float(self.stop.asked), device=self.compute.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _row(self) -> None:
        values = self.meter.row(self.accelerator, self.compute.device)
        values["memory_gb"] = peak_memory(self.compute.device) / 1e9
        self._pass_on()
        values["bad_clips"] = float(len(self.outcome.bad))
        self.outcome.row = values
        self._log(values, "train")

    def _log(self, values: dict[str, float], split: str) -> None:
        if self.history is not None:
            self.history.row(self.step, split, values)
        for warning in self.watch.look(self.step, split, values):
            self.tell(f"warning: {warning}")

    def _validate(self) -> None:
        """Mean terms over the held-out batches, and pictures or videos of them; with the averaged weights where there are some."""
        self.bare.eval()
        with torch.no_grad(), self.ema.swapped() if self.ema is not None else contextlib.nullcontext():
            means = _Means(self.task.sparse)
            with _ended(iter(self.task.held_out(rank=self.accelerator.process_index, world=self.accelerator.num_processes))) as batches:
                for batch in batches:
                    self._hear(batch)
                    placed = {k: v.to(self.compute.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                    means.add(self.task.terms(self.bare, placed), placed["weight"].sum())
                self._pass_on()
            values = means.take(self.accelerator, self.compute.device)
            folder = self.out / "validation" / f"step-{self.step:08d}"
            if self.main:
                values |= self.task.preview(self.bare, folder)
        self.bare.train()
        if values:
            self._log(values, "validation")
            self.tell(f"step {self.step}: validation " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))
        if self.history is not None:
            draw(self.history.path, self.out / "charts.png")
        self.accelerator.wait_for_everyone()

    # What a checkpoint holds.

    def _save(self) -> None:
        states = self._gathered([checkpoint.RandomState.capture(self.compute.device)])
        if self.main:
            self.outcome.checkpoint = checkpoint.save(
                self.out / checkpoint.FOLDER,
                self.step,
                lambda folder: self._write(folder, states),
                keep=self.run.keep,
                keep_every=self.run.keep_every,
            )
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path, states: list[Any]) -> None:
        self.task.write(folder, self.bare)
        if self.ema is not None:
            with self.ema.swapped():
                (folder / "ema").mkdir()
                self.task.write(folder / "ema", self.bare)
        (folder / "train.yaml").write_text(self.described, encoding="utf-8")
        if self.history is not None:
            self.history.copy(folder)
        scaler = self.accelerator.scaler
        checkpoint.save_tensors(
            folder / "trainer.pt",
            {
                "step": self.step,
                "samples": self.step * self.run.accumulation * self.run.batch * self.accelerator.num_processes,
                "trained": self.trained,
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
                "ema": self.ema.state_dict() if self.ema is not None else {},
                "broken": self.broken,
                "bad": self.outcome.bad,
            },
        )
        for rank, state in enumerate(states):
            checkpoint.save_tensors(folder / f"random-{rank:04d}.pt", state)

    def _restore(self, folder: Path) -> None:
        state = checkpoint.load_tensors(folder / "trainer.pt")
        differs = sorted(set(state["trained"]) ^ set(self.trained))
        if differs:
            raise UsageError(
                f"{folder} is of a run that trained other parameters, such as {differs[0]}; it goes on with the `trainable` that it had. "
                f"To train others from here, begin anew: start={folder} and another run.out"
            )
        samples = self.step * self.run.accumulation * self.run.batch * self.accelerator.num_processes
        if state["samples"] != samples:
            self.tell(f"note: the batch is another one than before, so the samples go on from {samples} instead of {state['samples']}")
        for given, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            given |= {key: value for key, value in own.items() if key != "params"}  # what the configuration says now holds, not what it said then
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        self.broken = state["broken"]
        self.outcome.bad = list(state["bad"])
        random = folder / f"random-{self.accelerator.process_index:04d}.pt"
        if random.is_file():
            checkpoint.RandomState.restore(checkpoint.load_tensors(random), self.compute.device)


class _Means:
    """Sums of terms and of the samples that they are means over. They stay on the device until they are asked for: reading one waits for it."""

    def __init__(self, sparse: Collection[str]) -> None:
        self._sparse = sparse
        self._sums: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor], samples: Tensor | float) -> None:
        """Take in a batch's terms, each the mean over so many samples; NaN in one of `sparse` says that the batch had none for it."""
        for name, value in terms.items():
            value = value.detach().float()
            count = torch.as_tensor(samples, dtype=torch.float32, device=value.device)
            if name in self._sparse:
                count, value = count * ~value.isnan(), value.nan_to_num()
            pair = torch.stack([value * count, count])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def take(self, accelerator: Accelerator, device: torch.device) -> dict[str, float]:
        """The means over all processes, some of which may have had no batch; the sums begin anew."""
        from accelerate.utils import gather_object

        names = list(dict.fromkeys(gather_object(list(self._sums))))
        none = torch.zeros(2, device=device)
        totals = torch.stack([self._sums.get(name, none).to(device) for name in names]) if names else none[None]
        self._sums = {}
        pairs = accelerator.reduce(totals, "sum").tolist()
        return {name: total / count for name, (total, count) in zip(names, pairs, strict=False) if count}


class _Meter:
    """What is measured since the last row."""

    def __init__(self, sparse: Collection[str] = ()) -> None:
        self.means = _Means(sparse)
        self._clear()

    def _clear(self) -> None:
        self._steps = self._skipped = self._frames = 0
        self._wait = self._norm = self._rate = 0.0
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within counts in no row."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def waited(self, seconds: float) -> None:
        self._wait += seconds

    def step(self, norm: float, rate: float, skipped: bool, frames: int) -> None:
        self._steps += 1
        self._skipped += skipped
        self._norm += norm if not skipped else 0.0
        self._rate = rate
        self._frames += frames

    def row(self, accelerator: Accelerator, device: torch.device) -> dict[str, float]:
        """Means since the last row (terms over all processes), and everything begins anew."""
        values = self.means.take(accelerator, device)
        seconds = max(time.perf_counter() - self._began, 1e-9)
        values |= {
            "learning_rate": self._rate,
            "grad_norm": self._norm / max(1, self._steps - self._skipped),
            "skipped_steps": float(self._skipped),
            "seconds_per_step": seconds / self._steps,
            "data_seconds_per_step": self._wait / self._steps,
            "frames_per_second": self._frames / seconds,
        }
        self._clear()
        return values


@contextlib.contextmanager
def _ended(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """Afterwards their workers have ended, even if a traceback goes on knowing of them."""
    try:
        yield batches
    finally:
        if hasattr(batches, "close"):  # a generator
            batches.close()


class _Stop:
    """Within it, a first SIGINT or SIGTERM is only noted; a second one does what it did before."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: object) -> None:
        self.asked = True
        signal.signal(number, self._before.pop(number))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _accelerator(run: RunConfig) -> tuple[Accelerator, Compute]:
    """accelerate's view of this process, in the precision that `run` asks for, and ours of its device."""
    try:
        from accelerate import Accelerator, PartialState
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
    except ImportError as e:
        raise UsageError('training needs the packages of the extra "train": pip install "latentsync[train]"') from e
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    compute = choose(run.device, run.dtype)
    if run.dtype == "auto" and compute.device.type == "cpu":
        # Not by measurement, as elsewhere: a run that is resumed must find the precision that it had.
        compute = Compute(compute.device, torch.float32, "cpu; fp32: the exact one (run.dtype=bf16 is faster on CPUs that have it)")
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not launched and compute.device.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(compute.device)
    # accelerate keeps its state for the life of the process; a second run may want another precision or device
    AcceleratorState._reset_state(reset_partial_state=not launched and not torch.distributed.is_initialized())
    # validation videos are made by one process while the others wait
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    lean = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # or every gradient would be held twice
    accelerator = Accelerator(mixed_precision=PRECISION[compute.dtype], cpu=compute.device.type == "cpu", kwargs_handlers=[patient, lean])
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UsageError(f"training is not made for {accelerator.distributed_type.value}; launch it with --multi_gpu, or with torchrun")
    if launched:
        compute = Compute(PartialState().device, compute.dtype, f"{PartialState().device} for each process, {compute.dtype_name}")
    return accelerator, compute


def _agreed(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What the main process decides, in every process; or the error that it met, so that none waits for it."""
    if accelerator.num_processes == 1:
        return decide()
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            told = [decide()]
        except LatentSyncError as e:
            told = [e]
    broadcast_object_list(told)
    if isinstance(told[0], LatentSyncError):
        raise told[0]
    return cast("T", told[0])


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"cannot make the folder {out}: {e.strerror or e}; choose another run.out") from e


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two runs must not write the same checkpoints."""

    def refuse() -> None:
        raise OutputError(f"another training is writing to {out}; wait for it, stop it, or choose another run.out")

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out / "training", refuse))
        except WeightsError as e:  # the lock is that of downloads, and so are its words
            raise OutputError(f"cannot write in {out}: {e.__cause__}; choose another run.out") from e
        yield


def _position(out: Path, run: RunConfig) -> Position:
    if run.resume not in ("auto", "never"):
        folder = checkpoint.find(Path(run.resume).expanduser())
        return Position(checkpoint.step_of(folder), folder)
    latest = checkpoint.latest(out / checkpoint.FOLDER)
    if latest is None:
        return Position(0, None)
    if run.resume == "never":
        raise OutputError(f"{out} holds checkpoints of an earlier run; choose another run.out, or run.resume=auto to go on from {latest.name}")
    return Position(checkpoint.step_of(latest), latest)


def _differences(folder: Path, described: str) -> list[str]:
    """What the configuration says otherwise than the one that the checkpoint was made with."""
    import yaml

    def flat(values: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(values, dict):
            return {prefix: values}
        return {k: v for key, value in values.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}

    file = folder / "train.yaml"
    if not file.is_file():
        return []
    before, now = flat(yaml.safe_load(file.read_text(encoding="utf-8"))), flat(yaml.safe_load(described))
    free = ("run.out", "run.resume", "run.device")  # neither changes what is computed
    keys = [k for k in dict.fromkeys([*before, *now]) if before.get(k) != now.get(k) and k not in free]
    return [f"{k} was {before.get(k, 'the default')}, now it is {now.get(k, 'the default')}" for k in keys]


def is_main() -> bool:
    """Whether this is the process that speaks and writes; before accelerate is asked."""
    return os.environ.get("RANK", "0") == "0"
