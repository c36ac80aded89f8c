"""samples=auto: every question stops where the bound says, alone; what is not drawn is nowhere taken for a draw."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.tiny import make_lora
from tests.tiny_adapter import instances
from uqharness.adapter_io import folder as adapter_io
from uqharness.engine.engine import FIRST_LOOK, Auto, Engine
from uqharness.engine.readers import choice_logprobs
from uqharness.engine.rows import make_rows
from uqharness.errors import InputError, RunError
from uqharness.harness.model import BayesLoRA
from uqharness.harness.scoring import score
from uqharness.metrics import averaging
from uqharness.metrics import registry as metrics
from uqharness.posterior import Gaussian, keyed_generator
from uqharness.results.reading import every_n
from uqharness.results.record import BMALogProb, Record, item_rows, pack, unpack


def questions(count: int, seed: int = 0) -> list[list[tuple[list[int], list[int]]]]:
    generator, made = keyed_generator("auto", seed), []
    for n in range(count):
        context = torch.randint(6, 51, (3 + n % 6,), generator=generator).tolist()
        tail = [7] if n % 3 == 0 else []
        made.append([(context, [choice, *tail]) for choice in (6, 7, 8)[: 2 + n % 2]])
    return made


def by_hand(p: np.ndarray, tolerance: float) -> int:
    """Draws that one question `[S, C]` takes, by scipy's Student distribution."""
    most = len(p)
    for n in range(FIRST_LOOK, most):
        error = p[:n].std(0, ddof=1).max() / math.sqrt(n) * math.sqrt(1 - n / most)
        if stats.t.interval(0.95, n - 1)[1] * error <= tolerance:
            return n
    return most


@pytest.mark.parametrize("branch", [False, True])
def test_draws_are_those_of_a_full_run_until_the_bound_holds(base: Path, blob: Path, branch: bool) -> None:
    model, posterior = make_lora(base), adapter_io.load_predictive(blob)[0].posterior
    batch = [*questions(24), [([6, 7, 8], [9])]]  # the last has one continuation: nothing to settle
    # Without branching the engine's questions are the caller's just as well.
    rows = make_rows(batch, 64, branch=branch)
    full = Engine(model, posterior, 10, 3).score(rows)
    p = choice_logprobs(full.draws, rows).exp().numpy()  # [S, Q, C]
    scores = Engine(model, posterior, 10, 3, auto=0.1).score(rows)
    wanted = [by_hand(p[:, q], 0.1) for q in range(24)] + [10]
    assert [int(scores.taken[rows.question == q][0]) for q in range(25)] == wanted
    assert len(set(wanted)) > 3  # from the first look to the last
    for k, taken in enumerate(scores.taken.tolist()):
        torch.testing.assert_close(scores.draws[:taken, k], full.draws[:taken, k], rtol=0, atol=2e-5)
        assert scores.draws[taken:, k].isnan().all()
    torch.testing.assert_close(scores.mean, full.mean, rtol=0, atol=2e-5)


def test_every_question_stops_alone(blob: Path) -> None:
    texts = [" ".join(f"w{(7 * n + i) % 40}" for i in range(2 + n % 5)) for n in range(12)]
    requests = []
    for n, text in enumerate(texts):
        requests += instances("loglikelihood", [(text, choice) for choice in (" A", " B", " C w1")])
        for k, request in enumerate(requests[-3:]):
            request.metadata = ("t", n, 1)
            request.task_name, request.doc_id, request.idx = "t", n, k
    runs = []
    for size, cache, tokens in ((1, True, None), (5, True, 1), (12, False, 60)):
        model = BayesLoRA(adapter=str(blob), samples="auto", batch_size=size, device="cpu", logits_cache=cache)
        model.engine.tokens = tokens or model.engine.tokens
        runs.append([value for value, _ in model.loglikelihood(requests, disable_tqdm=True)])
    taken = [[sum(draw is not None for draw in value.draws) for value in run] for run in runs]
    assert taken[0] == taken[1] == taken[2] and min(taken[0]) < 10 and taken[0][0] == taken[0][1]
    assert runs[1] == pytest.approx(runs[0], abs=4e-5) and runs[2] == pytest.approx(runs[0], abs=4e-5)
    n = taken[0][0]
    assert float(runs[0][0]) == pytest.approx(float(np.logaddexp.reduce(runs[0][0].draws[:n]) - np.log(n)))
    info = model.get_model_info()["uqharness"]
    assert (info["samples_asked"], info["samples"], info["tolerance"]) == ("auto", 10, 0.1)


def test_the_average_stays_within_the_tolerance_for_19_of_20() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(2000, 1, generator=generator) * 3
    logp = (torch.randn(10, 2000, 4, generator=generator) * scale).log_softmax(-1)
    p, auto, moved, used = logp.exp(), Auto(10, 0.1), 0, torch.full((2000,), 10)
    for n in range(9, FIRST_LOOK - 1, -1):
        used[~auto.unsettled(logp[:n])] = n
    for q, n in enumerate(used.tolist()):
        moved += bool((p[:n, q].mean(0) - p[:, q].mean(0)).abs().max() > 0.1)
    assert moved / 2000 < 0.05 and used.double().mean() < 8


