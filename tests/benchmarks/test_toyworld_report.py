"""The numbers in docs/toyworld.md are those of docs/data/toyworld-*.json, and those say what was run."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from uqharness import registry
from uqharness.commands import demo
from uqharness.suite import schema
from uqharness.suite.plan import Plan, make
from uqharness.suite.store import Store
from uqharness.toyworld import data_path

ROOT = Path(registry.__file__).resolve().parent.parent
PAGE, FOLDER = ROOT / "docs" / "toyworld.md", ROOT / "docs" / "data"
if not PAGE.exists():
    pytest.skip("documentation is in a checkout only", allow_module_level=True)
sys.path.append(str(ROOT))  # the end of it: in front, benchmarks/ and the like would hide what is installed
report = importlib.import_module("benchmarks.toyworld_report")

VERSIONS = [path.stem.removeprefix("toyworld-") for path in sorted(FOLDER.glob("toyworld-v*.json"))]
WORLDS = {"v1": (1, 2, 3), "v2": (4, 5, 6)}
SCALES = {"acc": 100, "ece": 100, "nll": 1}
Rows = dict[tuple[str, int, str], dict[str, Any]]


def rows_of(version: str) -> Rows:
    data = json.loads((FOLDER / f"toyworld-{version}.json").read_text(encoding="utf-8"))
    return {(r["row"], r["draws"], r["task"]): r for r in (data if isinstance(data, list) else data["rows"])}


def table(version: str, block: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows of cells) of one block of the page."""
    page = PAGE.read_text(encoding="utf-8")
    text = page.partition(f"<!-- report:{version}:{block} -->\n")[2].partition("<!-- end -->")[0]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return lines[0], lines[2:]


def expected(row: dict[str, Any], world: str | None) -> str:
    keep = [world in (None, w) for w in row["world"]]
    parts = []
    for metric, scale in SCALES.items():
        values, digits = scale * np.array(row[metric])[keep], 1 if scale == 100 else 3
        spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
        parts.append(f"{values.mean():.{digits}f}{spread}")
    return " / ".join(parts)


def test_the_first_report_is_there() -> None:
    assert "v1" in VERSIONS and set(VERSIONS) <= set(WORLDS)


