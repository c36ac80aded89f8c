"""The two ways in which a command of ours ends badly: bad input (exit code 2) and a failed run (exit code 1)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UQError(Exception):
    """Base of our errors: one line that says what was wrong, what was found and what to do."""

    exit_code = 1


class InputError(UQError):
    """The user's input cannot be used as it is (exit code 2)."""

    exit_code = 2


class RunError(UQError):
    """The input was fine but the run failed (exit code 1)."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean x?)', or nothing when no name is close. Hyphens and underscores do not count."""
    plain = {re.sub("[-_]", "", name): name for name in sorted(known, reverse=True)}
    close = difflib.get_close_matches(re.sub("[-_]", "", word[:200]), sorted(plain), n=1, cutoff=0.6)
    return f" (did you mean {plain[close[0]]}?)" if close else ""
