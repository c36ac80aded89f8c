"""What figures show is what was recorded: the numbers of each chart, before anything is drawn."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.made_results import result
from uqharness.errors import InputError
from uqharness.leaderboard.board import build
from uqharness.metrics.intervals import wilson
from uqharness.plots import results, std
from uqharness.plots.figure import Chart, Panel
from uqharness.plots.results import Row

TASKS = ("openbookqa_uq", "arc_challenge_uq")


def rows_of(folder: Path) -> list[Row]:
    board = build([folder])
    return [Row(board.label(run), run, partial(board.record, run.run_id)) for run in board.runs]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Two methods with two seeds on two tasks, one of them a point."""
    folder = tmp_path_factory.mktemp("results")
    for method, draws in (("MLE", 1), ("BLoB", 4)):
        for seed in range(2):
            for task in TASKS:
                result(folder, method, seed, task, draws, trained_on=TASKS[0], finite=1 if draws == 1 else None)
    return rows_of(folder)


def panel_of(chart: Chart, **wanted: str) -> Panel:
    return next(p for p in chart.panels if all(getattr(p, name) == value for name, value in wanted.items()))


def test_draws_are_the_means_over_seeds_at_every_n(rows: list[Row]) -> None:
    chart = results.draws(rows, ["nll"])
    (blob,) = (line for line in panel_of(chart, title=TASKS[0]).lines if line.label == "BLoB")
    runs = [row.run for row in rows if row.label == "BLoB" and row.run.task == TASKS[0]]
    values = np.array([[run.number("nll", n) for n in range(5)] for run in runs])
    assert list(blob.x) == [0, 1, 2, 3, 4]
    assert np.allclose(blob.y, values.mean(0)) and np.allclose(blob.high, values.mean(0) + values.std(0, ddof=1))
    (mle,) = (line for line in panel_of(chart, title=TASKS[0]).lines if line.label == "MLE")
    assert mle.flat
    with pytest.raises(InputError, match="samples=10"):
        results.draws([row for row in rows if row.label == "MLE"])


def test_reliability_bins_give_back_ece(rows: list[Row]) -> None:
    one = [row for row in rows if row.label == "BLoB" and row.run.seed == 0 and row.run.task == TASKS[0]]
    chart = results.reliability(one, bins=15)
    (line,) = chart.panels[0].lines
    answers = one[0].answers()
    conf, hits = answers.p.max(-1), answers.p.argmax(-1) == answers.gold
    place = np.clip(np.ceil(conf * 15) - 1, 0, 14).astype(int)
    sizes = np.array([np.sum(place == b) for b in np.unique(place)])
    gaps = np.abs(np.array(line.y) - np.array(line.x)) * sizes / len(conf)
    assert gaps.sum() == pytest.approx(one[0].run.number("ece", 4), abs=1e-9)
    first = place == place.min()
    assert line.low is not None and line.low[0] == pytest.approx(
        wilson(int(hits[first].sum()), int(first.sum()), 0.95)[0]
    )


def test_risk_coverage_ends_at_the_error_rate_and_averages_to_aurc(rows: list[Row]) -> None:
    chart = results.risk_coverage(rows)
    for task in TASKS:
        for line in panel_of(chart, title=task).lines:
            runs = [row.run for row in rows if (row.label, row.run.task) == (line.label, task)]
            assert line.y[-1] == pytest.approx(100 * np.mean([1 - run.number("acc", run.draws) for run in runs]))
            assert line.x[-1] == 100
    alone = results.risk_coverage([row for row in rows if row.run.task == TASKS[0] and row.label == "MLE"])
    aurc = 100 * np.mean([row.run.number("aurc", 1) for row in rows if row.label == "MLE" and row.run.task == TASKS[0]])
    assert alone.panels[0].lines[0].label == f"MLE (AURC {aurc:.1f} %)"


