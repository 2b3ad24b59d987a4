"""The same tasks on a Ray cluster. Each runs in a process of its own there, under the same limits as here; a task whose machine died runs again."""

from __future__ import annotations

import math
import os
from typing import Any

from latentsync.errors import DeviceError, LatentSyncError, UsageError
from latentsync.prepare.config import Running
from latentsync.prepare.pool import Done, Failure, Pool, Task
from latentsync.prepare.work import Setting

_MACHINE_DEATHS = 3  # that a task may see before it is given up
_FACTORY = "latentsync.prepare.work:worker"


class RayCrew:
    """As `Pool`, on a cluster: "auto" is the one that runs here, or else one of this machine alone; anything else is an address.

    Raises UsageError where Ray is not installed, DeviceError where there is no such cluster.
    """

    def __init__(self, setting: Setting, running: Running, say: Any, factory: str = _FACTORY) -> None:
        try:
            import ray
        except ImportError as e:
            raise UsageError('--cluster takes the package ray; run: pip install "latentsync[cluster]"') from e
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, running)
        whole = ray.cluster_resources()
        self._slots = running.jobs or max(1, int(whole.get("CPU", 1)))
        share = 0.0 if running.devices == ("cpu",) else gpu_share(self._slots, whole.get("GPU", 0.0))
        say(f"Ray: {len([n for n in ray.nodes() if n['Alive']])} machines, {whole.get('CPU', 0):.0f} cores, {whole.get('GPU', 0):.0f} GPUs")
        self._do = ray.remote(num_cpus=1, num_gpus=share, max_retries=_MACHINE_DEATHS)(do)
        self._factory, self._setting = factory, ray.put(setting)
        self._running: dict[Any, Task] = {}

    @property
    def free(self) -> int:
        """How many tasks can be taken."""
        return max(0, self._slots - len(self._running))

    @property
    def busy(self) -> int:
        """How many tasks are being done, or wait for a core."""
        return len(self._running)

    def submit(self, task: Task) -> None:
        """Give a task to the cluster."""
        self._running[self._do.remote(self._factory, self._setting, task)] = task

    def wait(self, timeout: float | None = None) -> list[Done]:
        """As `Pool.wait`."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), timeout=timeout)
        found = []
        for one in ready:
            task = self._running.pop(one)
            try:
                done: Done = self._ray.get(one)
            except self._ray.exceptions.RayTaskError as e:
                if isinstance(e.cause, LatentSyncError):
                    raise e.cause from e
                done = Done(task, failure=Failure("fault", "cluster", f"unexpected {type(e.cause).__name__}: {e.cause}"))
            except self._ray.exceptions.RayError as e:
                done = Done(task, failure=Failure("died", "cluster", " ".join(str(e).split())[:300]))
            found.append(Done(task, done.value, done.failure))
        return found

    def close(self) -> None:
        """Call off what is running, and leave the cluster."""
        for one in self._running:
            self._ray.cancel(one, force=True)
        self._running.clear()
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()


def gpu_share(tasks: int, gpus: float) -> float:
    """Of one GPU, for each of so many tasks at once: such that all of them find a place. Ray counts in ten-thousandths."""
    if gpus < 1:
        return 0.0
    return math.floor(10000 / max(1, math.ceil(tasks / math.floor(gpus)))) / 10000


def _connect(ray: Any, running: Running) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if running.cluster != "auto":
            ray.init(address=running.cluster, **quiet)
            return
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:
            ray.init(num_cpus=running.jobs or None, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as e:
        raise DeviceError(f"no Ray cluster at {running.cluster}: {e}; start one with `ray start --head`, or pass --cluster auto") from e


_pools: dict[tuple[Any, ...], Pool] = {}


def do(factory: str, setting: Setting, task: Task) -> Done:
    """Runs in a process of Ray: hands the task to a process of its own, which can be cut off, and which is kept for the next task."""
    key = (factory, setting, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if key not in _pools:
        for pool in _pools.values():
            pool.close()
        _pools.clear()
        _pools[key] = Pool(factory, setting, 1)
    pool = _pools[key]
    pool.submit(task)
    while True:
        for done in pool.wait(None):
            return done
