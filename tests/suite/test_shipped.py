"""The shipped suites: their settings are the papers', by leaderboard/papers/hyperparameters.csv."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import pytest

from uqharness.leaderboard.reported import hyperparameters
from uqharness.registry import get_method
from uqharness.settings import Run, field_types
from uqharness.suite.plan import make
from uqharness.suite.schema import Suite, read, shipped

NAMES = set(
    """
    toyworld common real-small real-small-tune minilm-glue encoder-smoke
    blob-table1 blob-table2-ood blob-table7-roberta blob-table8-ablation blob-table9-cost
    melora-table1-params melora-table2 melora-table3-ood melora-table4-noise melora-table5-ood-noise melora-table6-cost
    melora-table8 melora-table9-ood
    laplace-figure1-roberta laplace-figure2-roberta-large laplace-figure3-llama laplace-figure4-predictive
    laplace-figure5-diag laplace-figure6-diag laplace-figure7-diag
    """.split()
)
PAPERS = sorted(name for name in NAMES if name.startswith(("blob", "melora", "laplace")))
NO_SELECTION = dict.fromkeys(("eval_every", "select"), "nothing is selected where only costs are compared")
# What a suite does on purpose in another way than its paper's hyper-parameters: {(suite, row or "", setting): why}.
DEPARTURES: dict[tuple[str, str, str], str] = {
    ("blob-table8-ablation", "bbb-ab", "on"): "the ablation",
    **{("melora-table6-cost", "", name): why for name, why in NO_SELECTION.items()},
    **{("melora-table1-params", "", name): why for name, why in NO_SELECTION.items()},
    ("melora-table1-params", "", "steps"): "what is counted does not depend on steps",
    ("melora-table1-params", "", "lora_r"): "the table has ranks 8 and 64",
    **{(f"melora-table{t}", "mcd", "lora_dropout"): "its own p" for t in ("2", "3-ood", "8", "9-ood")},
    **{(f"melora-table{t}-noise", "melora-no-noise", "prior_noise"): "the ablation" for t in ("4", "5-ood")},
    **{("laplace-figure4-predictive", p, "predictive"): "compared" for p in ("indep", "probit", "bridge")},
    **{(f"laplace-figure{f}-diag", row, "structure"): "the figure's" for f in (5, 6, 7) for row in ("llla", "la")},
}
# Rows of the file that are no settings of a training: what they say is looked at apart, or in the decision record.
APART = {"base", "source", "samples", "save_every"}
ELSEWHERE = {"optimizer", "kl_optimizer", "train_size", "labels", "bins", "task", "split", "prior_lr", "prior_steps"}


get_class = lru_cache(get_method)


def layers(suite: Suite, base: str, row: str, task: str) -> dict[str, Any]:
    """The settings of a cell, in the order of the layers that the schema documents; else the defaults."""
    method = get_class(suite.rows[row].method or "")
    defaults = {spec.name: spec.default for cls in (Run, method) for spec in dataclasses.fields(cls)}
    return {**defaults, **suite.run, **suite.bases[base], **suite.train[task], **suite.rows[row].settings}


def same(value: Any, stated: str) -> bool:
    if isinstance(value, bool):
        return str(value).lower() == stated
    if isinstance(value, (int, float)):
        return float(value) == float(stated)
    return (" ".join(value) if isinstance(value, (list, tuple)) else str(value)) == stated


def stated(suite: Suite, base: str, method: str) -> list[dict[str, str]]:
    paper, model = suite.reproduces["paper"], base.partition("-r")[0] if "-r" in base[6:] else base
    return [
        line for line in hyperparameters()
        if line["paper"] == paper and line["base_model"] == model and line["method"] in ("", method)
        and line["setting"] not in ELSEWHERE
    ]  # fmt: skip


def test_every_suite_of_the_list_is_shipped() -> None:
    assert set(shipped()) >= NAMES


@pytest.mark.parametrize("name", PAPERS)
def test_settings_are_those_of_the_paper(name: str) -> None:
    suite = read(name)
    used: set[tuple[str, str, str]] = set()
    compared = 0
    for base in suite.bases:
        for row, each in suite.rows.items():
            lines = stated(suite, base, each.method or "")
            assert len(lines) > 8, "the paper's settings for this base are not in the file"
            # A setting of the method's own (map's weight_decay) hides the run's of that name.
            own = {line["setting"] for line in lines if line["method"]}
            cells = [layers(suite, base, row, task) for task in suite.train]
            for line in lines:
                setting = line["setting"]
                if setting in APART or (setting in own and not line["method"]):
                    continue
                for cell in cells:
                    value = cell[setting]
                    if same(value, line["used"]):
                        compared += 1
                        continue
                    reasons = [k for k in DEPARTURES if k in ((name, row, setting), (name, "", setting))]
                    assert reasons, (
                        f"{row}: {setting} is {value}; {line['paper']}, table {line['table']}: {line['used']}"
                    )
                    used.add(reasons[0])
    assert compared
    assert used == {key for key in DEPARTURES if key[0] == name}, "a departure that is none"


@pytest.mark.parametrize("name", PAPERS)
def test_bases_sources_draws_and_checkpoints_are_those_of_the_paper(name: str) -> None:
    suite = read(name)
    for base in suite.bases:
        for row in suite.rows.values():
            for line in stated(suite, base, row.method or ""):
                setting, value = line["setting"], line["used"]
                if setting == "base":
                    assert suite.bases[base]["base"] == value
                elif setting == "source" and row.source:
                    assert suite.rows[row.source].method == value
                elif setting == "samples" and row.evaluate != ():
                    assert int(value) in suite.draws
                elif setting == "save_every" and row.at:
                    steps = int(suite.run["steps"])
                    assert list(row.at) == list(range(int(value), steps + 1, int(value)))


@pytest.mark.parametrize("name", sorted(NAMES - {"toyworld"}))
def test_a_suite_says_what_it_reproduces_and_what_it_costs(name: str) -> None:
    about = read(name).about
    assert about.startswith("Reproduces: ") and ("Cost (computed" in about or "Cost (measured" in about)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_rows_are_methods_with_settings_that_exist(name: str) -> None:
    suite = read(name)
    for row in suite.rows.values():
        if row.method:
            known = {**field_types(Run), **field_types(get_class(row.method))}
            assert not set(row.settings) - set(known), row.name
    assert not set(suite.run) - set(field_types(Run))


def test_real_small_takes_the_first_of_the_four_settings_or_one_that_was_chosen() -> None:
    """Both files have one recipe; each reported row is one of those that were tried (real-small.prereg.md)."""
    tried, reported = read("real-small-tune"), read("real-small")
    assert tried.run == reported.run and tried.bases == reported.bases and tried.train == reported.train
    assert not set(tried.seeds) & set(reported.seeds)
    for name, row in reported.rows.items():
        options = [dict(each.settings) for key, each in tried.rows.items() if key.rpartition("-")[0] == name]
        assert len(options) in (0, 4)
        assert dict(row.settings) in options if options else name in ("zero-shot", "mle", "tempscale", "ens")
    prereg = shipped()["real-small"].with_name("real-small.prereg.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in prereg or name == "zero-shot" for name in reported.rows)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_suite_can_be_planned_at_its_size_and_at_toy_scale(name: str) -> None:
    suite = read(name)
    whole, toy = make(suite), make(suite, {"base": "toyworld", "steps": 20, "limit": 40, "seeds": 1})
    assert whole.cells and toy.cells
    rows = {entry.method.partition("@")[0] for entry in whole.entries}
    assert rows == set(suite.rows) == {entry.method.partition("@")[0] for entry in toy.entries}
