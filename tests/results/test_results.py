"""The record: packed and unpacked without loss, recomputed by a slow twin, damaged ones refused by name."""

from __future__ import annotations

import base64
import copy
import json
import math
import pickle
import zlib
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uqharness.errors import InputError, RunError
from uqharness.results.reading import RECORD, is_kept, metrics, model_protocol, read_results, require_comparable, shift
from uqharness.results.record import BMALogProb, digest, item_rows, pack, unpack

LOGP = st.floats(-80, 5, width=32)


@st.composite
def item_lists(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Items of 2 to 5 choices with the same number of draws, with or without the mean's row, in any order."""
    count, draws, mean = draw(st.integers(1, 6)), draw(st.integers(0, 3)), draw(st.booleans())
    ids = draw(st.lists(st.integers(0, 4000), min_size=count, max_size=count, unique=True))
    items = []
    for key in ids:
        size = draw(st.integers(2, 5))
        rows = [draw(st.lists(LOGP, min_size=size, max_size=size)) for _ in range(draws + 1)]
        logp = [rows[0] if mean or not draws else None, *rows[1:]]
        items.append(
            {
                "id": key,
                "gold": draw(st.integers(0, size - 1)),
                "combine": "probs",
                "logp": logp,
                "doc_hash": digest(str(key)),
            }
        )
    return items


@given(item_lists())
def test_pack_and_unpack_lose_nothing(items: list[dict[str, Any]]) -> None:
    packed = pack(items, task="t", protocol={"a": [1, None]}, train_dropped={"3": 2})
    record = unpack(json.loads(json.dumps(packed)))
    items = sorted(items, key=lambda item: item["id"])
    assert record.ids.tolist() == [item["id"] for item in items]
    assert record.gold.tolist() == [item["gold"] for item in items]
    assert record.doc_hashes == [item["doc_hash"] for item in items]
    assert (record.task, record.protocol, record.train_dropped) == ("t", {"a": [1, None]}, {"3": 2})
    assert record.has_mean == (items[0]["logp"][0] is not None)
    assert record.draws == len(items[0]["logp"]) - 1
    assert sum(record.choice_counts.values()) == len(items)
    for d, item in enumerate(items):
        for s, row in enumerate(item["logp"]):
            stored = record.logp[s, d]
            if row is None:
                assert np.isnan(stored).all()
            else:
                assert stored[: len(row)].tolist() == row  # float32 values: exactly
                assert np.isnan(stored[len(row) :]).all()


SCORE = BMALogProb(-1.25, (-1.0, -1.5), mean=-1.1, combine="logits")


CARRIERS = [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), lambda x: dill.loads(dill.dumps(x))]


@pytest.mark.parametrize("same", CARRIERS, ids=["copy", "deepcopy", "pickle", "dill"])
def test_a_score_survives_being_carried(same: Any) -> None:
    score: Any = same(SCORE)
    assert score == -1.25 and type(score) is BMALogProb
    assert (score.draws, score.mean, score.combine) == ((-1.0, -1.5), -1.1, "logits")
    carried: Any = same((SCORE, True))
    assert carried[0].draws == (-1.0, -1.5)


def test_a_score_is_a_float_for_json_and_numpy() -> None:
    assert json.dumps([SCORE]) == "[-1.25]"
    assert np.array([SCORE, SCORE]).dtype == np.float64
    with pytest.raises(InputError, match="not a rule"):
        BMALogProb(0.0, (), combine="mean")


def test_rows_of_plain_floats_draws_and_the_mean_alone() -> None:
    assert item_rows([-1.0, -2.0]) == ([None, [-1.0, -2.0]], "probs")
    assert item_rows([BMALogProb(-1, (-1, -2), -3), BMALogProb(-4, (-5, -6), -7)]) == (
        [[-3, -7], [-1, -5], [-2, -6]],
        "probs",
    )
    assert item_rows([BMALogProb(-1, ()), BMALogProb(-2, ())]) == ([[-1, -2]], "probs")
    with pytest.raises(RunError, match="cache of another run"):
        item_rows([BMALogProb(-1, (-1, -2)), BMALogProb(-2, (-2,))])


