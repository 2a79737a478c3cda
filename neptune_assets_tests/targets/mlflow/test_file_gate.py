from __future__ import annotations

import threading
from collections.abc import Callable

from neptune_assets.targets.mlflow.database import FileGate, gate_of

PATIENCE = 60.0


def begun(step: Callable[[], None]) -> threading.Event:
    """Do something in a thread of its own; the event tells when it is done."""
    done = threading.Event()

    def work() -> None:
        step()
        done.set()

    threading.Thread(target=work, daemon=True).start()
    return done


def test_readers_come_in_beside_each_other_and_beside_a_writer() -> None:
    gate = FileGate()
    gate.enter_writer()
    gate.enter_reader()
    assert begun(gate.enter_reader).wait(PATIENCE)


def test_writers_come_one_after_the_other() -> None:
    gate = FileGate()
    gate.enter_writer()
    second = begun(gate.enter_writer)
    assert not second.wait(0.05)
    gate.leave_writer()
    assert second.wait(PATIENCE)


def test_a_shut_gate_waits_for_readers_and_keeps_others_out_until_the_writer_leaves() -> None:
    gate = FileGate()
    gate.enter_writer()
    gate.enter_reader()
    shut = begun(gate.shut)
    assert not shut.wait(0.05)
    late = begun(gate.enter_reader)
    assert not late.wait(0.05)
    gate.leave_reader()
    assert shut.wait(PATIENCE)
    assert not late.wait(0.05)
    # Shutting it again changes nothing.
    gate.shut()
    gate.leave_writer()
    assert late.wait(PATIENCE)


def test_one_gate_for_one_file() -> None:
    assert gate_of("/a") is gate_of("/a")
    assert gate_of("/a") is not gate_of("/b")
