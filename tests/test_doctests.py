"""The examples in the docstrings of public classes and functions run, and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = {
    "uqharness.api": {"Answer"},
    "uqharness.engine.engine": {"Engine"},
    "uqharness.engine.lora": {"LoraStack"},
    "uqharness.engine.predictive": {"Predictive", "DrawAverage", "Tempered"},
    "uqharness.engine.readers": {"Reader", "Classes"},
    "uqharness.curvature.linearised": {"Linearised"},
    "uqharness.method": {"Method"},
    "uqharness.metrics.metric": {"Answers", "Metric"},
    "uqharness.posterior": {"Posterior", "Point", "Members", "Gaussian"},
    "uqharness.results.differences": {"of_protocols", "of_recipes"},
    "uqharness.testing": {"check_method"},
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    parts = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert {test.name.removeprefix(f"{name}.") for test in parts} >= MODULES[name]
    runner = doctest.DocTestRunner()
    for test in parts:
        runner.run(test)
    assert runner.failures == 0
