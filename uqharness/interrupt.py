"""Handle Ctrl-C and SIGTERM: both unwind the program, which ends with one line and the signal's exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, as KeyboardInterrupt is by Ctrl-C, so that both run the same clean-up."""


@contextlib.contextmanager
def catch_sigterm(wanted: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Raise `Terminated` on SIGTERM in the main thread, inside this context, if `wanted` agrees."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # only the main thread may, and somebody else's handler stays
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends a program that hangs
        if not wanted():
            os.kill(os.getpid(), number)
        raise Terminated

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def describe(stop: KeyboardInterrupt) -> tuple[str, int]:
    """Return (message, exit code) of an interrupted program."""
    word, code = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
    return "; ".join([word, *map(str, stop.args)]), code
