"""The whole view as URL parameters, and back: a link shows what its sender saw.

Pure: pages hand in the parameters and get values and notes. Only what differs from the default is written. A value
that the results do not have any more, or that never made sense, falls back to the default and is named in a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SNAPSHOT = "snapshot"
SWITCH = {"1": True, "0": False, "true": True, "false": False}  # the first two are written
LONGEST = 60  # letters of a foreign value that a note repeats


@dataclass(frozen=True)
class Field:
    """One parameter. The default's type decides: tuple (several options), bool, int, str (one option)."""

    name: str
    default: Any
    options: Sequence[Any] | None = None  # None: free text, or any whole number of at least 0
    label: str = ""  # what a person calls it, for notes

    @property
    def called(self) -> str:
        return self.label or self.name


def read(fields: Sequence[Field], params: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], list[str]]:
    """Values of all fields, and a note for each part of the link that could not be used."""
    values, notes = {}, []
    for field in fields:
        given = list(params.get(field.name, ()))
        values[field.name], bad = _parse(field, given) if given else (field.default, [])
        if bad:
            named = ", ".join(_short(text) for text in bad)
            notes.append(f"{field.called}: {named} is not among these results; the link was followed without it.")
    known = {field.name for field in fields} | {SNAPSHOT}
    if unknown := [_short(name) for name in params if name not in known]:
        notes.append(f"The link has parameters that this page does not know: {', '.join(unknown)}.")
    return values, notes


def write(fields: Sequence[Field], values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Parameters of everything that differs from its default; an empty choice is the parameter without a value."""
    out: dict[str, list[str]] = {}
    for field in fields:
        value = values.get(field.name, field.default)
        if value == field.default or value is None:
            continue
        if isinstance(field.default, tuple):
            out[field.name] = [str(each) for each in value] or [""]
        else:
            out[field.name] = [str(int(value)) if isinstance(field.default, bool) else str(value)]
    return out


def stale(snapshot: str, params: Mapping[str, Sequence[str]]) -> list[str]:
    """A note where the link was made for other results than those that are shown."""
    asked = next(iter(params.get(SNAPSHOT, ())), snapshot)
    if asked == snapshot:
        return []
    return [f"The link was made for results {_short(asked)}; these are {snapshot}: numbers may differ."]


def _parse(field: Field, given: list[str]) -> tuple[Any, list[str]]:
    """A field's value, and what of the given texts made no sense."""
    if isinstance(field.default, bool):
        return (SWITCH[given[-1]], []) if given[-1] in SWITCH else (field.default, given)
    if isinstance(field.default, tuple):
        by_text = {str(option): option for option in field.options or ()}
        wanted = [text for text in dict.fromkeys(given) if text]
        bad = [text for text in wanted if text not in by_text]
        kept = tuple(by_text[text] for text in wanted if text in by_text)
        return (kept if kept or not bad else field.default), bad
    if field.options is not None:
        by_text = {str(option): option for option in field.options}
        return (by_text[given[-1]], []) if given[-1] in by_text else (field.default, given[-1:])
    if isinstance(field.default, int):
        fits = given[-1].isascii() and given[-1].isdigit() and len(given[-1]) < 10
        return (int(given[-1]), []) if fits else (field.default, given[-1:])
    return given[-1], []


def _short(text: str) -> str:
    """In quotes and of a bearable length."""
    return f"“{text}”" if len(text) <= LONGEST else f"“{text[:LONGEST]}…”"
