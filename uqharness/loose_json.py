"""Read untrusted JSON: limit its size, check its types once, and refuse it with a one-line message.

`read` takes regular files of a bounded size and gives values of bounded depth whose integers fit 64 bits and whose
texts are Unicode. `check` compares a value with a type hint:

    class Split(TypedDict, total=False):
        split: str
        fingerprints: list[str]

    splits = check(read(path), list[Split], str(path))

This module knows no format: adapters and results declare their keys and types.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import types
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from uqharness.errors import InputError

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_KINDS: dict[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
    Any: "anything",
}


def read(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> Any:
    """Return the content of a JSON file. `limit` is the largest size in bytes that is read."""
    return parse(read_bytes(path, limit), str(path))


def read_object(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> dict[str, Any]:
    """Return the content of a JSON file that must hold an object."""
    content: dict[str, Any] = check(read(path, limit), dict, str(path))
    return content


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file; pipes, devices and larger files are refused unread."""
    try:
        # Without O_NONBLOCK the opening of a FIFO waits for its other end.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: not a regular file; give a file")
            # Not `limit + 1`: Python makes room for all that is asked for.
            content = file.read(status.st_size + 1) if status.st_size <= limit else b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot be read: {reason}; check the path") from error
    if max(status.st_size, len(content)) > limit:
        size = f"{max(status.st_size, len(content)):,}"
        raise InputError(f"{path}: too large: {size} bytes; at most {limit:,} are read")
    return content


def parse(content: str | bytes, where: str) -> Any:
    """Return the value of a JSON text. `where` names its origin in messages."""
    try:
        text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
        value = json.loads(text, parse_int=_integer)
        if _depth_exceeds(value, MAX_DEPTH):
            raise RecursionError
        if _SURROGATE.search(text):  # half of a pair is valid JSON, and cannot be written anywhere
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise InputError(f"{where}: not Unicode: {error.reason}; write it again") from error  # type: ignore[attr-defined]
    except json.JSONDecodeError as error:
        reason = "it is empty" if not text.strip() else str(error)
        raise InputError(f"{where}: not valid JSON: {reason}; write it again") from error
    except (RecursionError, MemoryError) as error:
        raise InputError(f"{where}: nested too deeply: at most {MAX_DEPTH} levels are read; write it again") from error
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON: {error}; write it again") from error
    return value


def check(value: Any, kind: Any, where: str) -> Any:
    """Return `value` if it has the type hint `kind`, else raise an InputError that names the first difference.

    kind: str, int, float (finite; an int will do), bool, None, Any, list[…], dict[str, …], Literal, unions and
    TypedDicts. Undeclared keys of a TypedDict are ignored: newer versions may write more.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        near = [each for each in inner if _outer(value, each)]
        if len(near) == 1:  # its message says more; and one look at each part, however deep they are nested
            return check(value, near[0], where)
        if not any(_fits(value, each) for each in near):
            _refuse(value, kind, where)
    elif origin is Literal:
        if not any(type(value) is type(each) and value == each for each in inner):
            _refuse(value, kind, where)
    elif not _outer(value, kind):
        _refuse(value, kind, where)
    elif is_typeddict(kind):
        hints = _hints(kind)
        for name in sorted(kind.__required_keys__ - value.keys()):
            raise InputError(f"{where}: {name!r} is missing; the file is damaged or incomplete")
        for name in hints.keys() & value.keys():
            check(value[name], hints[name], f"{where}: {name}")
    elif origin is list:
        for k, part in enumerate(value):
            check(part, inner[0], f"{where}[{k}]")
    elif origin is dict:
        for name, part in value.items():
            check(part, inner[1], f"{where}: {name}")
    return value


def text_of(value: Any) -> str:
    """Return a value as on a command line: strings unchanged unless they would parse as JSON, other values as JSON."""
    if isinstance(value, str) and value.isprintable() and not _reads_as_json(value):
        return value
    return json.dumps(value)


def value_of(text: str) -> Any:
    """Return the value of a text from `text_of`."""
    try:
        return parse(text, "") if text[:1] in _FIRST else text
    except InputError:
        return text


_FIRST = frozenset('"[{-0123456789tfnNI')


def _reads_as_json(text: str) -> bool:
    try:
        return text[:1] in _FIRST and json.loads(text) is not ...
    except (ValueError, RecursionError):
        return False


def flatten(value: Mapping[str, Any], limit: int, skip: Collection[str] = (), prefix: str = "") -> dict[str, str]:
    """Return the texts of all values of nested objects by dotted keys; omit texts that are too long."""
    flat: dict[str, str] = {}
    for key, inner in value.items():
        if key in skip:
            continue
        if isinstance(inner, dict) and inner:
            flat |= flatten(inner, limit, skip, f"{prefix}{key}.")
        elif len(text := text_of(inner)) <= limit:
            flat[f"{prefix}{key}"] = text
    return flat


def nest(flat: Mapping[str, str]) -> dict[str, Any]:
    """Return the nested objects of `flatten`; of contradictory keys the first one counts."""
    out: dict[str, Any] = {}
    for name, text in flat.items():
        *path, last = name.split(".")
        place: Any = out
        for key in path:
            place = place.setdefault(key, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.setdefault(last, value_of(text))
    return out


def shown(value: Any, width: int = 60) -> str:
    """Format an untrusted value for a message: one line, printable, short."""
    if isinstance(value, (list, dict)):
        return f"a list of {len(value)}" if isinstance(value, list) else f"an object of {len(value)}"
    text = json.dumps(value[: width + 1] if isinstance(value, str) else value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


_hints = lru_cache(maxsize=64)(get_type_hints)


def _outer(value: Any, kind: Any) -> bool:
    """Return whether the value itself has the type, without its elements."""
    plain = dict if is_typeddict(kind) else get_origin(kind) or kind
    if plain is Any:
        return True
    if plain is float:
        return type(value) in (int, float) and math.isfinite(value)
    if plain is None:
        return value is None
    return type(value) is plain


def _fits(value: Any, kind: Any) -> bool:
    try:
        check(value, kind, "")
    except InputError:
        return False
    return True


def _refuse(value: Any, kind: Any, where: str) -> Any:
    raise InputError(f"{where}: expected {_described(kind)}, got {shown(value)}")


def _described(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(each) for each in inner)
    if origin is Literal:
        return " or ".join(map(json.dumps, inner))
    return _KINDS[dict if is_typeddict(kind) else origin or kind]


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Level by level, without recursion."""
    level = [value]
    for _ in range(limit + 1):
        containers = [
            part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))
        ]
        if not containers:
            return False
        level = [part for container in containers for part in container if isinstance(part, (dict, list))]
    return True