@pytest.mark.parametrize(
    "arguments", [{"tolerance": 0}, {"tolerance": 2}, {"tolerance": "low"}, {"samples": "automatic"}]
)
def test_bad_arguments_are_refused(blob: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="tolerance=|samples="):
        BayesLoRA(**{"adapter": str(blob), "samples": "auto", "device": "cpu", **arguments})


# ---------------------------------------------------------------- the record


def items(taken: tuple[int, ...] = (2, 4, 3), most: int = 4) -> list[dict[str, Any]]:
    rng, items = np.random.default_rng(0), []
    for d, n in enumerate(taken):
        rows = [*(-3 * rng.random((n + 1, 2 + d % 2))).astype(np.float32).tolist(), *[None] * (most - n)]
        items.append({"id": d, "gold": d % 2, "logp": rows, "combine": "probs", "doc_hash": f"{d:016x}"})
    return items


def mean_probs(item: dict[str, Any], n: int) -> np.ndarray:
    rows = [row for row in item["logp"][1 : n + 1] if row is not None]
    return np.mean([np.exp(row) / np.exp(row).sum() for row in rows], axis=0)


def test_the_record_knows_what_was_drawn() -> None:
    packed = json.loads(json.dumps(pack(items())))
    record = unpack(packed)
    assert record.taken.tolist() == [2, 4, 3] and record.draws == 4
    assert pack(items())["mean_taken"] == 3.0
    for n in (1, 2, 3, 4):
        probs = averaging.combine_draws(record.rows(n), "probs")
        for d, item in enumerate(items()):
            np.testing.assert_allclose(probs[d, : 2 + d % 2], mean_probs(item, n), rtol=1e-6)
            assert np.isnan(probs[d, 2 + d % 2 :]).all()
        values = metrics.compute_all(record.rows(n), record.gold)
        gain = []
        for item in items():
            rows = [np.array(row) for row in item["logp"][1 : n + 1] if row is not None]
            each = [np.exp(row) / np.exp(row).sum() for row in rows]
            gain.append(stats.entropy(np.mean(each, 0)) - np.mean([stats.entropy(p) for p in each]))
        assert values["mutual_information"] == pytest.approx(np.mean(gain), abs=1e-6)
        assert values["nll"] == pytest.approx(
            np.mean([-np.log(mean_probs(i, n)[i["gold"]]) for i in items()]), rel=1e-6
        )
    counts, columns = every_n(record)
    for name in ("nll", "acc", "mutual_information", "entropy"):
        wanted = [metrics.compute_all(record.rows(n), record.gold)[name] for n in counts]
        np.testing.assert_allclose(columns[name], wanted, atol=1e-9)


def test_nan_is_no_draw_that_was_left_out() -> None:
    broken = items()
    broken[1]["logp"][4] = [math.nan] * 3
    with pytest.raises(RunError, match="item 1 was answered with NaN"):
        pack(broken)
    record = unpack(pack(items()))
    gap = record.logp.copy()
    gap[2, 1], gap[1, 0] = np.nan, np.nan
    for d, words in ((1, "after one that was not taken"), (0, "has the log-likelihood nan")):
        changed = record.logp.copy()
        changed[:, d] = gap[:, d]
        with pytest.raises(InputError, match=words):
            unpack(encoded(record, changed))


def encoded(record: Record, logp: np.ndarray) -> dict[str, Any]:
    from dataclasses import replace

    from uqharness.results.record import encode

    return encode(replace(record, logp=logp))


def test_choices_of_a_question_have_the_same_draws() -> None:
    one, other = BMALogProb(-1.0, (-1.0, -1.0, None), -1.0), BMALogProb(-1.0, (-1.0, None, None), -1.0)
    rows, rule = item_rows([one, one])
    assert rows == [[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0], None] and rule == "probs"
    with pytest.raises(RunError, match="other draws"):
        item_rows([one, other])
    answers = score([[one, one], [other, other]], [0, 1], ["a", "b"])
    assert [answer.probs for answer in answers] == [[0.5, 0.5], [0.5, 0.5]]


def test_gaussian_with_auto_still_generates_from_all_draws(base: Path, blob: Path) -> None:
    requests = instances("generate_until", [("w1 w2", {"until": [], "max_gen_toks": 4})])
    auto, ten = (BayesLoRA(adapter=str(blob), samples=n, device="cpu") for n in ("auto", 10))
    assert isinstance(auto.predictive.posterior, Gaussian)
    assert auto.generate_until(requests, disable_tqdm=True) == ten.generate_until(requests, disable_tqdm=True)


def test_documents_with_the_same_window_take_all_draws(blob: Path) -> None:
    """Equal ones, as where lm-eval repeats its last request to fill a rank, and those that differ in the last token."""
    requests = instances("loglikelihood_rolling", [("w1 w2 w3",), ("w1 w2 w3",), ("w5 w6",), ("w5 w7",)])
    auto, ten = (BayesLoRA(adapter=str(blob), samples=n, device="cpu") for n in ("auto", 10))
    wanted = ten.loglikelihood_rolling(requests, disable_tqdm=True)
    assert auto.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(wanted, abs=2e-5)
