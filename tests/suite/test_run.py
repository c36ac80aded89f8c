"""Running a suite: each cell once, a failed one alone, and the same numbers after a kill at any moment.

Cells run in forked children of this process where something is to be killed: starting Python takes longer than a cell.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.suite import dying
from tests.suite.tiny_suite import SUITE, make_world, records
from tests.suite.toy_scale import in_child
from tests.tiny_task import make_task
from uqharness.cli import main
from uqharness.commands import cell as cells
from uqharness.suite.plan import Plan, make
from uqharness.suite.runners import Graph, local
from uqharness.suite.schema import read
from uqharness.suite.store import Store

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """The suite run without an interruption."""
    out = world / "whole"
    made = begin(world, out)
    assert in_child(lambda: run_all(out, made)) == 0
    return out


def begin(world: Path, out: Path, **given: Any) -> Plan:
    made = make(read(world / "tiny.yaml"), given)
    Store(out).write(made)
    return made


def run_all(out: Path, made: Plan) -> None:
    for name in made.cells:
        cells.work(str(out), name)


def test_every_cell_is_run_once_and_what_is_done_is_not_done_again(world: Path, whole: Path) -> None:
    store, made = Store(whole), Store(whole).read()
    assert set(store.states().values()) == {"done"} and len(made.cells) == 4 + 10
    about = store.record(next(iter(made.cells)))
    assert about["command"].startswith("uqharness train mle --out") and about["seconds"] > 0
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert in_child(lambda: run_all(whole, made)) == 0
    changed = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert {path.parent.name for path in changed} <= {"logs"}
    assert not list(whole.glob("adapters/*.checkpoints")) and not list(whole.glob("cells/*.lock"))


QUICK = ("checkpoint", "fit", "results")


@pytest.mark.parametrize("point", [p if p in QUICK else pytest.param(p, marks=pytest.mark.full) for p in dying.POINTS])
def test_killed_twice_and_gone_on_with_gives_the_same_answers(
    point: str, world: Path, whole: Path, tmp_path: Path
) -> None:
    made = begin(world, tmp_path)
    chosen = list(made.chosen({"method": ["laplace"], "evaluate": ["tiny_uq"]}))

    def rest() -> None:
        for name in chosen:
            cells.work(str(tmp_path), name)

    def killed() -> None:
        dying.kill_at(*dying.POINTS[point])
        rest()

    assert in_child(killed) == -signal.SIGKILL and in_child(killed) == -signal.SIGKILL, point
    assert in_child(rest) == 0
    assert set(Store(tmp_path).states().values()) == {"done"} and len(Store(tmp_path).states()) == 3
    resumed, wanted = records(tmp_path), records(whole)
    assert list(resumed) == ["tiny/laplace/tiny_uq/seed0 on tiny_uq"] and resumed.items() <= wanted.items()


def test_adapters_at_several_steps_are_of_one_training(world: Path, whole: Path, tmp_path: Path) -> None:
    """Each goes on from the last one's checkpoint; the one at the end is the adapter of the plain training."""
    file = world / "steps.yaml"
    rows = "methods:\n  mle: {at: [2, 4, 6]}\nevaluate: []\n"
    file.write_text(SUITE.partition("methods:")[0].replace("evaluate: [same, other_uq]\n", "") % {"root": world} + rows)
    made = make(read(file))
    store, last, alone = Store(tmp_path / "out"), Store(whole), Store(tmp_path / "alone")
    for each in (store, alone):
        each.write(made)
    assert in_child(lambda: run_all(store.out, made)) == 0
    first, second, third = made.cells
    assert in_child(lambda: cells.work(str(alone.out), first)) == 0
    assert store.is_done(third) and not list(store.out.glob("adapters/*.checkpoints"))
    steps = [json.loads((store.adapter(name) / "uq_config.json").read_text())["training"][0] for name in made.cells]
    assert [(each["steps"], each["resumed_from"]) for each in steps] == [(2, None), (4, 2), (6, 4)]
    (plain,) = [n for n, cell in last.read().cells.items() if cell.spec.get("method") == "mle"]
    for one, other in ((store.adapter(third), last.adapter(plain)), (store.adapter(first), alone.adapter(first))):
        assert (one / "adapter_model.safetensors").read_bytes() == (other / "adapter_model.safetensors").read_bytes()
    assert (store.adapter(first) / "adapter_model.safetensors").read_bytes() != (
        store.adapter(second) / "adapter_model.safetensors"
    ).read_bytes()


def test_base_and_questions_are_read_once_and_the_weights_stay_as_they_are(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, PreTrainedModel

    from uqharness.training import base_model, data

    made = begin(world, tmp_path)

    def counted() -> None:
        real, loads = PreTrainedModel.from_pretrained.__func__, []  # type: ignore[attr-defined]

        def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
            loads.append(args)
            return real(cls, *args, **kwargs)

        base_model._kept = data._kept = None
        reads, read_questions = [], data.read_questions
        data.read_questions = lambda *args, **kwargs: reads.append(args) or read_questions(*args, **kwargs)
        PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]
        for name, cell in made.cells.items():
            if cell.spec.get("model") != "hf":  # lm-eval's own model loads by itself
                cells.work(str(tmp_path), name)
        assert len(loads) == 1, len(loads)
        assert len(reads) == 1, len(reads)
        (base,) = base_model._kept.values()  # type: ignore[union-attr]
        fresh = AutoModelForCausalLM.from_pretrained(world / "base").state_dict()
        assert all(torch.equal(value, fresh[name]) for name, value in base.state_dict().items())

    assert in_child(counted) == 0


