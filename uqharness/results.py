"""Results: read them, compute their metrics again, and compare only what is comparable.

Two results are comparable when their protocol hashes are equal: the same documents, prompts and answer strings
in the same order, scored the same way.  How the model was trained is not in that hash; neither are settings of
a metric, file paths and the model itself.
"""
from __future__ import annotations

from uqharness.record import BMALogProb, PackedRecord, Record, digest, item_rows, pack, unpack

__all__ = ["BMALogProb", "PackedRecord", "Record", "digest", "item_rows", "pack", "unpack"]
