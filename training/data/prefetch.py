"""Prefetch: run an iterator in a background thread, a few items ahead of its consumer.

Reading and decoding then cost the training thread nothing as long as they keep up with it.
"""

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

THREAD_NAME = "prefetch"


class _End:
    """Last item of the queue: the error that ended the producer, or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(make: Callable[[], Generator[T, None, None]], num_items: int) -> Generator[T, None, None]:
    """Yield what ``make()`` yields, made at most ``num_items`` ahead in one background thread, which starts at once.

    Closing this generator, or leaving it to be collected, closes the one in the thread and ends the thread.

    Raises:
        Whatever the iterator raises, in its place among the items.
    """
    items = _prefetch(make, num_items)
    next(items)  # a generator does nothing, its cleaning up included, before it is first asked
    return items  # pyright: ignore[reportReturnType]


def _prefetch(make: Callable[[], Generator[T, None, None]], num_items: int) -> Generator[T | None, None, None]:
    """Yield None once the thread runs, then the items of ``prefetch``."""
    ready: queue.Queue[T | _End] = queue.Queue(num_items)
    stop = threading.Event()

    def produce() -> None:
        error = None
        items = make()
        try:
            for item in items:
                ready.put(item)
                if stop.is_set():
                    break
        except BaseException as raised:
            error = raised
        finally:
            items.close()
        ready.put(_End(error))

    thread = threading.Thread(target=produce, name=THREAD_NAME, daemon=True)
    thread.start()
    ended = False
    try:
        yield None
        while True:
            item = ready.get()
            if isinstance(item, _End):
                ended = True
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        while not ended:  # a producer waiting for room gets it, sees ``stop`` and says goodbye
            ended = isinstance(ready.get(), _End)
        thread.join()
