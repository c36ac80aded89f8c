"""The compact record of an evaluation: log p_s(choice | question) for every draw s, question and choice.

A model answers each continuation with one float, log (1/S) sum_s p_s(continuation | prompt), that carries
its S terms (`BMALogProb`); the record stores all of them, so that every metric can be recomputed from it,
for any number of draws up to S, without a model. This module uses neither lm-eval nor torch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np

from uqharness import loose_json
from uqharness.errors import InputError, RunError
from uqharness.settings import MAX_DRAWS

SCHEMA = 1
# A record that says more is refused before it is unpacked: a few kB can hold zeros for all of the memory.
MAX_VALUES = 2**24  # of one array, items x (draws + 1) x choices: all of MMLU with 290 draws
MAX_ITEMS = 2**20
RULES = ("probs", "logits", "given")


class BMALogProb(float):
    """log (1/S) sum_s p_s: a plain float for lm-eval, with its S terms for us.

    `draws[s]` is the log-likelihood under draw s (None: samples=auto did not take it), `mean` the one under
    the posterior mean (None: not computed), `combine` how the posterior combines its draws.  Without draws
    the value is the mean's.
    """

    __slots__ = ("draws", "mean", "combine")
    draws: tuple[float | None, ...]
    mean: float | None
    combine: str

    def __new__(
        cls, value: float, draws: Sequence[float | None], mean: float | None = None, combine: str = "probs"
    ) -> BMALogProb:
        self = super().__new__(cls, value)
        self.draws = tuple(None if draw is None else float(draw) for draw in draws)
        self.mean = None if mean is None else float(mean)
        if combine not in RULES:
            raise InputError(f"combine={combine!r} is not a rule for draws; use one of {', '.join(RULES)}")
        self.combine = combine
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # survives the request cache, filters and gathering over ranks
        return type(self), (float(self), self.draws, self.mean, self.combine)


@dataclass(frozen=True)
class Record:
    """One task's answers in full; `logp[0]` is the posterior mean's row (NaN where it was not computed)."""

    logp: np.ndarray  # [S + 1, D, C] float32, NaN beyond a question's own choices and draws (`taken`)
    gold: np.ndarray  # [D]
    choices: np.ndarray  # [D] number of choices of each question
    ids: np.ndarray  # [D] position in the evaluated split
    doc_hashes: list[str]  # [D] 16 hex digits
    combine: str = "probs"
    has_mean: bool = False
    task: str = ""
    protocol: dict[str, Any] = field(default_factory=dict)
    protocol_hash: str = ""
    train_dropped: dict[str, int] = field(default_factory=dict)

    @property
    def items(self) -> int:
        return int(self.logp.shape[1])

    @property
    def draws(self) -> int:
        return int(self.logp.shape[0]) - 1

    @property
    def taken(self) -> np.ndarray:
        """Return the number of draws of each question, [D]: S, or fewer with samples=auto."""
        return np.asarray((~np.isnan(self.logp[1:, :, 0])).sum(0))

    @property
    def choice_counts(self) -> dict[str, int]:
        return count_choices(self.choices)

    def only(self, indices: np.ndarray) -> Record:
        """Return the record of the selected questions, [D] booleans."""
        hashes = [name for name, stays in zip(self.doc_hashes, indices, strict=True) if stays]
        arrays = {"gold": self.gold[indices], "choices": self.choices[indices], "ids": self.ids[indices]}
        return replace(self, logp=self.logp[:, indices], **arrays, doc_hashes=hashes)

    def rows(self, draws: int | None = None) -> np.ndarray:
        """Log-likelihoods `[n, D, C]` of the first n draws (None: all there are; 0: the posterior mean).

        With samples=auto these are at most n draws: NaN where a question had stopped before.
        """
        wanted = self.draws if draws is None else draws
        if not 0 <= wanted <= self.draws:
            raise InputError(
                f"draws={wanted} of {self.task or 'this record'}: it holds {self.draws}; "
                f"ask for 0 ... {self.draws}, or evaluate again with samples={wanted}"
            )
        if wanted == 0 and not self.has_mean:
            raise InputError(
                f"{self.task or 'this record'} holds no row for the posterior mean; "
                "ask for 1 or more draws, or evaluate again with samples=0"
            )
        rows = self.logp[1 : wanted + 1] if wanted else self.logp[:1]
        return rows.astype(np.float64)


def digest(value: Any) -> str:
    """Return the first 16 hex digits of SHA-256 of a string, or of the canonical JSON of anything else."""
    text = value
    if not isinstance(value, str):
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def count_choices(choices: Sequence[int] | np.ndarray) -> dict[str, int]:
    return {str(k): n for k, n in sorted(Counter(int(k) for k in choices).items())}


def item_rows(scores: Sequence[float]) -> tuple[list[list[float] | None], str]:
    """Arrange a question's choices as rows, the mean's first, then each draw's (None: not computed); and their rule."""
    rules = {getattr(score, "combine", "probs") for score in scores}
    lengths = {len(score.draws) if isinstance(score, BMALogProb) else 1 for score in scores}
    if len(rules) != 1 or len(lengths) != 1:
        raise RunError(
            f"the choices of one question were answered with {sorted(lengths)} draws and the "
            f"rules {sorted(rules)}: a cache of another run? Give another --use_cache, or none"
        )
    draws = [score.draws if isinstance(score, BMALogProb) else (float(score),) for score in scores]
    means = [score.mean if isinstance(score, BMALogProb) else None for score in scores]
    if lengths == {0}:  # samples=0: the value itself is the mean's
        means = [float(score) for score in scores]
    if any((draw is None) != (other is None) for row in zip(*draws, strict=True) for draw in row for other in row[:1]):
        raise RunError("the choices of one question have other draws: a cache of another run? Give no --use_cache")
    mean = None if any(value is None for value in means) else means
    return [_single(mean), *(_single(row) for row in zip(*draws, strict=True))], rules.pop()


