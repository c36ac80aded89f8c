"""Start-up hook for lm-eval 0.4.13 and older, which read no entry points: see bridge.py.

Runs at every start of Python, compiled anew where bytecode is not written: few lines, no import but `sys`.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any

WATCHED = ("lm_eval.models", "lm_eval.tasks.manager", "lm_eval.loggers.evaluation_tracker", "lm_eval._cli.harness")


class Finder:
    def __init__(self) -> None:
        self.asking: set[str] = set()

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "ModuleSpec | None":
        if name not in WATCHED or name in self.asking:  # asking: another such finder is asking us back
            return None
        self.asking.add(name)
        try:
            from uqharness.harness.bridge import find_and_watch

            return find_and_watch(self, name, path, target)
        finally:
            self.asking.discard(name)


def install() -> None:
    """Insert the finder first in `sys.meta_path`, once."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
