"""Questions of a run as a table, for the export: what a card shows. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from uqharness.leaderboard.items import Items
from uqharness.leaderboard.texts import Text

NUMBERS = {"confidence": "Confidence", "nll": "NLL", "entropy": "Entropy", "mutual_information": "Mutual information"}


def item_rows(found: Items, kept: pd.DataFrame, words: Sequence[Text | None]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): a row per question of `items.select`; `words` are their texts, where there are any."""
    most = int(kept["choices"].max()) if len(kept) else 0
    header = ["Question", "Document", "Prompt", "Label", "Answer", "Right", *NUMBERS.values()]
    header += [f"p, choice {c + 1}" for c in range(most)] + ["p of the label in every draw"]
    rows = []
    for row, text in zip(kept.to_dict("records"), words, strict=True):
        d, gold = int(row["at"]), int(row["gold"])
        probs = found.shown.probs[d]
        known = text if text is not None and len(text.choices) == row["choices"] else None
        names = known.choices if known else [f"choice {c + 1}" for c in range(most)]
        draws = np.zeros(0) if found.shown.draws is None else found.shown.draws[:, d, gold]  # [S]
        rows.append(
            [
                str(row["id"]),
                found.record.doc_hashes[d],
                text.prompt if text else "–",
                names[gold],
                names[int(row["predicted"])],
                "yes" if row["right"] else "no",
                *(_shown(row[name]) for name in NUMBERS),
                *(_shown(p) for p in probs[:most]),
                " ".join(_shown(p) for p in draws if not np.isnan(p)) or "–",
            ]
        )
    return header, rows


def _shown(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"
