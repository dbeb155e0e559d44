"""Let the pictures of a video come by the clock, as a camera's do."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

from export.errors import HyctasError
from export.prediction.frame_source import Frame, Video
from export.prediction.newest import Newest


class ClockedVideo:
    """A video whose picture number i is due at i / pace; a thread reads it then, and one that nobody took is replaced by the next.

    It begins again at its end. Reading counts into the time since a picture was due. Where reading takes longer than a period,
    the numbers that became due meanwhile have no picture: they are dropped as well.

    Args:
        video: what is read.
        pace: pictures per second.
    """

    def __init__(self, video: Video, pace: float) -> None:
        self.name, self.video, self.pace = video.name, video, pace
        self.skipped = 0
        self.notes: list[str] = video.notes

    def __iter__(self) -> Generator[Frame]:
        slot, stop = Newest[Frame](), threading.Event()
        thread = threading.Thread(target=self._read, args=(slot, stop), name="video", daemon=True)
        thread.start()
        try:
            while (frame := slot.take()) is not None:
                yield frame
        finally:
            stop.set()
            thread.join()
            if self.skipped:
                note = f"{self.name}: reading alone does not keep up with {self.pace:g} frames per second"
                self.notes += [note] if note not in self.notes else []

    def close(self) -> None:
        pass

    def _read(self, slot: Newest[Frame], stop: threading.Event) -> None:
        start, number = time.monotonic(), 0
        try:
            while not stop.is_set():
                before, pictures = number, iter(self.video)
                while True:
                    due = start + number / self.pace
                    if stop.wait(max(0.0, due - time.monotonic())):
                        return
                    frame = next(pictures, None)
                    if not isinstance(frame, Frame):
                        break
                    slot.put(Frame(frame.picture, frame.path, frame.read_ms, due, number))
                    newest = max(number + 1, int((time.monotonic() - start) * self.pace))
                    self.skipped += newest - number - 1
                    number = newest
                if number == before:
                    return
        except HyctasError as error:  # the file was replaced or removed meanwhile
            self.notes.append(str(error))
        finally:
            slot.end()
