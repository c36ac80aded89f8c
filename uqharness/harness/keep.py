"""`metadata.uq.keep`: the evaluated items that a protocol leaves out, by rule and counted. Knows no task.

Trimming is never the default. Papers' code does trim: laplace-lora drops ARC's items with 3 or 5 choices, and
bayesian-peft the last batch, where it is not full. Rules of ours, applied in this order:
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
    """The YAML's rule, and over it `--metadata '{"keep": {…}}'` of the command line."""
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
    """(indices that stay, what is left out and how often), from the items' numbers of choices."""
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
