"""JSON of strangers is bounded, and what is wrong with it fits in one line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest

from uqharness.errors import InputError
from uqharness.loose_json import MAX_DEPTH, check, parse, read, read_object


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00\x01\x80", "not Unicode"),
        (b"\x80\x04K\x01.", "not Unicode"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested too deeply"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested too deeply"),
        (b'{"r": ' + b"9" * 6000 + b"}", "an integer of 6,000 digits"),
        (b'{"name": "\\ud83d"}', "not Unicode"),
    ],
)
def test_hostile_text_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        read(tmp_path / "x.json")
    assert message in str(error.value) and str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_what_is_within_the_bounds_is_what_json_reads(tmp_path: Path) -> None:
    nested: Any = 1
    for _ in range(MAX_DEPTH - 1):
        nested = [nested]
    value = {"a": [1, -2.5, None, True, "é \U0001f600"], "deep": nested, "large": -(2**63)}
    assert parse(json.dumps(value), "x") == value
    (tmp_path / "x.json").write_text(json.dumps(value), encoding="utf-8")
    assert read_object(tmp_path / "x.json") == value


def test_only_regular_files_of_the_allowed_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    started = time.monotonic()
    for path, message in (
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path, "not a regular file|directory"),
        (tmp_path / "none", "No such file"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            read(path)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(6 * 2**30)
    with pytest.raises(InputError, match="too large: 6,442,450,944 bytes"):
        read(tmp_path / "large")
    assert time.monotonic() - started < 5
    (tmp_path / "list").write_text("[1]")
    with pytest.raises(InputError, match="expected an object, got a list of 1"):
        read_object(tmp_path / "list")


class Needed(TypedDict):
    name: str


class Thing(Needed, total=False):
    size: int | None
    ratio: float
    kind: Literal["a", "b"]
    parts: list[str] | str
    patterns: dict[str, int]


def test_values_of_the_right_types_pass() -> None:
    thing = {"name": "x", "size": None, "ratio": 1, "kind": "b", "parts": ["q"], "patterns": {"a": 1}, "new": []}
    assert check(thing, Thing, "x.json") is thing
    assert check([thing], list[Thing], "x.json") == [thing]
    assert check({"name": "x", "parts": "q"}, Thing, "x.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "x.json: name: expected a string, got 3"),
        ({"size": "8"}, 'x.json: size: expected an integer or null, got "8"'),
        ({"size": True}, "x.json: size: expected an integer or null, got true"),
        ({"ratio": float("nan")}, "x.json: ratio: expected a finite number, got NaN"),
        ({"kind": "c"}, 'x.json: kind: expected "a" or "b", got "c"'),
        ({"parts": ["q", 1]}, "x.json: parts[1]: expected a string, got 1"),
        ({"parts": 1}, "x.json: parts: expected a list or a string, got 1"),
        ({"patterns": {"a": None}}, "x.json: patterns: a: expected an integer, got null"),
        ({"name": ["x" * 900]}, "x.json: name: expected a string, got a list of 1"),
        ({"parts": [2, "\n" * 900]}, "x.json: parts[0]: expected a string, got 2"),
    ],
)
def test_the_first_wrong_value_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        check({"name": "x", **change}, Thing, "x.json")
    assert str(error.value) == message


def test_a_missing_key_and_a_wrong_outer_type_are_named() -> None:
    with pytest.raises(InputError, match="x.json: 'name' is missing"):
        check({}, Thing, "x.json")
    with pytest.raises(InputError, match="x.json: expected an object, got null"):
        check(None, Thing, "x.json")
