"""What a command that failed has printed."""

from __future__ import annotations

import pytest


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a failed command says: one line, no traceback."""
    err = capsys.readouterr().err
    ours = [line for line in err.splitlines() if line.startswith("uqharness: ")]
    assert len(ours) == 1 and "Traceback" not in err and err.rstrip().endswith(ours[0])
    return ours[0]