def test_the_page_is_as_the_command_makes_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert report.filled(page) == page
    blocks = re.findall(r"<!-- report:(v\d):([\w-]+) -->\n", page)
    assert len(blocks) == len(set(blocks)) == page.count("<!-- end -->")
    assert {block for version, block in blocks if version == "v2"} == {*report.BLOCKS, "figures", "source"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("by_world", [False, True])
def test_every_number_of_the_tables(version: str, by_world: bool) -> None:
    rows = rows_of(version)
    header, body = table(version, "by-world" if by_world else "table")
    columns = [cell.split(" ")[0] for cell in header[2:]]
    assert len(columns) == 3 and len(body) == len({key[:2] for key in rows})
    for name, draws, *cells in body:
        for column, cell in zip(columns, cells, strict=True):
            task, world = ("toyworld_uq", column) if by_world else (column, None)
            assert cell == expected(rows[name, int(draws), task], world), (name, draws, column)


def interval(values: np.ndarray, digits: int, sign: str) -> str:
    """values [world, seed] -> what the page shows."""
    means = values.mean(1)
    low, high = stats.t.interval(0.95, len(means) - 1, loc=means.mean(), scale=stats.sem(means))
    low = low if sign else max(low, 0.0)
    return f"{means.mean():{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_interval_of_the_page(version: str) -> None:
    rows = rows_of(version)

    def values(row: tuple[str, int], task: str, metric: str) -> np.ndarray:
        entry = rows[(*row, task)]
        order = np.lexsort((entry["seed"], entry["world"]))
        return SCALES[metric] * np.array(entry[metric])[order].reshape(3, 3)

    header, body = table(version, "intervals")
    assert header[3:] == list(demo.TASKS) and len(body) >= 27
    for name, draws, metric, *cells in body:
        digits = 3 if metric == "NLL" else 1
        for task, cell in zip(demo.TASKS, cells, strict=True):
            assert cell == interval(values((name, int(draws)), task, metric.lower()), digits, "")

    header, body = table(version, "differences")
    said = re.compile(r"([\w-]+)(?: \(N = (\d+)\))? − ([\w-]+)(?: \(N = (\d+)\))?")
    assert header[2:] == list(demo.TASKS) and len(body) == 3 * (6 if version != "v1" else 5)
    for name, metric, *cells in body:
        match = said.fullmatch(name)
        assert match is not None, name
        ours, theirs = (match[1], int(match[2] or 1)), (match[3], int(match[4] or 1))
        for task, cell in zip(demo.TASKS, cells, strict=True):
            gap = values(ours, task, metric.lower()) - values(theirs, task, metric.lower())
            agree = int((np.sign(gap) == np.sign(gap.mean())).sum())
            assert cell == f"{interval(gap, 3 if metric == 'NLL' else 1, '+')}, {agree} of 9", (name, metric, task)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_method_has_all_worlds_and_seeds(version: str) -> None:
    rows = rows_of(version)
    names = {*report.METHODS, "mle-tuned"} if version == "v1" else set(report.all_rows())
    assert {*names, *demo.REFERENCES} == {key[0] for key in rows}
    assert {key[2] for key in rows} == set(demo.TASKS)
    for (name, _, _), row in rows.items():
        seeds = (0,) if name in demo.REFERENCES else (0, 1, 2)
        runs = sorted(zip(row["world"], row["seed"], strict=True))
        assert runs == [(f"w{world}", seed) for world in WORLDS[version] for seed in seeds]
        assert all(len(row[metric]) == len(runs) for metric in (*SCALES, "ece_floor", "brier", "auroc"))
    assert (FOLDER / f"toyworld-{version}.json").stat().st_size < 120_000


@pytest.mark.parametrize("names", [None, ("mle", "oracle", "zero-shot")])
def test_the_report_is_printed_again_also_of_some_methods(tmp_path: Path, names: tuple[str, ...] | None) -> None:
    chosen = [row for (name, _, _), row in rows_of("v1").items() if names is None or name in names]
    (tmp_path / "report.json").write_text(json.dumps(chosen))
    command = [sys.executable, "-m", "benchmarks.toyworld_report", "--show", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = PAGE.read_text(encoding="utf-8").splitlines()
    first = [line for line in done.stdout.split("\n\n")[0].splitlines() if line.startswith("| ")]
    verdicts = [line for line in done.stdout.splitlines() if "met: " in line or "met**: " in line]
    assert len(first) > 3 and set(first + verdicts) <= set(page)
    assert len(verdicts) == (0 if names else 9)
    assert ("cannot be judged without blob, N = 10; ens, N = 3." in done.stdout) is bool(names)
    assert ("There are no two rows to compare." in done.stdout) is bool(names)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_method_beats_the_oracle(version: str) -> None:
    rows = rows_of(version)
    for (name, draws, task), row in rows.items():
        assert np.mean(row["nll"]) >= np.mean(rows["oracle", 1, task]["nll"]), (name, draws, task)


# ---------------------------------------------------------------- what is run


def planned(*methods: str, tuned: dict[str, Any] | None = None) -> Plan:
    def choose() -> dict[str, Any]:
        assert tuned is not None, "trials were started that nobody asked for"
        return tuned

    args = argparse.Namespace(out=Path(), methods=list(methods), seeds=2, limit=7)
    made: Plan = report.plan(args, choose)
    return made


def test_rows_under_another_name_are_cells_with_their_own_settings() -> None:
    rows = ("mle", "bbb", "mle-tuned", "bbb-sum", report.PER_WORLD)
    made = planned(*rows, tuned={"steps": 11})
    entries = {(entry.method, entry.seed): entry for entry in made.entries}
    assert set(entries) == {*((name, None) for name in demo.REFERENCES), *((name, s) for name in rows for s in (0, 1))}
    run = {**schema.read("toyworld").run, "base": "toyworld", "task": "toyworld_uq"}
    run["target_modules"] = list(run["target_modules"])
    sums, chosen, fixed = (demo.settings(made, entries[name, 1]) for name in ("bbb-sum", report.PER_WORLD, "mle-tuned"))
    assert {key: sums[key] for key in run} == run and (sums["kl_reduce"], sums["prior_std"]) == ("sum", 0.1)
    assert chosen == {**run, "steps": 11} and fixed == {**run, "steps": 200, "lr": 0.001}
    assert all(cell.spec["limit"] == 7 for cell in made.cells.values() if cell.kind == "evaluate")


def test_only_what_is_asked_for_is_run() -> None:
    assert {entry.method for entry in planned("mle-tuned").entries} == {*demo.REFERENCES, "mle-tuned"}


def test_the_lowest_validation_nll_is_chosen_and_shown() -> None:
    def trial(settings: dict[str, Any], acc: float, nll: float) -> dict[str, Any]:
        return {"settings": settings, "acc": acc, "ece": 0.05, "nll": nll}

    a = [trial({}, 0.6, 1.3), trial({"steps": 200}, 0.4, 1.1)]
    b = [trial({}, 0.6, 1.2), trial({"steps": 200}, 0.7, 1.4)]
    assert report.best(a)["settings"] == {"steps": 200} and report.best(b)["settings"] == {}
    assert report.chosen({"w4": a, "w5": b}).splitlines()[2:] == [
        "| the shared recipe | 60.0 / 5.0 / 1.300 | **60.0 / 5.0 / 1.200** |",
        "| steps=200 | **40.0 / 5.0 / 1.100** | 70.0 / 5.0 / 1.400 |",
    ]


def test_the_shipped_base_is_described() -> None:
    base = report.base_of(data_path())
    assert base == {"attempt": 1, "failed": [], "relations": pytest.approx(0.877, abs=0.002)}  # the page's 87.7 %
    zero = {"world": ["w1", "w2"], "seed": [0, 0], "acc": [0.25, 0.5]}
    made = {"worlds": {"w2": {**base, "attempt": 2, "failed": ["copying not learned"]}}}
    shown = report.worlds(report.Report({("zero-shot", 1, "toyworld_uq"): zero}, {}, made)).splitlines()
    assert shown[2] == f"| w2 | 2; copying not learned | {100 * base['relations']:.1f} % | 50.0 |"


def test_settings_are_reported_under_the_recipe_that_they_were_chosen_under() -> None:
    run = {**schema.read("toyworld").run, **report.SHARED}
    report.same_recipe(run)
    with pytest.raises(report.InputError, match=r"\(steps: 7 and 800\)"):
        report.same_recipe({**run, "steps": 7})


def test_rows_with_other_settings_in_another_world_are_refused(tmp_path: Path) -> None:
    def add(world: str, steps: int, chosen: int) -> None:
        extra = [schema.Row(report.PER_WORLD, "mle", None, None, {"steps": chosen}, None)]
        Store(tmp_path / world).write(make(demo.grid(["blob"], 1, None, {"steps": steps}, extra)))

    for world, chosen in (("w4", 200), ("w5", 400)):  # which each world chooses
        add(world, 800, chosen)
    settings = report.settings_of(tmp_path)
    assert set(settings) == {"blob"} and settings["blob"]["steps"] == 800
    add("w6", 700, 200)
    with pytest.raises(report.InputError, match=r"w6: blob has other settings"):
        report.settings_of(tmp_path)


def test_a_saved_report_is_read_again(tmp_path: Path) -> None:
    first = report.load(FOLDER / "toyworld-v1.json")
    whole = report.Report(first.rows, {"w4": [{"settings": {}, "nll": 1.0}]}, {"questions": 1500})
    report.save(whole, tmp_path / "report.json")
    assert report.load(tmp_path / "report.json") == whole
