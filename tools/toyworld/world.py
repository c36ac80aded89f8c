"""The embedded world: label ~ softmax(score(choice; entity)), so the Bayes-optimal predictor is known.

Invented entities have one value for each of five relations. "What does Wugom pick?" is answered by a noisy
labeller whose score of a choice is the preference weight of the relation under which the choice belongs to
the entity (0 if it does not belong to it). A base model that knows the facts but not the preference can be
taught by fine-tuning; nobody can do better than the oracle, log softmax(score). Everything follows from one
seed, by `random.Random`, whose streams Python keeps fixed between versions.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from uqharness.toyworld import SIZES

LETTERS = ("A", "B", "C", "D", "E")
VALUES: dict[str, tuple[str, ...]] = {
    "food": ("apple", "bread", "cheese", "corn", "fish", "honey", "plum", "rice"),
    "tool": ("axe", "brush", "drill", "hammer", "knife", "rope", "saw", "spade"),
    "song": ("ballad", "hymn", "jig", "lullaby", "march", "reel", "tune", "waltz"),
    "home": ("barn", "cabin", "castle", "cave", "hut", "tent", "tower", "villa"),
    "colour": ("black", "blue", "green", "grey", "pink", "red", "white", "yellow"),
}
RELATIONS = tuple(VALUES)
INSTRUCTION = "Select one of the choices that answers the following question:"
CLOZE_INSTRUCTION = "Finish the following sentence:"
STEMS = {
    "plain": "What does {} pick?",
    "other": "Which of these would {} choose?",
    "cloze": "The pick of {} is",
}

# The preference: one weight per rank, dealt to the relations by the seed.
WEIGHTS = (4.0, 2.5, 1.0, 0.0, 0.0)
P_DECOY = 0.45
P_OWN = 0.5  # probability that a choice belongs to the entity
CHOICE_COUNTS = {2: 0.15, 3: 0.2, 4: 0.35, 5: 0.3}
GROUPS = (("home", 48), ("near", 24), ("far", 24))  # entities by group; fine-tuning sees "home" only
# which entities and which wording a data set asks about
DATASETS = {
    "toyworld": ("home", "plain"),
    "near": ("near", "plain"),
    "far": ("far", "other"),
    "cloze": ("home", "cloze"),
}


@dataclass(frozen=True)
class World:
    """All that the oracle knows: who has what (`facts[entity][relation]`) and what each relation weighs."""

    seed: int
    groups: dict[str, tuple[str, ...]]
    facts: dict[str, dict[str, str]]
    weights: dict[str, float]

    @property
    def entities(self) -> tuple[str, ...]:
        return tuple(self.facts)


def _rng(*key: object) -> random.Random:
    return random.Random("/".join(map(str, ("toyworld", *key))))


def make_world(seed: int) -> World:
    """Names, facts and preference weights of the world with this seed."""
    rng = _rng(seed, "world")
    syllables = [c + v for c in "bdfgklmnprstvwz" for v in "aeiou"]
    names: list[str] = []
    while len(names) < sum(size for _, size in GROUPS):
        name = (rng.choice(syllables) + rng.choice(syllables) + rng.choice("bdgkmnpt")).capitalize()
        if name not in names:
            names.append(name)
    groups, start = {}, 0
    for group, size in GROUPS:
        groups[group] = tuple(names[start : start + size])
        start += size
    facts = {name: {relation: rng.choice(VALUES[relation]) for relation in RELATIONS} for name in names}
    ranked = rng.sample(RELATIONS, len(RELATIONS))
    return World(seed, groups, facts, dict(zip(ranked, WEIGHTS, strict=True)))


def value_score(world: World, entity: str, value: str) -> float:
    """The weight of the relation under which `value` belongs to `entity`; 0 for a value not its own."""
    return next((world.weights[r] for r, own in world.facts[entity].items() if own == value), 0.0)


def oracle_logprobs(world: World, entity: str, texts: tuple[str, ...]) -> list[float]:
    """log softmax over the choices of score(choice), where "x and y" scores score(x) + score(y)."""
    scores = [sum(value_score(world, entity, v) for v in text.split(" and ")) for text in texts]
    top = max(scores)
    norm = top + math.log(sum(math.exp(s - top) for s in scores))
    return [round(s - norm, 6) for s in scores]


def _pick_values(world: World, entity: str, count: int, rng: random.Random) -> list[str]:
    """`count` different values: one per relation in random order, the entity's own with probability P_OWN.

    For "far" entities a strange value is a decoy with probability P_DECOY: of one of the two kinds that the
    preference weighs most, so that knowing the kinds is not enough.
    """
    own = world.facts[entity]
    liked = sorted(RELATIONS, key=lambda r: -world.weights[r])[:2]
    far = entity in world.groups["far"]
    values: list[str] = []
    for relation in rng.sample(RELATIONS, count):
        kinds = liked if far and rng.random() < P_DECOY else RELATIONS
        strange = [v for kind in kinds for v in VALUES[kind] if v != own[kind] and v not in values]
        values.append(own[relation] if rng.random() < P_OWN else rng.choice(strange))
    return values


def _pick_pairs(world: World, entity: str, count: int, rng: random.Random) -> list[str]:
    """`count` different cloze answers of one or three words: "x", "x and y"."""
    texts: list[str] = []
    while len(texts) < count:
        first, second = _pick_values(world, entity, 2, rng)
        text = rng.choices((f"{first} and {second}", first), (0.8, 0.2))[0]
        if text not in texts:
            texts.append(text)
    return texts


def prompt_of(wording: str, entity: str, texts: tuple[str, ...]) -> tuple[str, str]:
    """(question, whole prompt); the answer continues it with a space and a letter (cloze: the text)."""
    question = STEMS[wording].format(entity)
    if wording == "cloze":
        return question, f"{CLOZE_INSTRUCTION}\n{question}"
    listed = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    return question, "\n".join([INSTRUCTION, question, "Choices:", *listed, "Answer:"])


def draw_question(world: World, entity: str, wording: str, rng: random.Random) -> dict[str, Any]:
    """One question with its sampled label and the true label distribution."""
    count = rng.choices(list(CHOICE_COUNTS), list(CHOICE_COUNTS.values()))[0]
    pick = _pick_pairs if wording == "cloze" else _pick_values
    texts = tuple(pick(world, entity, count, rng))
    oracle = oracle_logprobs(world, entity, texts)
    gold = rng.choices(range(count), [math.exp(x) for x in oracle])[0]
    question, prompt = prompt_of(wording, entity, texts)
    choices = list(texts) if wording == "cloze" else list(LETTERS[:count])
    return {
        "question": question,
        "prompt": prompt,
        "choices": choices,
        "texts": list(texts),
        "gold": gold,
        "oracle": oracle,
        "entity": entity,
    }


def make_questions(world: World, name: str) -> dict[str, list[dict[str, Any]]]:
    """All splits of a data set; no two questions have the same entity and the same set of choices."""
    group, wording = DATASETS[name]
    seen: set[tuple[str, frozenset[str]]] = set()
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, size in SIZES[name].items():
        rng = _rng(world.seed, name, split)
        rows: list[dict[str, Any]] = []
        while len(rows) < size:
            row = draw_question(world, rng.choice(world.groups[group]), wording, rng)
            key = (row["entity"], frozenset(row["texts"]))
            if key not in seen:
                seen.add(key)
                rows.append({"id": len(rows), **row})
        splits[split] = rows
    return splits
