"""`metadata.uq.keep`: rules by which a protocol removes evaluated items, with counts.

Removing items is never the default, but papers' code does: laplace-lora drops ARC's items with 3 or 5 choices, and
bayesian-peft the last batch if it is not full. Rules of ours, applied in this order:
  choices           only items with so many choices
  full_batches_of   only the first k·n items, k = floor(items / n)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uqharness.errors import InputError
from uqharness.results.record import count_choices

RULES = ("choices", "full_batches_of")


def read_rule(metadata: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the YAML's rule, overridden by `--metadata '{"keep": {…}}'` of the command line."""
    given = metadata or {}
    rule: dict[str, Any] = {}
    for part in ((given.get("uq") or {}).get("keep"), given.get("keep")):
        if not isinstance(part, (Mapping, type(None))):
            raise InputError(f"keep is {part!r}: write {{choices: 4}} or {{full_batches_of: 8}}")
        rule |= part or {}
    for name, value in rule.items():
        if name not in RULES:
            raise InputError(f"keep has no rule {name!r}; there are {', '.join(RULES)}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"keep: {name} is {value!r}: must be a positive integer")
    return rule


def apply(rule: Mapping[str, int], sizes: Sequence[int]) -> tuple[list[int], dict[str, Any]]:
    """Return (indices that remain, counts of removed items by rule), from the items' numbers of choices."""
    indices = list(range(len(sizes)))
    left_out: dict[str, Any] = {}
    if (wanted := rule.get("choices")) is not None:
        left_out["choices"] = count_choices([size for size in sizes if size != wanted])
        indices = [i for i in indices if sizes[i] == wanted]
    if (batch := rule.get("full_batches_of")) is not None:
        rest = len(indices) % batch
        left_out["last_batch"] = rest
        indices = indices[: len(indices) - rest]
    if not indices:
        raise InputError(f"keep {dict(rule)} leaves none of {len(sizes)} items: change the rule")
    return indices, left_out
