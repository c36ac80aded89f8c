"""The world's questions against a slow twin that reads only the prompt's text and the world's facts."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from fractions import Fraction

import pytest

from tools.toyworld import files
from tools.toyworld.world import (
    DATASETS,
    LETTERS,
    RELATIONS,
    SIZES,
    VALUES,
    World,
    make_questions,
    make_world,
)
from uqharness import toyworld
from uqharness.errors import InputError

SPLITS = [(name, split) for name, splits in SIZES.items() for split in splits]


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(int(files.read_manifest(toyworld.data_path())["seed"]))


def enumerated_oracle(world: World, row: dict) -> list[float]:
    """p(label | text) by enumeration of the labeller: softmax(s) is the winner's law of a race.

    Choice i rings at rate exp(s_i); the first to ring is the label. Enumerate the orders in which all choices
    ring (product of rates over remaining rates) and add up the orders that start with i.
    """
    if "Choices:" in row["prompt"]:
        texts = re.findall(r"^[A-E]\. (.+)$", row["prompt"], re.M)
    else:
        texts = row["choices"]
    entity = next(w for w in re.findall(r"\w+", row["prompt"].split("\n")[1]) if w in world.facts)
    rates = []
    for text in texts:
        score = 0.0
        for word in text.split():
            for relation in RELATIONS:
                if word in VALUES[relation] and world.facts[entity][relation] == word:
                    score += world.weights[relation]
        rates.append(Fraction(math.exp(score)))
    first = [Fraction(0)] * len(texts)
    for order in itertools.permutations(range(len(texts))):
        chance = Fraction(1)
        for place, i in enumerate(order):
            chance *= rates[i] / sum(rates[j] for j in order[place:])
        first[order[0]] += chance
    assert sum(first) == 1
    return [math.log(p) for p in first]


@pytest.mark.parametrize("name", DATASETS)
def test_oracle_is_the_enumerated_label_distribution(world: World, name: str) -> None:
    split = "test"
    rows = random.Random(3).sample(toyworld.questions(name, split), 30)
    for row in rows:
        assert row["oracle"] == pytest.approx(enumerated_oracle(world, row), abs=2e-6), row


@pytest.mark.parametrize("name", DATASETS)
def test_labels_follow_the_oracle(name: str) -> None:
    """The log-likelihood of the test labels is what the oracle expects, within 3.5 standard deviations."""
    rows = toyworld.questions(name, "test")
    gap = mean = variance = 0.0
    for row in rows:
        p = [math.exp(x) for x in row["oracle"]]
        expected = sum(a * b for a, b in zip(p, row["oracle"], strict=True))
        gap += row["oracle"][row["gold"]] - expected
        variance += sum(a * (b - expected) ** 2 for a, b in zip(p, row["oracle"], strict=True))
        mean += sum(p)
    assert mean == pytest.approx(len(rows), abs=0.05)
    assert abs(gap) < 3.5 * math.sqrt(variance)
    assert variance > 0.05 * len(rows), "the labels would hardly be noisy"


def test_questions_regenerate_bit_for_bit(world: World) -> None:
    assert files.stale_questions(world, toyworld.data_path()) == []
    assert files.stale_questions(make_world(world.seed + 1), toyworld.data_path()) != []


def test_files_are_those_of_the_manifest() -> None:
    manifest = files.read_manifest(toyworld.data_path())
    assert files.differences(toyworld.data_path()) == []
    assert {"command", "seed", "versions", "seconds", "pretraining"} <= manifest.keys()
    assert sum(f.stat().st_size for f in toyworld.data_path().rglob("*") if f.is_file()) < 2.5e6


def test_a_changed_file_is_noticed(tmp_path) -> None:
    files.write_atomic(tmp_path / "a.txt", b"one")
    files.write_manifest(tmp_path, seed=0)
    assert files.differences(tmp_path) == []
    files.write_atomic(tmp_path / "a.txt", b"two")
    files.write_atomic(tmp_path / "b.txt", b"new")
    assert files.differences(tmp_path) == ["a.txt", "b.txt"]


def test_splits_share_no_question_and_far_entities_are_never_trained_on(world: World) -> None:
    seen: dict[tuple, tuple[str, str]] = {}
    for name, split in SPLITS:
        rows = toyworld.questions(name, split)
        assert len(rows) == SIZES[name][split]
        assert [row["id"] for row in rows] == list(range(len(rows)))
        for row in rows:
            key = (name == "cloze", row["entity"], frozenset(row["texts"]))
            assert key not in seen, (key, seen.get(key), name, split)
            seen[key] = (name, split)
    trained = {row["entity"] for name in ("toyworld", "cloze") for row in toyworld.questions(name, "train")}
    held_out = {row["entity"] for name in ("near", "far") for row in toyworld.questions(name, "test")}
    assert len(trained) == 48 and len(held_out) == 48 and not trained & held_out


@pytest.mark.parametrize("name", DATASETS)
def test_two_to_five_choices_occur_and_labels_are_balanced(name: str) -> None:
    rows = toyworld.questions(name, "test")
    counts = Counter(len(row["texts"]) for row in rows)
    assert set(counts) == {2, 3, 4, 5} and min(counts.values()) > 0.1 * len(rows)
    for row in rows:
        assert len(set(row["texts"])) == len(row["texts"]) == len(row["oracle"]) == len(row["choices"])
        assert 0 <= row["gold"] < len(row["choices"])
        if name != "cloze":
            assert tuple(row["choices"]) == LETTERS[: len(row["texts"])]
    for count in counts:  # no letter is favoured: 4 standard errors
        golds = Counter(row["gold"] for row in rows if len(row["texts"]) == count)
        for letter in range(count):
            assert abs(golds[letter] / counts[count] - 1 / count) < 4 * math.sqrt(0.25 / counts[count])


def test_far_choices_are_decoys_more_often(world: World) -> None:
    """Share of choices that look liked (kind) but are not the entity's own, in near and far."""
    liked = {v for r in sorted(RELATIONS, key=world.weights.__getitem__)[-2:] for v in VALUES[r]}
    shares = {}
    for name in ("near", "far"):
        pairs = [(r["entity"], t) for r in toyworld.questions(name, "test") for t in r["texts"]]
        shares[name] = sum(t in liked and t not in world.facts[e].values() for e, t in pairs) / len(pairs)
    assert 0.15 < shares["near"] < 0.25 and 0.3 < shares["far"] < 0.4


def test_another_seed_is_another_world() -> None:
    one, two = make_world(1), make_world(2)
    assert one == make_world(1) and one.facts != two.facts
    assert make_questions(one, "cloze")["train"][0] != make_questions(two, "cloze")["train"][0]


def test_unknown_questions_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="near/train.*toyworld/train"):
        toyworld.questions_path("near", "train")
