"""Who may use one SQLite file in this process: one writer at a time, and readers beside it while they can.

SQLite lets others read while a writer works, but not while it puts its pages into the file. Whoever meets it then gets
"locked" and has to ask again and again; here both wait for their turn instead.
"""

from __future__ import annotations

from threading import Condition, Lock
from typing import Final

_gates: Final[dict[str, FileGate]] = {}
_making: Final = Lock()


class FileGate:
    """The gate to one file. Neither readers nor writers may come in a second time before they leave."""

    def __init__(self) -> None:
        self._writer = Lock()
        self._changed = Condition()
        self._readers = 0
        self._shut = False

    def enter_reader(self) -> None:
        """Wait until no writer has shut the gate, and come in."""
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._readers += 1

    def leave_reader(self) -> None:
        """Go."""
        with self._changed:
            self._readers -= 1
            self._changed.notify_all()

    def enter_writer(self) -> None:
        """Wait until the writer before has left, and come in."""
        self._writer.acquire()

    def shut(self) -> None:
        """Let no more readers in and wait until all have left; for the writer only, and until it leaves."""
        with self._changed:
            self._shut = True
            self._changed.wait_for(lambda: self._readers == 0)

    def leave_writer(self) -> None:
        """Open the gate and go."""
        with self._changed:
            self._shut = False
            self._changed.notify_all()
        self._writer.release()


def gate_of(file: str) -> FileGate:
    """Return the gate to a file, the same for everybody in this process."""
    with _making:
        return _gates.setdefault(file, FileGate())