def sample_record(mean: bool = True, seed: int = 0, rule: str = "probs") -> Any:
    """40 items, 4 draws."""
    rng = np.random.default_rng(seed)
    out = []
    for key in range(40):
        size = int(rng.integers(2, 6))
        rows = np.log(rng.dirichlet(np.ones(size), 5)).astype(np.float32).tolist()
        out.append(
            {
                "id": key,
                "gold": int(rng.integers(size)),
                "combine": rule,
                "doc_hash": digest(str(key)),
                "logp": [rows[0] if mean else None, *rows[1:]],
            }
        )
    return pack(out, task="sample", protocol={"prompts": "p"})


@pytest.mark.parametrize("rule", ["probs", "logits"])
@pytest.mark.parametrize("draws", [0, 1, 3, 4, None])
def test_metrics_for_any_number_of_draws_against_a_loop(draws: int | None, rule: str) -> None:
    record = unpack(sample_record(rule=rule))
    rows = [0] if draws == 0 else range(1, (4 if draws is None else draws) + 1)
    losses, hits = [], []
    for d in range(record.items):
        size = int(record.choices[d])
        logs = [[float(x) for x in record.logp[s, d, :size]] for s in rows]
        logs = [[x - math.log(sum(map(math.exp, row))) for x in row] for row in logs]
        if rule == "logits":
            means = [sum(column) / len(logs) for column in zip(*logs, strict=True)]
            probs = [math.exp(x) / sum(map(math.exp, means)) for x in means]
        else:
            probs = [sum(map(math.exp, column)) / len(logs) for column in zip(*logs, strict=True)]
        losses.append(-math.log(probs[record.gold[d]]))
        hits.append(probs.index(max(probs)) == record.gold[d])
    values = metrics(record, draws)
    assert values["nll"] == pytest.approx(sum(losses) / len(losses), abs=1e-9)
    assert values["acc"] == pytest.approx(sum(hits) / len(hits), abs=1e-12)


def test_draws_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="holds 4; ask for 0 ... 4"):
        metrics(unpack(sample_record()), 5)
    with pytest.raises(InputError, match="no row for the posterior mean"):
        metrics(unpack(sample_record(mean=False)), 0)


def damaged(**changes: Any) -> dict[str, Any]:
    return {**sample_record(), **changes}


def zipped(values: Any, kind: str) -> str:
    return base64.b64encode(zlib.compress(np.asarray(values, dtype=kind).tobytes())).decode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "schema 99; this version reads schema 1"),
        ({"logp": "AAAA"}, "damaged record"),
        ({"draws": 3}, "logp does not have the 4 x 40"),
        ({"draws": 10**9}, "draws is 1000000000, not an integer from 0 to 10,000"),
        ({"draws": -2}, "draws is -2, not an integer"),
        ({"logp": zipped(np.zeros(10**6), "<f4")}, "logp does not have"),
        ({"items": 39}, "damaged record"),
        ({"gold": zipped([9] * 40, "<u2")}, "item 0 has label 9"),
        ({"ids": zipped([7] * 40, "<u4")}, "39 repeated ids"),
        ({"combine": "vote"}, "unknown rule 'vote'"),
        ({"choice_counts": {"4": 40}}, "choice_counts"),
        ({"protocol": {"prompts": "q"}}, "protocol hash"),
        ({"doc_hashes": ""}, "0 document hashes for 40 items"),
    ],
)
def test_a_damaged_record_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        unpack(damaged(**changes))


def test_values_that_are_no_answer_are_refused() -> None:
    record = unpack(sample_record())
    values = record.logp.copy()
    values[2, 5, 0] = np.nan
    with pytest.raises(InputError, match="item 5 has the log-likelihood nan for choice 0"):
        unpack(damaged(logp=zipped(values, "<f4")))
    logp = [None, [-math.inf, -math.inf]]
    item = {"id": 3, "gold": 0, "combine": "probs", "doc_hash": "0" * 16, "logp": logp}
    with pytest.raises(RunError, match="item 3 has probability 0 for every choice"):
        pack([item])
    with pytest.raises(RunError, match="1 repeated ids"):
        pack([{**item, "logp": [None, [-1.0, -2.0]]}] * 2)
    with pytest.raises(RunError, match="different runs"):
        pack([{**item, "logp": [None, [-1.0]]}, {**item, "id": 4, "logp": [None, [-1.0], [-1.0]]}])


def results_of(record: Any, **config: Any) -> dict[str, Any]:
    values = {f"{RECORD},none": record, "acc,none": 0.5, "acc_stderr,none": "N/A", "alias": "sample"}
    return {"results": {"sample": values, "plain": {"acc,none": 0.1}}, "config": {"model": "hf", **config}}