def test_a_failed_cell_is_recorded_and_the_others_go_on(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SWAG needs two snapshots: its cell fails, its evaluation waits, MLE's are done."""
    file = world / "failing.yaml"
    file.write_text(SUITE.partition("methods:")[0] % {"root": world} + "methods: {swag: {}, mle: {}}\nevaluate: [same]")
    file.write_text(file.read_text().replace("evaluate: [same, other_uq]\n", ""))
    out = tmp_path / "out"
    assert main(["suite", "run", str(file), "--out", str(out), "--jobs", "1"]) == 1
    said = capsys.readouterr().err
    assert "failed: tiny/swag/tiny_uq/seed0: swag needs at least 2 snapshots" in said
    assert "uqharness: 2 of 4 cells failed or were not started: " in said
    assert sorted(Store(out).states().values()) == ["done", "done", "failed"]
    assert main(["suite", "status", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "train: 1 done, 1 failed" in shown and "evaluate: 1 done, 1 to do" in shown and "2 snapshots" in shown


def test_what_needs_a_failed_cell_is_given_up(world: Path, tmp_path: Path) -> None:
    made = begin(world, tmp_path)
    store = Store(tmp_path)
    graph = Graph(made.cells, store, lambda cell: 1.0)
    cell = graph.ready()
    assert cell is not None and cell.spec["method"] == "mle"  # most waits for it
    graph.begin(cell)
    graph.end(cell.hash)  # neither done nor failed: its process died
    assert "killed" in graph.failed[cell.hash] and len(graph.failed) == 1 + 2 + 2 + 4
    assert {each.spec.get("method", "") for each in graph.left.values()} == {"blob", ""}


def test_a_worker_that_dies_costs_one_cell(world: Path, tmp_path: Path) -> None:
    made = begin(world, tmp_path)
    chosen = {k: c for k, c in made.cells.items() if c.spec.get("method") in ("mle", "blob")}
    graph = Graph(chosen, Store(tmp_path), lambda cell: 1.0)
    local(graph, 1, dying.die_once, lambda cell: None)
    assert len(graph.failed) == 1 and "killed" in next(iter(graph.failed.values()))
    assert sum(state == "done" for state in Store(tmp_path).states().values()) == 1


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["run", "toywrld"], 2, "unknown suite 'toywrld' (did you mean toyworld?)"),
        (["run", "FILE", "--only", "metod=mle"], 2, "--only metod=mle: give KEY=VALUE"),
        (["run", "FILE", "--set", "stepz=3"], 2, "--set stepz: no method of the suite has it (did you mean steps?)"),
        (["run", "FILE", "--set", "seeds=0"], 2, "--set seeds=0: give how many, at least 1, or a list"),
        (["run", "FILE", "--set", "base="], 2, "--set base=: give a folder"),
        (["run", "FILE", "--set", "lr=fast"], 2, "--set lr=fast: lr is 'fast': it must be a number"),
        (["run", "FILE", "--jobs", "0"], 2, "--jobs 0"),
        (["run", "FILE", "--partition", "low"], 2, "--partition low: only used with --on slurm"),
        (["run", "FILE", "--address", "auto", "--dry-run"], 2, "--address auto: only used with --on ray"),
        (["run", "FILE", "--on", "slurm", "--time", "0", "--dry-run"], 2, "--time 0: give a number of at least 1"),
        (["status", "nowhere"], 2, "nowhere contains no suite"),
        (["cell", "abc", "--out", "nowhere"], 2, "nowhere contains no suite"),
        ([], 2, "no action"),
    ],
)
def test_bad_commands(
    words: list[str], code: int, said: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["suite", *[str(world / "tiny.yaml") if word == "FILE" else word for word in words]]) == code
    assert capsys.readouterr().err.startswith(f"uqharness: {said}")


@pytest.mark.parametrize(
    "before, after, said",
    [
        ("evaluate: [same, other_uq]", "evaluate: [same, othr_uq]", "unknown task 'othr_uq'"),
        ("base: %(root)s/base", "base: no-such/base", "base model no-such/base cannot be loaded"),
        ("laplace: {source: mle, structure: diag,", "laplace: {structure: full, prior: layer,", "prior=layer needs"),
        ("include_path: tasks", "include_path: broken", "task tiny_uq cannot be loaded"),
        (
            "target_modules: [q_proj, v_proj]",
            "target_modules: [query]",
            ": target module 'query' does not exist in",
        ),
        ("max_length: 24", "max_length: 24, layers: last:9", "/base: layers is last:9: the base has 2 layers"),
    ],
)
def test_what_is_missing_is_refused_before_any_training(
    before: str, after: str, said: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_task(world / "broken")
    make_task(world / "broken", "other_uq", seed=7)
    for path in (world / "broken").glob("tiny_uq_*.jsonl"):
        path.unlink()
    changed = world / "changed.yaml"
    changed.write_text(SUITE.replace(before, after) % {"root": world})
    assert main(["suite", "run", str(changed), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "adapters").exists()
