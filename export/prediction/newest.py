"""Hand the newest item from the thread that makes items to the one that uses them; one that comes too early is replaced."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Newest(Generic[T]):
    """A queue of one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: T | None = None
        self.replaced, self.ended = 0, False

    def put(self, item: T) -> None:
        """Make an item the newest."""
        with self._changed:
            self.replaced += self._item is not None
            self._item = item
            self._changed.notify_all()

    def take(self) -> T | None:
        """Wait for an item newer than the last one taken; None where none follows."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self.ended)
            item, self._item = self._item, None
            return item

    def clear(self) -> None:
        """Forget an item that nobody took."""
        with self._changed:
            self._item = None

    def end(self) -> None:
        """Say that no item follows."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()
