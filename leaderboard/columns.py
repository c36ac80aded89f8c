"""Runs as columns: the Arrow schema is that of `RunSummary`, for the cache and for published files."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

import numpy as np
import pyarrow as pa

from uqharness.results.runs import RunSummary, hints

KINDS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), np.ndarray: pa.list_(pa.float64())}


def arrow_type(hint: Any) -> pa.DataType:
    """Return the column type of a field: a map for a dictionary, nullable if None is allowed."""
    if get_origin(hint) in (Union, types.UnionType):
        return arrow_type(next(each for each in get_args(hint) if each is not type(None)))
    if get_origin(hint) is dict:
        return pa.map_(pa.string(), arrow_type(get_args(hint)[1]))
    return KINDS[get_origin(hint) or hint]


OPTIONAL = {name for name, hint in hints().items() if type(None) in get_args(hint)}
SCHEMA = pa.schema([(name, arrow_type(hint)) for name, hint in hints().items()])


def to_table(runs: Sequence[RunSummary]) -> pa.Table:
    columns = [_array([getattr(run, name) for run in runs], SCHEMA.field(name).type) for name in SCHEMA.names]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return `pa.array` of the values; maps and lists of numbers are built without an object for every value."""
    if not pa.types.is_nested(kind):
        return pa.array(values, kind)
    ends = pa.array(np.cumsum([0, *map(len, values)]), pa.int32())
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(ends, np.concatenate([*values, np.zeros(0)]))
    keys = [key for value in values for key in value]
    items = [inner for value in values for inner in value.values()]
    return pa.MapArray.from_arrays(ends, pa.array(keys, pa.string()), _array(items, kind.item_type))


def to_runs(table: pa.Table) -> list[RunSummary]:
    """Return the runs of these columns, unchecked (`results.runs.checked`)."""
    columns = [_values(table[name].combine_chunks()) for name in SCHEMA.names]
    return [RunSummary(*row) for row in zip(*columns, strict=True)]


def _values(array: pa.Array) -> list[Any]:
    """Return `to_pylist` without an Arrow object for every value; lists of numbers become arrays."""
    kind = array.type
    if pa.types.is_map(kind):
        pairs = list(zip(_values(array.keys), _values(array.items), strict=True))
        return [None if ends is None else dict(pairs[slice(*ends)]) for ends in _ends(array)]
    if pa.types.is_list(kind):
        flat = array.values.to_numpy(zero_copy_only=False)
        return [None if ends is None else flat[slice(*ends)] for ends in _ends(array)]
    if pa.types.is_string(kind):
        coded = array.dictionary_encode()
        words = [*coded.dictionary.to_pylist(), None]
        return [words[k] for k in coded.indices.fill_null(len(words) - 1).to_numpy()]
    return list(array.to_pylist())


def _ends(array: pa.Array) -> list[tuple[int, int] | None]:
    offsets, valid = array.offsets.to_numpy().tolist(), array.is_valid().to_numpy(zero_copy_only=False)
    return [(a, b) if present else None for a, b, present in zip(offsets[:-1], offsets[1:], valid, strict=True)]
