"""Text for a terminal: escape control characters in untrusted names, and tolerate encodings without a character."""

from __future__ import annotations

import codecs
import contextlib
import logging
import re
import sys

# Control characters but tab and newline, and those that reverse, hide or join what stands around them.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_PLAIN = {
    "→": "->",
    "←": "<-",
    "↑": "^",
    "↓": "v",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "−": "-",
    "√": "sqrt",
    "∞": "inf",
    "Σ": "sum",
    "α": "alpha",
    "γ": "gamma",
    "ε": "eps",
    "θ": "theta",
    "λ": "lambda",
    "μ": "mu",
    "π": "pi",
    "ρ": "rho",
    "σ": "sigma",
    "′": "'",
    "∥": "||",
    "‖": "||",
}
_HANDLER = "uqharness.plain"


def printable(text: str) -> str:
    """Return `text` with control and bidirectional characters as \\uXXXX, which JSON reads as the same text."""
    return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(message: str) -> None:
    """Print a command's last line after closing progress bars, which would otherwise print after it."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    for bar in list(bars):
        with contextlib.suppress(Exception):
            bar.close()
    print(f"uqharness: {printable(' '.join(message.splitlines()))}", file=sys.stderr)


class PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def tolerate_encoding() -> None:
    """Let stdout and stderr write what their encoding lacks in other characters: `->` for an arrow, else \\uXXXX."""
    codecs.register_error(_HANDLER, _replacement)
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") in ("strict", "backslashreplace") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)


def _replacement(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in wrong)
    return plain, error.end
