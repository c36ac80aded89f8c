"""The golden files (tools/make_golden.py): a change of structure moves no number, and old files stay readable.

Numbers and tables are compared, no whole JSON files: records may gain keys. Training must give the committed tensors
to 1e-5, since processors and torch releases differ; tools/golden_bits.py compares two commits bit for bit.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from uqharness import registry

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool("make_golden")
bits = load_tool("golden_bits")


def expected(part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / part / "expected.json").read_text())
    return content


RESULTS, PUBLISHED = expected("results"), expected("published")


def assert_equal(values: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Every number of `wanted` to 1e-9; null is NaN."""
    for name, number in wanted.items():
        a, b = (np.array(x, dtype=float) for x in (values[name], number))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=f"{where}: {name}")


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_files_are_those_of_the_recipe_and_every_method_has_some() -> None:
    def names(pattern: str) -> set[str]:
        return {path.name for path in GOLDEN.glob(pattern)}

    assert names("adapters/*") == set(tool.TRAININGS)
    assert names("results/*") == {"expected.json", *(f"results_{name}.json" for name in tool.EVALUATIONS)}
    assert names("tables/*") == {f"{name}.{format}" for name in tool.TABLES for format in tool.FORMATS}
    assert set(RESULTS) == set(tool.EVALUATIONS)
    assert {training.method for training in tool.TRAININGS.values()} >= set(registry.methods())
    assert {adapter for adapter, _ in tool.EVALUATIONS.values()} == set(tool.TRAININGS)
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 1_600_000


@pytest.mark.parametrize("name", tool.EVALUATIONS)
def test_an_adapter_answers_as_it_did(name: str, tmp_path: Path, one_thread: None) -> None:
    adapter, model_args = tool.EVALUATIONS[name]
    now = tool.read_answers(tool.evaluate(GOLDEN / "adapters" / adapter, model_args, tmp_path))
    then = tool.read_answers(GOLDEN / "results" / f"results_{name}.json")
    assert now.logp.shape == then.logp.shape and now.combine == then.combine
    assert (now.gold == then.gold).all()
    np.testing.assert_allclose(now.logp, then.logp, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["blob", "mcd-token", "ens-logits", "laplace-joint", "laplace-weights", "tempscale"])
def test_an_adapter_answers_the_same_in_float32(name: str, tmp_path: Path, one_thread: None) -> None:
    adapter, model_args = tool.EVALUATIONS[name]
    now = tool.read_answers(tool.evaluate(GOLDEN / "adapters" / adapter, model_args, tmp_path, "float32"))
    then = tool.read_answers(GOLDEN / "results" / f"results_{name}.json")
    np.testing.assert_allclose(now.logp, then.logp, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", tool.EVALUATIONS)
def test_a_results_file_gives_the_same_metrics(name: str) -> None:
    answers = tool.read_answers(GOLDEN / "results" / f"results_{name}.json")
    assert set(RESULTS[name]) == {str(n) for n in answers.metrics}
    for n, values in answers.metrics.items():
        assert_equal(values, RESULTS[name][str(n)], f"{name}, {n} draws")
    last = RESULTS[name][str(max(answers.metrics))]  # what lm-eval wrote is of all draws
    written = {metric: value for metric, value in answers.reported.items() if last.get(metric) is not None}
    assert {"acc", "nll", "ece"} <= set(written)
    assert_equal(written, {metric: last[metric] for metric in written}, f"{name}, as written")


@pytest.mark.parametrize("format", tool.FORMATS)
@pytest.mark.parametrize("name", tool.TABLES)
def test_a_table_is_printed_as_it_was(name: str, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CSV and JSON hold every digit of a number: those may differ as metrics may, by 1e-9."""
    monkeypatch.chdir(GOLDEN)
    now, then = tool.table(name, format), (GOLDEN / "tables" / f"{name}.{format}").read_text(encoding="utf-8")
    if format in ("csv", "json"):
        number = r"(?<![\w.-])-?\d+\.\d+(?:e[-+]\d+)?(?![\w.-])"
        values = [[float(text) for text in re.findall(number, printed)] for printed in (now, then)]
        np.testing.assert_allclose(*values, rtol=1e-9, atol=1e-9)
        now, then = (re.sub(number, "number", printed) for printed in (now, then))
    assert now == then


@pytest.mark.parametrize("path", [tool.SHIPPED, GOLDEN / "published" / "toyworld.parquet"], ids=["shipped", "golden"])
def test_a_published_file_gives_the_same_metrics(path: Path) -> None:
    numbers = tool.published_numbers(path)
    assert len(numbers) > 10 and numbers.keys() <= PUBLISHED.keys()
    if path == tool.SHIPPED:
        assert numbers.keys() == PUBLISHED.keys()
    for run, values in numbers.items():
        assert_equal(values, PUBLISHED[run], run)


@pytest.mark.parametrize("name", tool.TRAININGS)
def test_thirty_steps_give_the_committed_tensors(name: str, tmp_path: Path, one_thread: None) -> None:
    out = tmp_path / "adapter"
    tool.run_command(tool.TRAININGS[name].command(out, GOLDEN / "adapters"))
    assert not tool.differences(out, GOLDEN / "adapters" / name)


def test_a_tensor_that_moved_is_seen(tmp_path: Path) -> None:
    """The comparison itself: it sees a step of 1e-4 in one number, a tensor that is gone and another temperature."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "adapters" / "tempscale", folder)
    assert not tool.differences(folder, GOLDEN / "adapters" / "tempscale")
    tensors = load_file(folder / "posterior.safetensors")
    first, second = sorted(tensors)[:2]
    tensors[first].view(-1)[3] += 1e-4
    save_file({name: t for name, t in tensors.items() if name != second}, folder / "posterior.safetensors")
    record = json.loads((folder / "uq_config.json").read_text())
    record["posterior"]["temperature"] += 1e-2
    (folder / "uq_config.json").write_text(json.dumps(record))
    lines = "\n".join(tool.differences(folder, GOLDEN / "adapters" / "tempscale"))
    assert lines.count("\n") == 2 and f"{second.removeprefix('source.')}: missing" in lines
    assert (
        f"{first.removeprefix('source.')}: moved by up to 0.0001" in lines
        and f"temperature: [{record['posterior']['temperature']}]" in lines
    )


def test_a_bit_that_moved_is_seen(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder, same = tmp_path / "adapter", GOLDEN / "adapters" / "blob"
    shutil.copytree(same, folder)
    count, lines = bits.compare(folder, same)
    assert count == 18 and not lines  # A, B and A's std of six layers
    tensors = load_file(folder / "posterior.safetensors")
    first = sorted(tensors)[0]
    tensors[first].view(torch.int32).view(-1)[7] ^= 1
    save_file(tensors, folder / "posterior.safetensors")
    (line,) = bits.compare(folder, same)[1]
    assert line.startswith(f"posterior/{first}: ") and not tool.differences(folder, same)


def test_a_training_runs_after_its_source() -> None:
    assert bits.with_sources(["tempscale", "laplace-joint"]) == ["mle", "blob", "laplace-joint", "tempscale"]
