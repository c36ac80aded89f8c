"""What keeps two results apart: the fields of their protocols or recipes that differ, with both values.

The protocol is how a result was evaluated, the recipe how its adapter was trained, the method apart. `uqharness table`
and the leaderboard (`leaderboard.table.comparable`) rank results together if both are equal; `require_comparable`
looks at the protocol alone. docs/comparable.md explains each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from os.path import commonprefix

from uqharness.loose_json import flatten, text_of, value_of

LONGEST = 40  # letters of a value that are shown
SAME_QUESTIONS = ("model", "normalise")  # may differ although documents, prompts and answers are equal
FOLLOWING = ("documents", "prompts", "answers")  # hashes, which differ because something with a name does


def of_recipes(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return {setting: its two values}, as texts, of the settings that differ.

    >>> of_recipes({"lr": "0.1", "steps": "9"}, {"lr": "0.2", "steps": "9"})
    {'lr': ('0.1', '0.2')}
    """
    return _differing(one, other, missing="not recorded")


def of_protocols(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return {field: its two values}, as texts, of the fields that differ.

    Hashes of questions, prompts and answers are left out where a field with a name explains them.

        >>> of_protocols({"items": "60", "documents": "3118"}, {"items": "40", "documents": "592f"})
        {'items': ('60', '40')}
    """
    differ = _differing(_fields(one, other), _fields(other, one), missing="not set")
    implied: tuple[str, ...] = FOLLOWING[1:] if "documents" in differ else ()
    if set(differ) - {*FOLLOWING, *SAME_QUESTIONS}:
        implied = FOLLOWING
    return {("model_args" if key == "model" else key): both for key, both in differ.items() if key not in implied}


def _fields(protocol: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """Return the protocol with the objects that both protocols have taken apart: "fewshot.number" …"""
    fields: dict[str, str] = {}
    for key, text in protocol.items():
        inner, beside = value_of(text), value_of(other.get(key, ""))
        both = isinstance(inner, dict) and isinstance(beside, dict)
        fields |= flatten({key: inner}, len(text)) if both else {key: text}
    return fields


def _differing(one: Mapping[str, str], other: Mapping[str, str], missing: str) -> dict[str, tuple[str, str]]:
    keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
    words = {None: missing, text_of(None): "not set"}
    values = {key: [words.get(text, text) for text in (one.get(key), other.get(key))] for key in keys}
    return {key: _shown(*map(str, both)) for key, both in values.items()}


def _shown(one: str, other: str) -> tuple[str, str]:
    """Return both texts, shortened so that where they differ can be seen."""
    start = len(commonprefix([one, other])) if min(len(one), len(other)) > LONGEST else 0
    start = max(0, start - 10)

    def short(text: str) -> str:
        cut = ("…" if start else "") + text[start:]
        return cut if len(cut) <= LONGEST else f"{cut[: LONGEST - 1]}…"

    return short(one), short(other)