def _single(row: Sequence[Any] | None) -> list[float] | None:
    """Round to float32 before anything is computed, so that the record reproduces the same numbers."""
    return None if row is None or row[0] is None else [float(np.float32(value)) for value in row]


def pack(
    items: Sequence[Mapping[str, Any]],
    *,
    task: str = "",
    protocol: Mapping[str, Any] | None = None,
    train_dropped: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Pack items (`id gold logp combine doc_hash`) into one JSON record, sorted by id; refuse repeated ids."""
    if not items:
        raise RunError(f"{task or 'record'}: no items to record")
    items = sorted(items, key=lambda item: item["id"])
    sizes = {len(item["logp"]) for item in items}
    rules = {item["combine"] for item in items}
    if len(sizes) != 1 or len(rules) != 1:
        raise RunError(
            f"{task or 'record'}: items with {sorted(size - 1 for size in sizes)} draws and the "
            f"rules {sorted(rules)} in one result: they are of different runs; use no old cache"
        )
    choices = [len(next(row for row in item["logp"][::-1] if row is not None)) for item in items]
    has_mean = all(item["logp"][0] is not None for item in items)
    logp = np.full((sizes.pop(), len(items), max(choices)), np.nan, dtype="<f4")  # [S + 1, D, C]
    for d, item in enumerate(items):
        for s, row in enumerate(item["logp"]):
            if row is not None and np.isnan(row).any():  # in the record it would mean "not computed"
                raise RunError(f"{task or 'record'}: item {item['id']} was answered with NaN; check the adapter")
            if row is not None and (s or has_mean):
                logp[s, d, : choices[d]] = row
    protocol = dict(protocol or {})
    record = Record(
        logp,
        np.array([item["gold"] for item in items]),
        np.array(choices),
        np.array([item["id"] for item in items]),
        [item["doc_hash"] for item in items],
        rules.pop(),
        has_mean,
        task,
        protocol,
        digest(protocol),
        dict(train_dropped or {}),
    )
    check(record, RunError)
    return encode(record)


def encode(record: Record) -> dict[str, Any]:
    return dict(
        schema=SCHEMA,
        task=record.task,
        items=record.items,
        draws=record.draws,
        has_mean=record.has_mean,
        mean_taken=float(record.taken.mean()),
        combine=record.combine,
        choice_counts=record.choice_counts,
        train_dropped=record.train_dropped,
        logp=_write(record.logp, "<f4"),
        gold=_write(record.gold, "<u2"),
        choices=_write(record.choices, "<u2"),
        ids=_write(record.ids, "<u4"),
        doc_hashes=base64.b64encode(bytes.fromhex("".join(record.doc_hashes))).decode(),
        protocol=record.protocol,
        protocol_hash=record.protocol_hash,
    )


class _Needed(TypedDict):
    items: int
    draws: int
    has_mean: bool
    combine: str
    logp: str
    gold: str
    choices: str
    choice_counts: dict[str, int]
    ids: str
    doc_hashes: str
    protocol: dict[str, Any]
    protocol_hash: str


class Packed(_Needed, total=False):
    """A record in a results file; arrays are base64 of zlib."""

    task: str
    train_dropped: dict[str, int] | None


def unpack(packed: Mapping[str, Any]) -> Record:
    """Return the checked record of `pack`; refuse an invalid one with an `InputError`."""
    schema = packed.get("schema")
    if schema != SCHEMA:
        raise InputError(
            f"record of schema {schema!r}; this version reads schema {SCHEMA}: "
            "evaluate again, or use the version of uqharness that wrote it"
        )
    given: Packed = loose_json.check(packed, Packed, "record")
    d, s = given["items"], given["draws"]
    try:
        for name, value, most in (("items", d, MAX_ITEMS), ("draws", s, MAX_DRAWS)):
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}, not an integer from 0 to {most:,}")
        choices = _read(given["choices"], "<u2", (d,), "choices")
        if given["choice_counts"] != count_choices(choices):
            counts = loose_json.shown(given["choice_counts"])
            raise ValueError(f"choice_counts is {counts} but the items have {count_choices(choices)}")
        hashes = base64.b64decode(given["doc_hashes"]).hex()
        record = Record(
            _read(given["logp"], "<f4", (s + 1, d, int(choices.max(initial=0))), "logp"),
            _read(given["gold"], "<u2", (d,), "gold"),
            choices,
            _read(given["ids"], "<u4", (d,), "ids"),
            [hashes[i : i + 16] for i in range(0, len(hashes), 16)],
            given["combine"],
            given["has_mean"],
            given.get("task", ""),
            given["protocol"],
            given["protocol_hash"],
            given.get("train_dropped") or {},
        )
    except (ValueError, zlib.error, binascii.Error) as error:
        raise InputError(f"damaged record: {error}; evaluate again") from error
    check(record, InputError)
    return record


def claimed(packed: Any) -> int:
    """Return how many answers a packed record says it contains; 0 where `unpack` refuses it."""
    try:
        answers = packed["items"] * (packed["draws"] + 1) * max(map(int, packed["choice_counts"]))
    except (KeyError, TypeError, ValueError):
        return 0
    return answers if type(answers) is int and 0 <= answers <= MAX_VALUES else 0


def check(record: Record, error: type[InputError] | type[RunError]) -> None:
    """Check everything that must hold in a record, with one message for each problem."""
    task, where = record.task or "record", np.arange(record.logp.shape[2])[None, :]  # [1, C]
    inside = where < record.choices[:, None]  # [D, C]
    rows = record.logp if record.has_mean else record.logp[1:]
    left_out = np.isnan(record.logp).all(-1) & (np.arange(len(record.logp)) > 1)[:, None]  # [S + 1, D]
    gaps = (left_out[:-1] & ~left_out[1:]).any()
    used = ~left_out[len(record.logp) - len(rows) :, :, None]
    bad = np.argwhere(inside & used & ~(rows < np.inf))  # NaN and +inf alike
    impossible = np.argwhere(np.isneginf(np.where(inside, rows, -np.inf)).all(-1))
    if not record.items:
        raise error(f"{task}: no items; evaluate again")
    if record.combine not in RULES:
        raise error(f"{task}: unknown rule {record.combine!r}; this version knows {', '.join(RULES)}")
    if not len(rows):
        raise error(f"{task}: neither a draw nor the mean's row; evaluate again")
    if gaps:
        raise error(f"{task}: a question has a draw after one that was not taken; evaluate again")
    if len(bad):
        raise error(
            f"{task}: item {record.ids[bad[0][1]]} has the log-likelihood "
            f"{rows[tuple(bad[0])]} for choice {bad[0][2]}; check the adapter and the base for NaN"
        )
    if len(impossible):
        raise error(
            f"{task}: item {record.ids[impossible[0][1]]} has probability 0 for every choice; "
            "its answers cannot be normalised"
        )
    if not np.isnan(np.where(inside, np.nan, record.logp)).all():
        raise error(f"{task}: log-likelihoods beyond the choices of a question; evaluate again")
    if len(np.unique(record.ids)) != record.items:
        raise error(f"{task}: {record.items - len(np.unique(record.ids))} repeated ids; each counts once")
    if (record.gold >= record.choices).any() or (record.gold < 0).any():
        item = int(np.argmax((record.gold >= record.choices) | (record.gold < 0)))
        raise error(f"{task}: item {record.ids[item]} has label {record.gold[item]} but {record.choices[item]} choices")
    if len(record.doc_hashes) != record.items:
        raise error(f"{task}: {len(record.doc_hashes)} document hashes for {record.items} items")
    if record.protocol_hash != digest(record.protocol):
        raise error(
            f"{task}: its protocol hash {record.protocol_hash} is not that of its protocol "
            f"({digest(record.protocol)}); evaluate again"
        )


def _write(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array, dtype=kind).tobytes(), 9)).decode()


def _read(text: str, kind: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    expected = math.prod(shape)
    if min(shape) < 0 or not 0 <= expected <= MAX_VALUES:
        raise ValueError(f"{name} is said to have {' x '.join(map(str, shape))} values")
    size = expected * np.dtype(kind).itemsize
    stream = zlib.decompressobj()
    content = stream.decompress(base64.b64decode(text), size + 1)  # no more, whatever is packed in it
    if len(content) != size or not stream.eof:
        raise ValueError(f"{name} does not have the {' x '.join(map(str, shape))} values that are expected")
    flat = np.frombuffer(content, dtype=kind)
    array = flat.reshape(shape)
    return array if kind == "<f4" else array.astype(np.int64)
