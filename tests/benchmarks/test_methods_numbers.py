"""The numbers in docs/methods.md are those of docs/data/methods.json, and those are of the demo as it is now."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import methods_numbers as numbers
from uqharness import registry
from uqharness.commands import demo
from uqharness.results.reading import RECORD
from uqharness.results.record import pack
from uqharness.suite import schema
from uqharness.suite.plan import make
from uqharness.suite.store import Store

BUILT_IN = {name for name, point in registry.methods().items() if point.value.startswith("uqharness.")}


def committed() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(numbers.DATA.read_text(encoding="utf-8"))
    return data


def test_the_page_shows_the_committed_numbers() -> None:
    page, data = numbers.PAGE.read_text(encoding="utf-8"), committed()
    assert numbers.filled(page, data) == page
    names = re.findall(r"<!-- toyworld:([\w-]+) -->\n.*?<!-- end -->", page, flags=re.DOTALL)
    assert sorted(names) == sorted([*BUILT_IN, "references", "order"])
    row = next(r for r in data["rows"] if (r["row"], r["task"]) == ("mle", "toyworld_uq"))
    row["nll"][0] += 0.003  # the mean of three moves by 0.001
    changed = numbers.filled(page, data)
    assert changed != page and len(changed.splitlines()) == len(page.splitlines())


def test_the_committed_numbers_are_of_the_demo_as_it_is_now() -> None:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    data = committed()
    planned = demo.planned(parser.parse_args(["--all", "--seeds", "3"]))
    rows = {entry.method: entry for entry in planned.entries if entry.adapter is None or entry.method in BUILT_IN}
    assert set(data["settings"]) == set(rows) and data["questions"] == schema.read("toyworld").limit
    for name, entry in rows.items():
        now, then = demo.settings(planned, entry), dict(data["settings"][name])
        if entry.adapter:  # since then defaults are written out, and what a source decides is left out
            then = {**{spec.name: spec.default for spec in dataclasses.fields(registry.declared(name))}, **then}
            assert {key: then[key] for key in now} == now, name
    for task in demo.TASKS:
        trained = [row for row in data["rows"] if row["task"] == task and row["row"] in BUILT_IN]
        assert {row["row"] for row in trained} == BUILT_IN
        assert all(row["seed"] == [0, 1, 2] and len(row["nll"]) == 3 for row in trained)


def made(out: Path, name: str, seed: int, draws: int, finite: int | None) -> np.ndarray:
    """A cell with random answers to 30 questions for every task; returns log p `[draws + 1, 30, 3]`."""
    rng = np.random.default_rng([seed, draws])
    logp = np.log(rng.dirichlet(np.ones(3), (draws + 1, 30)))
    items = [
        {"id": i, "gold": i % 3, "combine": "probs", "doc_hash": f"{i:016x}", "logp": logp[:, i].tolist()}
        for i in range(30)
    ]
    store, planned = Store(out), make(demo.grid(["mle", "blob"], 2, None, {}))
    store.write(planned)
    (entry,) = [e for e in planned.entries if (e.method, e.seed, e.evaluate) == (name, seed, demo.TASKS[0])]
    folder = store.results(entry.cell)
    folder.mkdir(parents=True)
    results = {task: {f"{RECORD},none": pack(items, task=task, protocol={})} for task in demo.TASKS}
    config = {"uqharness": {"record": {"posterior": {"finite": finite}, "versions": {"torch": "2"}}}}
    (folder / "results_1.json").write_text(json.dumps({"results": results, "config": config}))
    store.finish(planned.cells[entry.cell], {})
    return logp


def test_numbers_are_collected_by_method_draws_and_seed(tmp_path: Path) -> None:
    entries = [made(tmp_path, "blob", seed, 6, None) for seed in (0, 1)]
    made(tmp_path, "mle", 0, 1, 1)
    data = numbers.collect(tmp_path, "a machine")
    rows = {(row["row"], row["draws"]): row for row in data["rows"] if row["task"] == demo.TASKS[1]}
    assert set(rows) == {("blob", 0), ("blob", 5), ("blob", 6), ("mle", 1)} and data["questions"] == 30
    assert data["versions"] == {"torch": "2"} and rows["blob", 5]["seed"] == [0, 1]
    gold = np.arange(30) % 3
    for seed, logp in enumerate(entries):
        for n, probs in ((0, np.exp(logp[0])), (5, np.exp(logp[1:6]).mean(0))):
            row = rows["blob", n]
            assert row["nll"][seed] == pytest.approx(-np.log(probs[np.arange(30), gold]).mean(), abs=1e-5)
            assert row["acc"][seed] == pytest.approx((probs.argmax(1) == gold).mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("ece", "nll", "lower", "half"),
    [
        ([0.1, 0.1, 0.19], [1.0, 1.0, 1.0], "met", "met"),
        ([0.11, 0.09, 0.1], [1.0, 1.0, 1.0], "met", "**not met**"),
        ([0.1, 0.1, 0.21], [1.0, 1.0, 1.0], "**not met**", "met"),
        ([0.1, 0.1, 0.1], [1.0, 1.3, 1.0], "**not met**", "met"),
    ],
)
def test_what_was_expected_is_judged_by_means(ece: list[float], nll: list[float], lower: str, half: str) -> None:
    def row(name: str, k: int, ece: float, nll: float) -> dict[str, Any]:
        spread = {"ece": [ece - 0.05, ece + 0.05], "nll": [nll - 0.4, nll + 0.4]}
        return {"row": name, "draws": 1, "task": demo.TASKS[k], **spread}

    rows = [row("blob", k, ece[k], nll[k]) for k in range(3)] + [row("mle", k, 0.2, 1.2) for k in range(3)]
    printed = numbers.order({"settings": {"mle": {}, "blob": {}}, "rows": rows}).splitlines()
    assert len(printed) == 3
    cells = [cell.strip() for cell in printed[2].split("|")[1:-1]]
    assert cells[0] == "blob" and cells[-2:] == [lower, half]
    assert cells[1:7] == [f"{n - 1.2:+.3f}" for n in nll] + [f"{e / 0.2:.2f}" for e in ece]
