"""The board as frames, for pages that still read those: delete it with the last of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uqharness.leaderboard import board
from uqharness.loose_json import nest, value_of
from uqharness.metrics.registry import METRICS
from uqharness.results.runs import RunSummary

PROBLEM_COLUMNS = ("file", "task", "kind", "reason")


class Board:
    def __init__(self, made: board.Board) -> None:
        self.made, self.snapshot, self.reported = made, made.snapshot, made.reported
        self.record, self.sources = made.record, made.select
        self.problems = pd.DataFrame([*map(asdict, made.problems)], columns=list(PROBLEM_COLUMNS))

    @cached_property
    def runs(self) -> pd.DataFrame:
        frame = pd.DataFrame([_row(run, self.made.label(run)) for run in self.made.runs], columns=list(COLUMNS))
        texts = [name for name, kind in frame.dtypes.items() if str(kind) in ("str", "object")]
        return frame.astype({"seed": "Int64", "finite": "Int64", **dict.fromkeys(texts, object)})

    @cached_property
    def values(self) -> pd.DataFrame:
        parts = {
            name: np.concatenate([run.metrics[name] for run in self.made.runs] or [np.zeros(0)]) for name in METRICS
        }
        ids = [run.run_id for run in self.made.runs for _ in run.counts]
        return pd.DataFrame({"run_id": ids, "draws": [n for run in self.made.runs for n in run.counts], **parts})

    def run(self, run_id: str) -> dict[str, Any]:
        run = self.made.run(run_id)
        return _row(run, self.made.label(run))

    def number(self, run_id: str, metric: str, draws: int) -> float:
        return self.made.run(run_id).number(metric, draws)


@lru_cache(maxsize=4096)
def _row(run: RunSummary, label: str) -> dict[str, Any]:
    def plain(texts: dict[str, str]) -> str:
        return json.dumps({key: value_of(text) for key, text in texts.items()})

    row = {name: getattr(run, name) for name in COLUMNS if hasattr(run, name)}
    return {name: None for name in COLUMNS} | {
        **row,
        "row": label,
        "settings": plain(run.settings),
        "setup": plain(run.recipe),
        "protocol": plain(run.protocol),
        "protocol_name": value_of(run.protocol.get("name", "null")),
        "flags": json.dumps([kind for kind in run.remarks if kind != "elsewhere"]),
        "elsewhere": run.remarks.get("elsewhere"),
        "record": json.dumps(nest(run.adapter_record)),
    }


COLUMNS = (
    "run_id file task model base method row settings trained_on shift protocol protocol_hash protocol_name recipe_hash"
    " setup seed finite draws has_mean combine mean_is_member items origin flags date adapter adapter_hash"
    " train_seconds peak_memory trainable passes device dtype eval_seconds elsewhere mean_taken record"
).split()


def build(paths: Sequence[Path], cache: Path | None = None) -> Board:
    return Board(board.build(paths, cache))


__all__ = ["Board", "build"]
