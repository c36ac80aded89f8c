"""The registry: every metric by name, and what must hold for all of them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from answers import calibrated, questions
from hypothesis import given, settings
from hypothesis import strategies as st

from uqharness import plugins
from uqharness.errors import InputError
from uqharness.metrics import averaging, calibration, points
from uqharness.metrics import registry as metrics
from uqharness.metrics.registry import METRICS, compute_all


def log(probs: np.ndarray) -> np.ndarray:
    return np.where(probs == 0, -np.inf, np.log(np.where(probs == 0, 1, probs)))


def equal(a: dict[str, float], b: dict[str, float]) -> bool:
    values = [b[k] for k in a]
    return a.keys() == b.keys() and np.allclose(list(a.values()), values, 1e-6, 1e-7, equal_nan=True)


def without_floor(values: dict[str, float]) -> dict[str, float]:
    """A permutation of the items gives the floor's random numbers to other items."""
    return {k: v for k, v in values.items() if not k.startswith("ece_floor")}


def test_registry_names_what_was_promised() -> None:
    assert set(METRICS) == {
        "acc",
        "nll",
        "ece",
        "brier",
        "mcc",
        "ece10",
        "ece_torchmetrics",
        "mce",
        "auroc",
        "aurc",
        "entropy",
        "entropy_norm",
        "mutual_information",
        "mutual_information_norm",
        "ece_floor",
        "ece_debiased",
    }
    assert {name for name, metric in METRICS.items() if metric.has_interval} == set(METRICS) - {"ece_floor"}
    assert all(metric.name == name for name, metric in METRICS.items())
    console = {name for name, metric in METRICS.items() if metric.console}
    assert console == {"acc", "nll", "ece", "ece_debiased", "brier", "auroc"}
    assert {name for name in METRICS if metrics.tested(name)} == {"acc", "nll", "brier", "ece", "ece_debiased", "mcc"}


def test_compute_all_equals_the_single_functions() -> None:
    rng = np.random.default_rng(0)
    logp, gold = rng.normal(0, 2, (5, 80, 4)), rng.integers(0, 4, 80)
    values, answers = compute_all(logp, gold), averaging.average(logp, gold)
    binned = [name for name, metric in METRICS.items() if metric.biased]
    ends = {f"{name}_{end}" for name in binned for end in ("low", "high")}
    errors = {f"{name}_stderr" for name in METRICS if METRICS[name].has_interval and name not in binned}
    assert set(values) == set(METRICS) | errors | ends | {"ece_floor_q95"}
    for name in binned:
        assert (values[f"{name}_low"], values[f"{name}_high"]) == METRICS[name].confidence_interval(answers)
    assert values["ece10"] == calibration.ece(calibration.bin_probs(answers.p, gold, 10))
    assert values["mutual_information"] == pytest.approx(
        points.mutual_information(averaging.softmax_draws(logp)).mean(), abs=1e-12
    )
    for name, metric in METRICS.items():
        assert values[name] == metric.value(answers)
        if metric.items is not None:
            items = metric.per_item(answers)
            assert items.shape == (80,) and values[name] == pytest.approx(items.mean())
            assert values[f"{name}_stderr"] == pytest.approx(items.std(ddof=1) / np.sqrt(80))


def test_given_has_no_information_between_draws() -> None:
    probs, gold = calibrated(50, 0)
    values = compute_all(log(probs)[None], gold, "given")
    undefined = {name for name, value in values.items() if math.isnan(value)}
    assert undefined == {f"mutual_information{a}{b}" for a in ("", "_norm") for b in ("", "_stderr")}
    assert compute_all(log(probs)[None], gold, "probs")["mutual_information"] == 0


def test_logp_without_draws_is_refused() -> None:
    with pytest.raises(InputError, match=r"logp must be \[S, D, C\]: found shape \(2, 2\)"):
        compute_all(np.zeros((2, 2)), [0, 1])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6), st.integers(1, 3))
