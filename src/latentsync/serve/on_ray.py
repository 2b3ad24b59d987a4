"""The same service on a Ray cluster: the routes in one deployment of Ray Serve, the workers in another, as many as there are GPUs.

They meet in the folder of jobs and in the store, as the processes of one machine do, so both must be in reach of every machine: a shared disk, and
a database server where there are several machines. Ray starts what dies anew; a job whose worker is gone is done by another.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentsync.errors import DeviceError, UsageError
from latentsync.jobs import Desk, Limits
from latentsync.jobs.worker import Setting, work

if TYPE_CHECKING:
    from fastapi import FastAPI

    from latentsync.serve.settings import Settings

NAME = "latentsync"  # of the application; that of the workers has a tail
LEAVE = 30.0  # seconds a worker has to put its job back
PATIENT = {"health_check_period_s": 10.0, "health_check_timeout_s": 120.0}  # loading a model keeps the process from answering


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where jobs are kept and what may be asked for: the arguments of a `Desk`, the same on every machine."""

    root: Path
    models: tuple[str, ...]
    store_url: str | None = None
    limits: Limits = field(default_factory=Limits)
    dtype: str = "auto"
    home: Path | None = None

    def desk(self) -> Desk:
        """A desk without workers of its own."""
        return Desk(self.root, store_url=self.store_url, limits=self.limits, models=self.models, dtype=self.dtype, home=self.home, workers=False)


class Hands:
    """One replica of the workers: a worker in a thread of a process that Ray looks after."""

    def __init__(self, setting: Setting) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=work, args=(setting, self._stop), name="latentsync-worker", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that raises."""
        if not self._thread.is_alive():
            raise RuntimeError("the worker has ended")

    def __del__(self) -> None:
        self._stop.set()
        self._thread.join(LEAVE)


@contextmanager
def serving(
    place: Place,
    settings: Settings,
    *,
    cluster: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    root_path: str = "",
    workers: int = 0,
) -> Iterator[int]:
    """The service, until the block ends; gives the number of its workers.

    cluster: "auto" is the one that runs here, or else one of this machine alone; anything else is an address. workers: 0 is one for each GPU, or
    one where there are none. Raises UsageError without Ray or where the store cannot be shared, DeviceError where there is no such cluster or it
    does not start the service.
    """
    try:
        import ray
        from ray import serve
    except ImportError as e:
        raise UsageError('--ray takes the package ray with Ray Serve; run: pip install "latentsync[serve-cluster]"') from e
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, cluster)
    try:
        machines = sum(1 for node in ray.nodes() if node["Alive"])
        if machines > 1 and (place.store_url is None or place.store_url.startswith("sqlite")):
            raise UsageError(
                f"the cluster has {machines} machines: SQLite serves one only. Pass --store with the address of a database server, and --data with a "
                "folder that every machine sees"
            )
        whole = ray.cluster_resources()
        gpus = int(whole.get("GPU", 0))
        workers = workers or max(1, gpus)
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port, "root_path": root_path})
            serve.run(_hands(serve, place, workers, gpus, whole.get("CPU", 1.0)), name=f"{NAME}-workers", route_prefix=None)
            serve.run(_front(serve, place, settings), name=NAME, route_prefix="/")
        except (RuntimeError, TimeoutError, ValueError) as e:
            raise DeviceError(f"Ray Serve did not start the service: {' '.join(str(e).split())[:500]}") from e
        try:
            yield workers
        finally:
            serve.shutdown()
    finally:
        if ours:
            ray.shutdown()


def _hands(serve: Any, place: Place, workers: int, gpus: int, cores: float) -> Any:
    setting = place.desk().setting("auto")
    needs = {"num_cpus": 1, "num_gpus": min(1.0, gpus / workers)} if gpus else {"num_cpus": max(1, int(cores / workers))}
    deployment = serve.deployment(Hands).options(
        name="worker", num_replicas=workers, ray_actor_options=needs, graceful_shutdown_timeout_s=LEAVE, **PATIENT
    )
    return deployment.bind(setting)


def _front(serve: Any, place: Place, settings: Settings) -> Any:
    def build() -> FastAPI:  # in the replica
        from latentsync.serve.api import create_app

        desk = place.desk().start()
        app = create_app(desk, settings)
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(it: FastAPI) -> AsyncIterator[Any]:
            try:
                async with inner(it) as state:
                    yield state
            finally:
                desk.close()

        app.router.lifespan_context = lifespan
        return app

    return serve.deployment(serve.ingress(build)()).options(name="service", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000).bind()


def _connect(ray: Any, cluster: str) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if cluster != "auto":
            ray.init(address=cluster, **quiet)
            return
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:
            ray.init(include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as e:
        raise DeviceError(f"no Ray cluster at {cluster}: {e}; start one with `ray start --head`, or pass --ray auto") from e
