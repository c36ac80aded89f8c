"""Imported adapters were trained under other prompts and labels; warn if they are evaluated under another protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

log = logging.getLogger("lm_eval.uqharness")


def imported(record: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the import entry of the record, or of the adapter that it was built on."""
    while record:
        if record.get("imported"):
            imported: Mapping[str, Any] = record["imported"]
            return imported
        record = record.get("source")
    return None


def other_protocol(record: Mapping[str, Any] | None, evaluated: str | None) -> str | None:
    """Return the problem of evaluating this adapter under the protocol `evaluated`, or None."""
    origin = imported(record)
    if origin is None or origin.get("protocol") == evaluated:
        return None
    return (
        f"imported from {origin.get('tool')}, trained under the protocol {origin.get('protocol')} and evaluated "
        f"under {evaluated or 'that of a stock task'}: not comparable with what its authors report"
    )


class ProtocolCheck:
    """Warn once per protocol that the numbers are not comparable, and record it for the results."""

    def __init__(self, record: Mapping[str, Any] | None) -> None:
        self.record, self.found = record, dict[str, str]()
        self._said: set[str] = set()

    def check(self, requests: Iterable[Any]) -> None:
        """Check the protocol that `UQTask` writes on its requests; stock tasks have none."""
        if imported(self.record) is None:
            return
        for task, protocol in {(str(r.task_name), getattr(r, "uq_protocol", None)) for r in requests}:
            message = other_protocol(self.record, protocol)
            if message is None:
                self.found.pop(task, None)
                continue
            self.found[task] = message
            if message not in self._said:
                self._said.add(message)
                log.warning("bayeslora: this adapter is %s", message)
