"""Stages that run side by side: a source read ahead in a thread, and a sink fed from behind one, with bounded queues between.

The stage in the middle stays in the caller's thread, so Ctrl-C reaches it at once. An error on either side surfaces there through `check`,
`next` or `put`; leaving the with-block stops both sides and joins their threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_SHORT, _LONG = 0.0005, 0.02  # seconds between looks at a full or empty queue: soon at first, then seldom
_END = object()


class _Stage(Generic[T]):
    """One worker thread and one bounded queue, with one thread at each end.

    The queue is a deque that is looked at again and again, not `queue.Queue`: a Ctrl-C that strikes the waiting thread inside the locks of
    that one leaves them locked for ever. A deque's ends are atomic, and a sleep may be interrupted anywhere.
    """

    def __init__(self, size: int, name: str) -> None:
        self._queue: deque[Any] = deque()
        self._size = size
        self._stopped = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"latentsync-{name}", daemon=True)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as e:  # noqa: BLE001  carried over to the caller's thread, whatever it is
            self._failure = e

    def _work(self) -> None:
        raise NotImplementedError

    def _offer(self, item: object) -> bool:
        """Put, waiting while the queue is full; False once the stage is stopped."""
        pause = _SHORT
        while not self._stopped:
            if len(self._queue) < self._size:
                self._queue.append(item)
                return True
            self._check_worker()
            time.sleep(pause)
            pause = min(2 * pause, _LONG)
        return False

    def _take(self) -> Any:
        """Get, waiting while the queue is empty; _END once the stage is stopped."""
        pause = _SHORT
        while not self._stopped:
            if self._queue:
                return self._queue.popleft()
            self._check_worker()
            time.sleep(pause)
            pause = min(2 * pause, _LONG)
        return _END

    def _check_worker(self) -> None:
        """Hook: called while waiting, so that the waiting side hears of a failed worker."""

    def check(self) -> None:
        """Raise what the worker raised, if it did."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End the worker without waiting for what is queued, and join it."""
        self._stopped = True
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()


class Ahead(_Stage[T]):
    """An iterator over `source`, which runs in a thread of its own and stays at most `size` items in front.

    Use it as a context manager: leaving stops the thread and closes the source.
    """

    def __init__(self, source: Iterator[T], size: int, name: str = "ahead") -> None:
        super().__init__(size, name)
        self._source = source

    def _work(self) -> None:
        try:
            for item in self._source:
                if not self._offer(item):
                    return
            self._offer(_END)
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()

    def _check_worker(self) -> None:
        if self._thread is not threading.current_thread() and not self._queue:
            self.check()

    def __enter__(self) -> Ahead[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._take()
            if item is _END:
                return
            yield item


class Behind(_Stage[T]):
    """A sink: items `put` here are consumed in order by a thread of its own, at most `size` waiting.

    Leaving the with-block normally waits until all are consumed; leaving it with an error drops what waits.
    """

    def __init__(self, consume: Callable[[T], None], size: int, name: str = "behind") -> None:
        super().__init__(size, name)
        self._consume = consume

    def _work(self) -> None:
        while (item := self._take()) is not _END:
            self._consume(item)

    def _check_worker(self) -> None:
        if self._thread is not threading.current_thread():
            self.check()

    def put(self, item: T) -> None:
        """Queue one item; raises what the consumer raised, if it did."""
        self.check()
        self._offer(item)

    def __enter__(self) -> Behind[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._offer(_END)
                while self._thread.is_alive():  # short waits, so that Ctrl-C is heard
                    self._thread.join(_LONG)
        finally:
            self.stop()
        if kind is None:
            self.check()