def test_tradeoff_has_intervals_and_the_mean(rows: list[Row]) -> None:
    one = [row for row in rows if row.label == "BLoB" and row.run.seed == 0 and row.run.task == TASKS[0]]
    average, mean = results.tradeoff(one).panels[0].lines
    run = one[0].run
    assert (average.x[0], average.y[0]) == pytest.approx((100 * run.number("ece", 4), 100 * run.number("acc", 4)))
    assert average.low and average.x_high and average.low[0] < average.y[0] and average.x_high[0] > average.x[0]
    assert mean.hollow and mean.x[0] == pytest.approx(100 * run.number("ece", 0))


def test_steps_are_those_of_one_training_and_mark_the_best(tmp_path: Path) -> None:
    for method, finite in (("MAP", 1), ("LAP", None)):
        for step in (100, 200, 300):
            run = {"steps": 300, "stop_at": step if step < 300 else 0}
            result(tmp_path, method, 0, TASKS[0], 1, run=run, finite=finite, numbers=step, recipe_hash=f"r{step}")
    rows = rows_of(tmp_path)
    chart = results.steps(rows, ["acc", "nll"])
    line = chart.panels[1].lines[0]
    assert list(line.x) == [100, 200, 300]
    accuracy = {results.step_of(row.run): row.run.number("acc", 1) for row in rows if row.label == "MAP"}
    assert chart.panels[0].marks == [(max(accuracy, key=lambda step: accuracy[step]), "MAP's best ACC")]
    with pytest.raises(InputError, match="--stop-at"):
        results.steps([row for row in rows if results.step_of(row.run) == 100])


def test_predictives_side_by_side(tmp_path: Path) -> None:
    result(tmp_path, "MLE", 0, TASKS[0], 1, finite=1)
    for name in ("bridge", "joint"):
        result(tmp_path, "LAP", 0, TASKS[0], 1, settings={"predictive": name})
    rows = rows_of(tmp_path)
    (panel,) = results.predictive(rows, ["nll"]).panels
    assert panel.ticks == ["MAP", "joint", "bridge"]
    assert {line.label: line.x[0] for line in panel.lines} == {"MAP": 0, "joint": 1, "bridge": 2}
    with pytest.raises(InputError, match="only bridge: train laplace with --set predictive=NAME"):
        results.predictive([row for row in rows if row.run.settings.get("predictive") != "joint"])


def test_cost_needs_trained_adapters(rows: list[Row]) -> None:
    with pytest.raises(InputError, match="no run records what its adapter cost"):
        results.cost(rows)


def test_std_growth_is_gradient_descent_on_the_kl() -> None:
    """The slow twin takes the gradient of the KL itself."""
    for kind, std_of in (("square", torch.square), ("softplus", torch.nn.functional.softplus)):
        start = {"square": 0.1, "softplus": float(np.log(np.expm1(0.01)))}[kind]
        rho = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        ours = std.growth(kind, 200)
        for step in range(200):
            assert ours[step] == pytest.approx(float(std_of(rho)), rel=1e-9)
            posterior = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), std_of(rho))
            kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
            (slope,) = torch.autograd.grad(kl, rho)
            rho = (rho - 1e-4 * slope).detach().requires_grad_()


def test_std_growth_shows_what_the_paper_says() -> None:
    (panel,) = std.std_growth().panels
    soft, square = panel.lines
    at = {line.label: dict(zip(line.x, line.y, strict=True)) for line in (soft, square)}
    assert panel.marks == [(5000.0, "5,000 steps")] and soft.x[-1] == 100_000
    assert at[square.label][5000] > 0.95 and at[soft.label][5000] < 0.03 and 0.95 < at[soft.label][100_000] < 1


def test_std_layers_come_from_the_record() -> None:
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.default.weight"
    record = {"training": [{"std": {name.format(k): [[0, 0.01], [5, 0.02 + k]] for k in range(2)}}]}
    (panel,) = std.std_layers([("blob", record)]).panels
    assert {line.label: list(line.y) for line in panel.lines} == {"0.q_proj": [0.01, 0.02], "1.q_proj": [0.01, 1.02]}
    encoder = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.default.weight"
    assert list(std.short_names({encoder: []})) == ["1.query"]
    with pytest.raises(InputError, match="--record-every K"):
        std.std_layers([("mle", {"training": [{}]})])
