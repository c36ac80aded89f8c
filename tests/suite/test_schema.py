"""The YAML of a suite: what it means, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from uqharness.errors import InputError
from uqharness.suite.schema import parse, read, shipped

HEAD = "title: x\n"
ROWS = HEAD + "methods:\n  mle: {}\n"


def test_every_shipped_suite_can_be_read() -> None:
    assert "toyworld" in shipped()
    for name, path in shipped().items():
        suite = read(name)
        assert suite.name == name and suite.rows and suite.file == str(path)


def test_toyworld_as_it_is_meant() -> None:
    suite = read("toyworld")
    assert suite.rows["laplace"].source == "mle" and suite.rows["mle-tuned"].method == "mle"
    assert suite.rows["oracle"].model == "toyworld_oracle" and suite.rows["oracle"].method is None
    assert suite.rows["laplace"].settings == {"tokens": "expand", "prior": "layer"}
    assert suite.seeds == (0, 1, 2) and suite.draws == (0, 5, 10) and suite.bases["toyworld"] == {"base": "toyworld"}


def test_points_match_where_all_their_axes_do() -> None:
    text = ROWS + "train: [a, b]\noverride:\n- {where: {method: mle, train: [a, b]}, set: {lr: 1}}\n"
    (point,) = parse(text, "f.yaml").override
    assert point.matches(method="mle", train="a", seed=3) and not point.matches(method="mle", train="c")
    assert not point.matches(method="map", train="a") and point.settings == {"lr": 1}


@pytest.mark.parametrize(
    "text, message",
    [
        ("titel: x\nmethods: {mle: }", "f.yaml:1: unknown key 'titel' (did you mean title?)"),
        (ROWS + "  mle: {}", "f.yaml:4: no valid YAML: 'mle' occurs twice"),
        (ROWS + "  lap: {source: mla}", "f.yaml:4: lap builds on 'mla' (did you mean mle?)"),
        (ROWS + "  zero: {model: hf, steps: 3}", "f.yaml:4: unknown key 'steps'"),
        (ROWS + "seeds: two", "f.yaml:4: seeds is 'two': give how many"),
        (ROWS + "seeds: [1, 1]", "f.yaml:4: seeds is [1, 1]"),
        (ROWS + "limit: 0", "f.yaml:4: limit is 0"),
        (ROWS + "draws: ten", "f.yaml:4: draws is 'ten'"),
        (ROWS + "train: [a, a]", "f.yaml:4: train contains a name twice"),
        (ROWS + "train: [a]\nevaluate: {b: [c]}", "f.yaml:5: unknown key 'b'"),
        (ROWS + "bases: {a: 3}", "f.yaml:4: bases holds 3"),
        (ROWS + "exclude: [{seeds: 1}]", "f.yaml:4: unknown key 'seeds' (did you mean seed?)"),
        (ROWS + "override: [{where: {methd: mle}, set: {lr: 1}}]", "f.yaml:4: unknown key 'methd'"),
        (ROWS + "include: [{train: a}]", "f.yaml:4: include without `method`"),
        (ROWS + "include_path: nowhere", "f.yaml:4: include_path nowhere is not a folder"),
        ("- a", "f.yaml:1: a suite is a mapping"),
        (HEAD, "f.yaml:1: no methods"),
        (HEAD + "methods: [", "f.yaml:2: no valid YAML"),
        (HEAD + "methods:\n  a@b: {}", "f.yaml:3: row 'a@b'"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, "f.yaml")
    assert str(caught.value).startswith(message), caught.value


def test_unknown_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown suite 'toywrld' \(did you mean toyworld\?\)"):
        read("toywrld")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.yaml")
