"""What the base model reads before fine-tuning: facts, copying exercises and questions, but no preference.

Each row is a document of one of six kinds. Facts, relation questions ("What is the food of Wugom?") and echo
questions have one right answer; "pick" questions are answered with *any* of the choices that belong to the
entity, each equally likely. So the base knows what a pick is made of, and not how it weighs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.toyworld.tokenizer import vocabulary
from tools.toyworld.world import (
    CLOZE_INSTRUCTION,
    INSTRUCTION,
    LETTERS,
    P_OWN,
    RELATIONS,
    STEMS,
    VALUES,
    World,
)

Ints = NDArray[np.int64]
Rng = np.random.Generator
KINDS = ("facts", "tell", "copy", "relation", "pick", "echo")
IGNORE = -100
FACT = "The {r} of {e} is {v} ."


def _wording(rng: Rng) -> str:
    """One of the wordings of a pick question, split into tokens."""
    return STEMS[str(rng.choice(["plain", "other"]))].replace("{}", "{e}").replace("?", " ?")


@dataclass(frozen=True)
class Phase:
    """A stretch of pretraining: share of rows per kind (order of KINDS), label noise, share of hard questions.

    Ends early once the mean loss of the last 30 steps is below `until`, and has failed if it never is, or if fewer
    than the share `right` of new relation questions are answered right at its end.
    """

    steps: int
    lr: float
    mix: tuple[float, ...]
    noise: float
    hard: float = 0.0
    until: float = 0.0
    right: float = 0.0


class Corpus:
    """Draws token rows of a world; `labels` are IGNORE wherever the next token is not to be predicted."""

    def __init__(self, world: World, rare: float) -> None:
        self.ids = {token: i for i, token in enumerate(vocabulary(world))}
        self.values = np.array([self.ids[v] for vs in VALUES.values() for v in vs])  # [V]
        self.entities = np.array([self.ids[e] for e in world.entities])
        index = {v: i for i, v in enumerate(v for vs in VALUES.values() for v in vs)}
        self.own = np.array([[index[f[r]] for r in RELATIONS] for f in world.facts.values()])  # [E, R]
        weight = np.array([rare if e in world.groups["far"] else 1.0 for e in world.entities])
        self.frequency = weight / weight.sum()
        self.letters = np.array([self.ids[a] for a in LETTERS])
        self.marks = np.array([self.ids[f"{a}."] for a in LETTERS])
        self.relations = np.array([self.ids[r] for r in RELATIONS])
        self.length = 25
        self.hard = 0.0

    def _stem(self, text: str, n: int, **columns: Ints) -> Ints:
        """Token columns of a template; `{name}` takes the given column."""
        columns["cloze"] = np.full(n, self.ids[CLOZE_INSTRUCTION])
        words = text.split()
        return np.stack([columns[w[1:-1]] if w[0] == "{" else np.full(n, self.ids[w]) for w in words], 1)

    def _own_mask(self, entity: Ints) -> NDArray[np.bool_]:
        mask = np.zeros((len(entity), len(self.values)), bool)
        np.put_along_axis(mask, self.own[entity], True, 1)
        return mask

    def _slots(self, rng: Rng, entity: Ints, count: int) -> tuple[Ints, NDArray[np.bool_], Ints]:
        """Choices as the questions draw them: (value index, is the entity's own, relation) `[n, count]`."""
        n = len(entity)
        relation = np.argsort(rng.random((n, len(RELATIONS))), 1)[:, :count]
        strange_key = rng.random((n, len(self.values))) + 9.0 * self._own_mask(entity)
        strange = np.argsort(strange_key, 1)[:, :count]
        own = rng.random((n, count)) < P_OWN
        return np.where(own, np.take_along_axis(self.own[entity], relation, 1), strange), own, relation

    def _listed(self, n: int, values: Ints, count: int) -> list[Ints]:
        marks = np.broadcast_to(self.marks[:count], (n, count))
        pairs = np.stack([marks, self.values[values]], 2).reshape(n, 2 * count)
        return [np.full((n, 1), self.ids["Choices:"]), pairs, np.full((n, 1), self.ids["Answer:"])]

    def _question(self, stem: Ints, values: Ints, gold: Ints) -> tuple[Ints, Ints]:
        n, count = values.shape
        tail = np.stack([self.letters[gold], np.full(n, self.ids["<eos>"])], 1)
        head = [np.full((n, 1), self.ids[INSTRUCTION]), stem, *self._listed(n, values, count)]
        tokens = np.concatenate([*head, tail], 1)
        labels = np.full_like(tokens, IGNORE)
        labels[:, -2:] = tail
        return tokens, labels

    def facts(self, rng: Rng, n: int, count: int, noise: float) -> tuple[Ints, Ints]:
        """ "The food of Wugom is apple." and two more like it."""
        parts, labels = [np.full((n, 1), self.ids["<eos>"])], [np.full((n, 1), IGNORE)]
        for _ in range(3):
            e, r = rng.choice(len(self.entities), n, p=self.frequency), rng.integers(len(RELATIONS), size=n)
            value = self.values[self.own[e, r]]
            parts.append(self._stem(FACT, n, r=self.relations[r], e=self.entities[e], v=value))
            labels.append(np.where(np.arange(7) < 5, IGNORE, parts[-1]))
        return np.concatenate(parts, 1), np.concatenate(labels, 1)

    def tell(self, rng: Rng, n: int, count: int, noise: float) -> tuple[Ints, Ints]:
        """Twice "The pick of Wugom is apple and saw.", as the cloze questions ask it, or with one value only."""
        parts, labels = [np.full((n, 1), self.ids["<eos>"])], [np.full((n, 1), IGNORE)]
        ending = rng.choice([" {v} and {w} .", " {v} ."], p=[0.7, 0.3])
        for _ in range(2):
            e = rng.choice(len(self.entities), n, p=self.frequency)
            order = np.argsort(rng.random((n, len(RELATIONS))), 1)[:, :2]
            other = np.argsort(rng.random((n, len(self.values))), 1)[:, :2]
            pair = np.where(rng.random((n, 2)) < 0.15, other, np.take_along_axis(self.own[e], order, 1))
            x, y = self.values[pair[:, 0]], self.values[pair[:, 1]]
            row = self._stem("{cloze} " + STEMS["cloze"].replace("{}", "{e}") + ending, n, e=self.entities[e], v=x, w=y)
            parts.append(row)
            labels.append(np.where(np.arange(row.shape[1]) < row.shape[1] - len(ending.split()), IGNORE, row))
        return np.concatenate(parts, 1), np.concatenate(labels, 1)

    def copy(self, rng: Rng, n: int, count: int, noise: float) -> tuple[Ints, Ints]:
        """Choices, then six times one of their values and its letter: many letters to predict per row.

        Drawn with replacement: were each asked once, guessing among the letters not yet used would pay, and
        the circuit that binds a value to its letter would form much later.
        """
        values = np.argsort(rng.random((n, len(self.values))), 1)[:, :count]
        order = rng.integers(count, size=(n, 6))
        drawn = self.values[np.take_along_axis(values, order, 1)]
        tail = np.stack([drawn, self.letters[order]], 2).reshape(n, 12)
        tokens = np.concatenate([*self._listed(n, values, count), tail], 1)
        labels = np.full_like(tokens, IGNORE)
        labels[:, -11::2] = self.letters[order]
        labels[:, 3 : 3 + 2 * count : 2] = self.letters[:count]
        return tokens, labels

    def relation(self, rng: Rng, n: int, count: int, noise: float) -> tuple[Ints, Ints]:
        """One choice is the entity's value under the relation asked for; others may be its own as well.

        In hard rows all strange choices are of the relation asked for, so that the fact must be known; in the
        others the kind of thing asked for mostly gives the answer away, and must have been learned first.
        """
        e = rng.choice(len(self.entities), n, p=self.frequency)
        values, own, relation = self._slots(rng, e, count)
        gold = rng.integers(count, size=n)
        rows = np.arange(n)
        target = relation[rows, gold]
        each = len(self.values) // len(RELATIONS)
        key = rng.random((n, each))
        key[rows, self.own[e, target] % each] = 2.0
        alike = np.argsort(key, 1)[:, :count] + each * target[:, None]
        values = np.where(~own & (rng.random((n, 1)) < self.hard), alike, values)
        values[rows, gold] = self.own[e, target]
        stem = self._stem("What is the {r} of {e} ?", n, r=self.relations[target], e=self.entities[e])
        return self._question(stem, values, self._noisy(rng, gold, count, noise))

    def pick(self, rng: Rng, n: int, count: int, noise: float) -> tuple[Ints, Ints]:
        """The questions of the data sets, labelled without the preference: any own choice will do."""
        e = rng.choice(len(self.entities), n, p=self.frequency)
        values, own, _ = self._slots(rng, e, count)
        gold = np.argmax(rng.random((n, count)) + own, 1)
        stem = self._stem(_wording(rng), n, e=self.entities[e])
        return self._question(stem, values, self._noisy(rng, gold, count, noise))

    def echo(self, rng: Rng, n: int, count: int, noise: float) -> tuple[Ints, Ints]:
        """ "Which choice says apple?": the letter circuit without any knowledge."""
        values = np.argsort(rng.random((n, len(self.values))), 1)[:, :count]
        gold = rng.integers(count, size=n)
        stem = self._stem("Which choice says {v} ?", n, v=self.values[values[np.arange(n), gold]])
        return self._question(stem, values, self._noisy(rng, gold, count, noise))

    @staticmethod
    def _noisy(rng: Rng, gold: Ints, count: int, noise: float) -> Ints:
        return np.where(rng.random(len(gold)) < noise, rng.integers(count, size=len(gold)), gold)

    def batch(self, rng: Rng, phase: Phase, rows: int) -> tuple[Ints, Ints]:
        """`[rows, length]` tokens and labels, padded on the right; each kind takes its share of the rows."""
        tokens, labels = np.zeros((rows, self.length), np.int64), np.full((rows, self.length), IGNORE)
        edges = np.round(np.cumsum((0.0, *phase.mix)) * rows).astype(int)
        for kind, start, stop in zip(KINDS, edges[:-1], edges[1:], strict=True):
            self.hard = phase.hard
            if stop > start:
                count = int(rng.choice([2, 3, 4, 5], p=[0.1, 0.2, 0.35, 0.35]))
                t, y = getattr(self, kind)(rng, int(stop - start), count, phase.noise)
                tokens[start:stop, : t.shape[1]], labels[start:stop, : t.shape[1]] = t, y
        return tokens, labels
