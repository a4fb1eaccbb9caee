"""An iterator that works ahead of who reads it."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def ahead(items: Iterator[T], most: int) -> Iterator[Iterator[T]]:
    """The items, which a thread takes from their iterator while the ones before are still worked on.

    Args:
        items: used by the thread alone; what it raises is raised where it is read.
        most: items that wait to be read.
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(most)
    stopped = threading.Event()

    def work() -> None:
        ending: BaseException = StopIteration()
        try:
            for item in items:
                waiting.put((item, None))
                if stopped.is_set():
                    break
        except BaseException as error:
            ending = error
        waiting.put((None, ending))

    def read() -> Iterator[T]:
        while True:
            item, ending = waiting.get()
            if isinstance(ending, StopIteration):
                return
            if ending is not None:
                raise ending
            yield item  # type: ignore[misc]  # an item, as it is not the end

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        stopped.set()
        while thread.is_alive():  # it may wait for room
            with contextlib.suppress(queue.Empty):
                waiting.get(timeout=0.05)
        thread.join()
