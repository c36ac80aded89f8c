"""The two kinds of errors: bad input (exit code 2) and a failed run (exit code 1)."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any


class UQError(Exception):
    """Base of our errors: one line that says what is wrong, what was found and what to do."""

    exit_code = 1


class InputError(UQError):
    """The user's input cannot be used as it is (exit code 2)."""

    exit_code = 2


class RunError(UQError):
    """The input was valid but the run failed (exit code 1)."""

    exit_code = 1


def of_system(error: BaseException) -> UQError | None:
    """Convert an error of the operating system to one of ours; return None for other errors.

    Libraries wrap a full disk in errors of their own, so causes are checked too.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL or any(text in str(seen) for text in _FULL_TEXTS):
            place = f"{seen.filename}: " if isinstance(seen, OSError) and seen.filename else "output "
            reason = os.strerror(seen.errno) if isinstance(seen, OSError) and seen.errno else "No space left on device"
            return RunError(f"{place}cannot be written: {reason}; free some space or write elsewhere, and run again")
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, OSError) and error.errno in _REFUSED:
        name = str(error.filename or "a file")
        shown = name if len(name) <= 100 else f"{name[:99]}…"
        return InputError(f"{shown}: {os.strerror(error.errno)}; choose another location, or change its permissions")
    return None


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The last two are torch.save's.
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", ". unexpected pos ")
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean x?)', or '' if no name is close. Hyphens and underscores do not count."""
    plain = {re.sub("[-_]", "", name): name for name in sorted(known, reverse=True)}
    close = difflib.get_close_matches(re.sub("[-_]", "", word[:200]), sorted(plain), n=1, cutoff=0.6)
    return f" (did you mean {plain[close[0]]}?)" if close else ""


def instead(model_args: Mapping[str, Any]) -> str:
    """Return the arguments to use instead of those of `--model hf`; '' where nothing points to that habit."""
    adapter = model_args.get("adapter") or model_args.get("peft") or model_args.get("delta")
    base = model_args.get("base") or model_args.get("pretrained")
    if not {"peft", "delta", "pretrained"} & set(model_args):
        return ""
    written = ",".join(f"{name}={model_args[name]}" for name in ("pretrained", "peft", "delta") if name in model_args)
    arguments = f"adapter={adapter or 'DIR'}" + (f",base={base}" if base else "")
    return f"bayeslora takes no {written}: write {arguments} instead"
