"""Embeddings of draws: against one full forward for each draw; the ratio of spreads; the figure and its refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import uqharness
from tests.tiny import make_base
from tests.tiny_task import make_task
from uqharness.cli import main
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import make_rows
from uqharness.errors import InputError
from uqharness.harness.model import BayesLoRA
from uqharness.plots import embedding
from uqharness.posterior import Gaussian
from uqharness.testing import tiny_adapter, tiny_data
from uqharness.training.questions import PairEncoder, load_task, read_questions

FAST = "--lora-r 2 --steps 4 --lr 0.02 --batch-size 4 --max-length 24 --device cpu --record-every 2".split()


def test_states_are_those_of_one_forward_for_each_draw() -> None:
    model = tiny_adapter()
    stack = LoraStack(model)
    mean = stack.mean()
    posterior = Gaussian(mean, {n: torch.full_like(t, 0.3) for n, t in mean.items() if "lora_A" in n}, train_seed=0)
    questions = [q.pairs[:1] for q in tiny_data().train[:5]]
    questions = [[(context, answer[:1])] for ((context, answer),) in questions]
    engine = Engine(model, posterior, samples=3, tokens=20)  # several chunks
    rows = make_rows(questions, max_length=24)
    states, average = engine.states(rows)
    assert torch.equal(average, engine.score(rows).average(rows))
    draws = posterior.draws(0, 3, 0)
    for k, weights in enumerate([mean, *({**mean, **{n: t[i] for n, t in draws.items()}} for i in range(3))]):
        stack.load(weights)
        for q, ((context, _),) in enumerate(questions):
            with torch.no_grad():
                hidden = model(input_ids=torch.tensor([context]), output_hidden_states=True).hidden_states[-1][0, -1]
            assert torch.allclose(states[k, q], hidden, atol=1e-5)
        stack.load(mean)


def test_ratio_of_spreads() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        right = rng.random(300) < 0.6
        ratio = embedding.ratio_of(rng.exponential(np.where(right, 1.0, 2.0)), right)
        inside += ratio.interval[0] <= 2.0 <= ratio.interval[1]
        assert (ratio.right, ratio.wrong) == (right.sum(), (~right).sum())
    assert 180 <= inside < 200
    draws = rng.normal(0, np.array([1.0, 3.0])[None, :, None], (4000, 2, 5))
    assert embedding.spread(draws) == pytest.approx([5, 45], rel=0.05)
    assert np.isnan(embedding.ratio_of(np.zeros(9), np.arange(9) < 5).value)  # inert draws


def made(classes: int = 4, items: int = 120) -> embedding.Embedded:
    rng = np.random.default_rng(1)
    gold = rng.integers(0, classes, items)
    mean = rng.normal(0, 1, (items, 10)) + 3 * np.eye(10)[gold]
    draws = mean + rng.normal(0, 0.3, (6, items, 10))
    return embedding.Embedded("made", mean, draws, gold, rng.random(items) < 0.7, np.arange(items), list("ABCD"))


def test_plane_tells_the_classes_apart_and_holds_the_draws() -> None:
    plane = embedding.project(made())
    assert (plane.regions.predict(plane.mean) == plane.source.gold).mean() > 0.7
    assert plane.draws.shape == (6, 120, 2)
    # A projection is affine: the mean of the draws' points is the point of the draws' mean.
    assert np.abs(plane.draws.mean(0) - plane.mean).max() < 1.0
    with pytest.raises(InputError, match="a plane needs 3"):
        embedding.project(made(classes=2))


def test_figure_shows_four_right_and_four_wrong_by_seed() -> None:
    right = np.arange(30) % 3 > 0
    one, other = embedding.chosen(right, 0)
    assert len(one) == len(other) == 4 and right[one].all() and not right[other].any()
    assert not np.array_equal(one, embedding.chosen(right, 1)[0])
    fig = embedding.draw([embedding.project(made())] * 2)
    assert len(fig.axes) == 4
    stars = [line for axes in fig.axes for line in axes.lines if line.get_marker() == "*"]
    assert len(stars) == 16


def test_from_adapters_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_base(tmp_path / "base")
    tasks = ["--include-path", str(make_task(tmp_path / "tasks"))]
    for method in ("blob", "mle"):
        where = ["--base", str(tmp_path / "base"), "--task", "tiny_uq", *tasks, "--out", str(tmp_path / method)]
        assert main(["train", method, *where, *FAST]) == 0
    out = ["--out", str(tmp_path / "fig.svg")]
    capsys.readouterr()
    assert main(["plot", "embedding", str(tmp_path / "blob"), *tasks, "--samples", "4", *out]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("BLoB: spread of wrong / right answers ") and "4 draws" in said[0]
    assert said[1] == str(tmp_path / "fig.svg") and "mean of the embeddings" in (tmp_path / "fig.svg").read_text()
    assert main(["plot", "std-layers", str(tmp_path / "blob"), "--out", str(tmp_path / "std.pdf")]) == 0
    (tmp_path / "fig.svg").unlink()
    for given, text in ((["mle"], "no draws of weights"), (["blob", "mle"], "no draws of weights")):
        assert main(["plot", "embedding", *(str(tmp_path / name) for name in given), *tasks, *out]) == 2
        assert text in capsys.readouterr().err and not (tmp_path / "fig.svg").exists()
    assert main(["plot", "std-layers", str(tmp_path / "mle"), "--out", str(tmp_path / "no.pdf")]) == 2
    assert "--record-every K" in capsys.readouterr().err and not (tmp_path / "no.pdf").exists()


def test_answers_of_their_own_are_no_classes() -> None:
    assert embedding.shared_answers([[([5], [1]), ([5], [2])], [([6], [1])]]) == [1, 2]
    for questions in ([[([5], [1])], [([6], [2])]], [[([5], [1, 2])]]):
        assert embedding.shared_answers(questions) == []


def test_questions_with_texts_as_answers_are_shown_in_principal_components(tmp_path: Path) -> None:
    uqharness.train(
        "blob", base="toyworld", task="toyworld_cloze_uq", out=tmp_path / "blob", steps=2, batch_size=2, layers="last:1"
    )
    lm, task = BayesLoRA(adapter=str(tmp_path / "blob"), samples=3), load_task("toyworld_cloze_uq")
    embedded = embedding.embed("BLoB", lm, task, limit=8, batch=4)
    assert embedded.answers == [] and embedded.draws.shape == (3, 8, embedded.mean.shape[1])
    prompts = [q.pairs[0][0] for q in read_questions(task, "test", task.eval_docs, PairEncoder(lm.tokenizer), 8)]
    for prompt, state in zip(prompts, embedded.mean, strict=True):  # the question's last token, whatever the answers
        with torch.no_grad():
            hidden = lm.model(input_ids=torch.tensor([list(prompt)]), output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(torch.tensor(state), hidden[0, -1].double(), atol=1e-4)
    plane = embedding.project(embedded)
    first = np.linalg.svd(embedded.mean - embedded.mean.mean(0), full_matrices=False)[0][:, 0]
    assert abs(np.corrcoef(first, plane.mean[:, 0])[0, 1]) == pytest.approx(1)
    assert plane.regions is None and len(embedding.draw([plane]).axes) == 2