def test_absent_choices_and_the_order_of_items_change_nothing(n: int, seed: int, columns: int) -> None:
    probs, gold = questions(n, seed)
    other, _ = calibrated(n, seed)
    logp = log(np.stack([probs, probs]))
    logp[1] = np.where(np.isfinite(logp[1]), logp[1] * (0.2 + other[:, :1]), logp[1])
    values = compute_all(logp, gold)
    padded = np.concatenate([logp, np.full((2, n, columns), np.nan)], axis=2)
    assert equal(values, compute_all(padded, gold))
    order = np.random.default_rng(seed).permutation(n)
    assert equal(without_floor(values), without_floor(compute_all(logp[:, order], gold[order])))
    for name in ("acc", "ece", "ece10", "ece_torchmetrics", "ece_debiased", "mce", "aurc", "entropy_norm"):
        assert -1e-9 <= values[name] <= 1 + 1e-6


def test_metrics_import_neither_torch_nor_scipy_stats() -> None:
    code = "import sys, uqharness.metrics.registry; print({'torch', 'scipy.stats', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


# ---------------------------------------------------------------- metrics of other packages


CODE = """
from uqharness.metrics.metric import Metric
first = Metric("first", "First", "The mean probability of the first choice.", items=lambda a: a.p[..., 0], console=True)
acc = Metric("acc", "Mine", "Hides nothing.", items=lambda a: a.p[..., 0])
several = [first, acc]
number = 3
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    names = {"several": "several", "broken": "nothing", "number": "number"}
    lines = "\n".join(f"{name} = third_party_metrics:{value}" for name, value in names.items())
    (info / "entry_points.txt").write_text(f"[{plugins.METRICS}]\n{lines}\n")
    (tmp_path / "third_party_metrics.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("third_party_metrics", None)


def test_metrics_of_other_packages_come_behind_the_built_ins(
    third_party: None, caplog: pytest.LogCaptureFixture
) -> None:
    installed = metrics.installed()
    assert list(installed) == [*METRICS, "first"] and installed["acc"] is METRICS["acc"]
    assert float(installed["first"]([[0.3, 0.7], [0.5, 0.5]], [0, 1])) == pytest.approx(0.4)
    assert [("acc" in line and "hidden" in line, "broken" in line, "number" in line) for line in caplog.messages] == [
        (False, True, False),
        (False, False, True),
        (True, False, False),
    ]


def test_the_example_package_has_metrics_of_every_number_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(__file__).parents[2] / "docs" / "examples" / "uqharness-sgld-noise"
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.syspath_prepend(str(package / "tests"))
    import test_margin
    import uqharness_margin

    for metric in uqharness_margin.METRICS:
        monkeypatch.setitem(METRICS, metric.name, metric)
    test_margin.test_margins_of_every_number_of_draws()


@pytest.mark.parametrize("has_mean", [True, False])
def test_an_option_of_ece_is_a_metric_by_its_name(has_mean: bool) -> None:
    rng = np.random.default_rng(2)
    logp, gold = rng.normal(0, 2, (4, 80, 3)), rng.integers(0, 3, 80)
    names = ["ece10", "ece:bins=10", "ece_torchmetrics", "ece:rule=torchmetrics:bins=15", "ece:bins=15", "ece"]
    _, values = metrics.every_n(logp, gold, "probs", has_mean, names)
    for one, other in zip(names[::2], names[1::2], strict=True):
        np.testing.assert_array_equal(values[one], values[other])
    assert "ece:bins=10" not in METRICS and METRICS["ece:bins=20"].label == "ECE (20 bins)"
    for wrong in ("ece:bins=0", "ece:bins=1.5", "ece:rule=mine", "ece:width=3"):
        with pytest.raises(InputError, match=r"ece takes bins=1 … 1000 and rule=right-closed or torchmetrics"):
            metrics.find(wrong)
    with pytest.raises(InputError, match=r"unknown metric 'eec' \(did you mean ece\?\); there are acc"):
        metrics.find("eec")


def test_every_metric_says_what_it_means_in_one_sentence() -> None:
    for metric in METRICS.values():
        assert metric.meaning.endswith(".") and "\n" not in metric.meaning and 20 < len(metric.meaning) < 120
    assert [name for name in METRICS if METRICS[name].option_of] == ["ece10", "ece_torchmetrics"]
