"""An iterator that works ahead of who reads it."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Reads an iterator, whose items a thread takes while the ones before are still worked on.

    A context, at whose end the thread has ended, too. What the thread may wait for should be closed before: within it.

    Args:
        most: items that wait to be read.
    """

    def __init__(self, most: int) -> None:
        self._waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(most)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def read(self, items: Iterator[T]) -> Iterator[T]:
        """The items, once; they are used by the thread alone, and what it raises is raised here."""
        self._thread = threading.Thread(target=self._work, args=(items,), daemon=True)
        self._thread.start()
        while True:
            item, ending = self._waiting.get()
            if isinstance(ending, StopIteration):
                return
            if ending is not None:
                raise ending
            yield item  # type: ignore[misc]  # an item, as it is not the end

    def _work(self, items: Iterator[T]) -> None:
        ending: BaseException = StopIteration()
        try:
            for item in items:
                self._waiting.put((item, None))
                if self._stopped.is_set():
                    break
        except BaseException as error:
            ending = error
        self._waiting.put((None, ending))

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread and self._thread.is_alive():  # it may wait for room
            with contextlib.suppress(queue.Empty):
                self._waiting.get(timeout=0.05)
