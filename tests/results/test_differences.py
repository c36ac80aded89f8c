"""What keeps two results apart is named with both values, without what follows from it."""

from __future__ import annotations

import json

import pytest

from uqharness.results.differences import of_protocols, of_recipes

HASHES = {"documents": "d", "prompts": "p", "answers": "a"}
OTHER = {"documents": "e", "prompts": "q", "answers": "b"}


@pytest.mark.parametrize(
    "one, other, named",
    [
        ({"items": "60", **HASHES}, {"items": "40", **OTHER}, {"items": ("60", "40")}),
        ({"items": "60", **HASHES}, {"items": "60", **OTHER}, {"documents": ("d", "e")}),
        (HASHES, {**HASHES, "prompts": "q"}, {"prompts": ("p", "q")}),
        (
            {"normalise": "bytes", **HASHES},  # does not explain other questions
            OTHER,
            {"normalise": ("bytes", "not set"), "documents": ("d", "e")},
        ),
        ({"model": '{"max_length": "9"}'}, {}, {"model_args": ('{"max_length": "9"}', "not set")}),
        ({"chat_template": "null"}, {"chat_template": "c"}, {"chat_template": ("not set", "c")}),
    ],
)
def test_fields_of_protocols(one: dict[str, str], other: dict[str, str], named: dict[str, tuple[str, str]]) -> None:
    assert of_protocols(one, other) == named


def test_of_two_objects_the_inner_fields_are_named() -> None:
    shots = {"delimiter": "\n\n", "multiturn": False, "sampler": "default", "seed": 1234, "number": 2}
    two, five = ({"fewshot": json.dumps({**shots, "number": n})} for n in (2, 5))
    assert of_protocols(two, five) == {"fewshot.number": ("2", "5")}


def test_long_values_are_shown_where_they_differ() -> None:
    (one, other) = of_recipes({"text": "x" * 100 + "abc"}, {"text": "x" * 100 + "abd" + "y" * 50})["text"]
    assert one != other and one.endswith("abc") and "abdy" in other and max(len(one), len(other)) <= 40


def test_a_setting_that_an_older_record_lacks_is_not_recorded() -> None:
    assert of_recipes({}, {"stop_at": "5"}) == {"stop_at": ("not recorded", "5")}