def test_results_are_read_from_dicts_files_and_folders(tmp_path: Path) -> None:
    (one := tmp_path / "a" / "results_1.json").parent.mkdir()
    one.write_text(json.dumps(results_of(sample_record(), model_args="pretrained=x,dtype=float32")))
    (tmp_path / "a" / "results_2.json").write_text(json.dumps(results_of(sample_record(seed=1))))
    (tmp_path / "a" / "samples_sample.jsonl").write_text("{}")
    runs = read_results(tmp_path)
    assert [run.task for run in runs] == ["sample", "sample"]
    assert runs[0].source == str(one) and runs[0].model_args == {"pretrained": "x", "dtype": "float32"}
    assert runs[0].reported == {"acc": 0.5} and runs[0].metrics() == metrics(unpack(sample_record()))
    assert read_results(one)[0].protocol_hash == read_results(results_of(sample_record()))[0].protocol_hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a results file"),
        (json.dumps({"results": {"t": {"acc,none": 1.0}}}), "no record of draws"),
        (json.dumps(results_of({"schema": 2})), "sample: record of schema 2"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results_x.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_results(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_results(tmp_path / "nowhere")


def test_only_equal_protocols_compare() -> None:
    unset = {"dtype": "bfloat16", "add_bos_token": False}
    plain = read_results(results_of(sample_record(), model_args=unset))[0]
    other = read_results(results_of(sample_record(seed=1), model_args="pretrained=y"))[0]
    assert require_comparable([plain, other]) == plain.protocol_hash == digest({"prompts": "p"})
    given = "pretrained=y,add_bos_token=True,max_length=300"
    bos = read_results(results_of(sample_record(), model_args=given))[0]
    assert model_protocol(bos.config) == {"add_bos_token": "True", "max_length": "300"}
    with pytest.raises(InputError, match=r"not comparable; they differ in model_args \(not set and"):
        require_comparable([plain, other, bos])
    items = [{"id": 0, "gold": 0, "combine": "probs", "doc_hash": "0" * 16, "logp": [None, [-1.0, -2.0]]}]
    with pytest.raises(InputError, match=r"differ in prompts \(p and r\)"):
        require_comparable([unpack(sample_record()), unpack(pack(items, protocol={"prompts": "r"}))])


def test_the_protocol_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": {"c": "é", "d": None}}) == digest({"b": {"d": None, "c": "é"}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2}) and len(digest({})) == 16


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (("openbookqa_uq", "openbookqa_uq"), "id"),
        (("openbookqa_uq", "openbookqa_uq_test"), "id"),
        (("openbookqa_uq", "arc_easy_uq"), "small"),
        (("openbookqa_uq_test", "arc_challenge_uq_test"), "small"),
        (("openbookqa_uq", "mmlu_college_physics_uq"), "large"),
        (("winogrande_s_uq", "winogrande_m_uq"), "id"),
        (("toyworld_uq", "toyworld_near_uq"), "small"),
        (("toyworld_uq", "toyworld_far_uq"), "large"),
        (("arc_easy_cloze_uq_test", "arc_challenge_cloze_uq_test"), "small"),
        (("openbookqa_cloze_uq", "mmlu_college_physics_cloze_uq"), "large"),
        (("arc_easy_cloze_uq", "arc_easy_uq"), None),
        (("arc_easy_uq", "openbookqa_uq"), None),
        (("arc_easy_uq", "elsewhere"), None),
    ],
)
def test_shifts(pair: tuple[str, str], expected: str | None) -> None:
    assert shift(*pair) == expected


@pytest.mark.parametrize(
    ("argv", "saved"),
    [
        (["bin/lm_eval", "--model", "hf"], False),
        (["bin/lm-eval", "run", "--tasks", "t"], False),
        (["site/lm_eval/__main__.py", "--model", "hf"], False),
        (["bin/lm_eval", "--output_path", "out"], True),
        (["bin/lm_eval", "--output_path=out"], True),
        (["bin/lm_eval", "-o", "out"], True),
        (["bin/uqharness", "eval", "--tasks", "t"], False),
        (["bin/uqharness", "suite", "run"], True),
        (["my_script.py"], True),
        (["bin/pytest"], True),
        ([], True),
    ],
)
def test_when_the_hint_about_the_output_path_is_due(argv: list[str], saved: bool) -> None:
    assert is_kept(argv) is saved
