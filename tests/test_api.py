"""The Python API: the notebook of docs/api.md, and its answers beside those that lm-eval records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import uqharness
from uqharness import registry
from uqharness.commands import train
from uqharness.errors import InputError
from uqharness.metrics import points

NOTEBOOK = Path(registry.__file__).resolve().parent.parent / "docs" / "examples" / "api.ipynb"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the notebook's cells leave, run in an empty folder."""
    if not NOTEBOOK.exists():
        pytest.skip("documentation is in a checkout only")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "notebook"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        for cell in cells:
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)  # noqa: S102
    return names


def test_the_notebook_runs(notebook: dict[str, Any]) -> None:
    assert notebook["run"].record.draws == 5 and notebook["run"].record.items == 100
    assert len(notebook["answers"]) == 3


def test_predict_equals_what_lm_eval_records(notebook: dict[str, Any]) -> None:
    from uqharness.toyworld import questions

    rows = questions("toyworld", "test")[:8]
    prompts, choices = [row["prompt"] for row in rows], [row["choices"] for row in rows]
    answers = notebook["model"].predict(prompts, choices, samples=5)
    record = notebook["run"].record
    for k, answer in enumerate(answers):
        logp = record.logp[1:, k]
        logp = logp[:, : len(choices[k])].astype(float)
        by_draw = np.exp(logp - logp.max(-1, keepdims=True))
        by_draw /= by_draw.sum(-1, keepdims=True)
        np.testing.assert_allclose(answer.draws, by_draw, atol=1e-5)
        np.testing.assert_allclose(answer.probs, by_draw.mean(0), atol=1e-5)
        assert answer.choice == choices[k][int(by_draw.mean(0).argmax())]


def test_uncertainty_adds_up(notebook: dict[str, Any]) -> None:
    for answer in notebook["answers"]:
        assert answer.total == pytest.approx(answer.aleatoric + answer.epistemic, abs=1e-9)
        information = points.mutual_information(answer.draws[:, None, :])
        assert answer.epistemic == pytest.approx(float(information[0]), abs=1e-6)
    for answer in notebook["at_the_mean"]:
        assert len(answer.draws) == 1 and answer.epistemic == 0


def test_fewer_draws_are_the_first_ones(notebook: dict[str, Any]) -> None:
    model, row = notebook["model"], notebook["rows"][0]
    five, two = (model.predict([row["prompt"]], row["choices"], samples=s)[0] for s in (5, 2))
    np.testing.assert_allclose(two.draws, five.draws[:2], atol=1e-6)


def test_samples_of_one_call_do_not_stay(notebook: dict[str, Any]) -> None:
    model, row = notebook["model"], notebook["rows"][0]  # loaded with samples=5
    counts = [len(model.predict([row["prompt"]], row["choices"], s)[0].draws) for s in (2, None)]
    assert counts == [2, 5]


@pytest.mark.parametrize(
    "prompts, choices, said",
    [
        ("a prompt", ["a", "b"], "prompts is a string"),
        (["a prompt"], "ab", "choices must be a list"),
        (["a prompt"], [["a", "b"], ["c", "d"]], "1 prompts and 2 lists of choices"),
    ],
)
def test_wrong_arguments(notebook: dict[str, Any], prompts: Any, choices: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        notebook["model"].predict(prompts, choices)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(InputError, match="kl_rl"):
        uqharness.train("blob", base="toyworld", task="toyworld_uq", out="x", kl_rl=0.1)
    with pytest.raises(AttributeError, match="no attribute 'trian'.*train"):
        uqharness.trian  # noqa: B018


@pytest.mark.parametrize("value, flags", [(True, ["--fewshot-as-multiturn"]), (False, ["--no-fewshot-as-multiturn"])])
def test_a_switch_can_be_turned_off(value: bool, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, since the default may be true."""
    runs: list[Any] = []
    monkeypatch.setattr(train, "run", runs.append)
    uqharness.train("mle", base="toyworld", task="toyworld_uq", out="x", fewshot_as_multiturn=value, overwrite=False)
    assert runs[0].fewshot_as_multiturn is value and not runs[0].overwrite
    assert runs[0].argv[-1:] == flags


def test_the_package_shows_its_api_and_stays_light() -> None:
    """What its import costs is tests/harness/test_bridge.py's."""
    assert dir(uqharness) == sorted(uqharness.__all__)
    code = f"import sys; sys.path += {sys.path}; import os; before = set(sys.modules); import uqharness; "
    code += "print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['uqharness']\n"
