"""Detect inert posteriors: measure how far draws change the answers to a few training questions.

A posterior whose noise never grew answers like its mean for every N; its numbers are those of a point.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.special import entr

from uqharness.engine.predictive import DrawAverage, Predictive, as_predictive
from uqharness.engine.readers import choice_logprobs
from uqharness.engine.shortcuts import may_branch
from uqharness.posterior import Posterior, Tensors
from uqharness.training.loop import collate

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData

QUESTIONS, DRAWS, SEED = 16, 5, 0
LEAST = 1e-3  # mean |p under a draw − p under the mean| below which draws are said not to move the answers
FAINT = 0.1  # of the noise: what it moves an answer by is a tenth, or rounding
log = logging.getLogger("uqharness.train")


class Faint(Posterior):
    """`source` with a tenth of its noise: it moves answers a tenth as far or, where that is rounding, about as far."""

    kind = "faint"

    def __init__(self, source: Posterior) -> None:
        super().__init__(source.mean, source.train_seed)
        self.source = source

    def draws(self, start: int, stop: int, seed: int) -> Tensors:
        drawn = self.source.draws(start, stop, seed)
        return {name: self.mean[name] + FAINT * (tensor - self.mean[name]) for name, tensor in drawn.items()}

    @classmethod
    def restore(cls, mean: Tensors, state: Tensors, settings: Mapping[str, Any], train_seed: int) -> Faint:
        raise NotImplementedError("it is never saved")


def measure(model: PeftModel, made: Posterior | Predictive, data: ChoiceData) -> dict[str, Any] | None:
    """Measure the activity for the adapter's record; None if no random draws are averaged.

    `moved` is the mean |p(choice | draw) − p(choice | mean)|, `mutual_information` in nats, both over `questions`
    evenly spaced training questions and `draws` draws; `std` that of the drawn weights around the mean, on average.
    `inert`: `moved` is below 1e-3, or in a base of low precision below three times `faint`, what a tenth of the noise
    moves: then it is rounding.
    """
    predictive = as_predictive(made)
    if predictive.finite is not None or predictive.rule != "probs":
        return None
    questions = data.train[:: max(1, len(data.train) // QUESTIONS)][:QUESTIONS]
    training = model.training
    model.eval()
    try:
        moved, information = answers(model, predictive, data, questions)
        exact = all(p.dtype == torch.float32 for p in model.parameters())
        tenth = None if exact or not predictive.draws_weights else DrawAverage(Faint(predictive.posterior))
        faint = answers(model, tenth, data, questions)[0] if tenth else 0.0
    finally:
        model.train(training)
    activity = {"questions": len(questions), "draws": DRAWS, "seed": SEED, "moved": moved}
    std = spread(predictive.posterior) if predictive.draws_weights else None
    inert = moved < max(LEAST, 3 * faint)
    return {**activity, "mutual_information": information, "faint": faint, "std": std, "inert": inert}


def answers(
    model: PeftModel, predictive: Predictive, data: ChoiceData, questions: Sequence[Any]
) -> tuple[float, float]:
    """Return (mean |p_s − p_mean| over draws, questions and choices; mean mutual information)."""
    engine, size, gaps, information = predictive.engine(model, DRAWS, SEED), 8, [], []
    for start in range(0, len(questions), size):
        rows, _ = collate(questions[start : start + size], data, may_branch(model, data.max_length))
        scores = engine.score(rows)
        assert scores.mean is not None or not engine.separate_mean
        draws = choice_logprobs(scores.draws, rows).exp()  # [S, Q, C]
        mean = draws[:1] if scores.mean is None else choice_logprobs(scores.mean[None], rows).exp()
        own = torch.zeros(draws.shape[1:], dtype=torch.bool).index_put(
            (rows.question.cpu(), rows.choice.cpu()), torch.tensor(True)
        )
        gaps.append((draws - mean).abs()[:, own].flatten())
        information.append(entr(draws.mean(0)).sum(-1) - entr(draws).sum(-1).mean(0))
    return float(torch.cat(gaps).mean()), max(0.0, float(torch.cat(information).mean()))


def spread(posterior: Posterior) -> float:
    """Return the mean std of the drawn weights, from the draws (√(π/2) mean |deviation|)."""
    drawn = posterior.draws(0, DRAWS, SEED)
    parts = [(tensor - posterior.mean[name]).abs().flatten() for name, tensor in drawn.items()]
    return float(torch.cat(parts).mean()) * math.sqrt(math.pi / 2)


def warning(name: str, remedy: str, activity: Mapping[str, Any], courses: Sequence[Mapping[str, Any]]) -> str:
    """Return a one-line warning on an inert posterior, with the number of steps that make the KL count."""
    seen = (
        f"{name}: draws do not change the answers ({activity['moved']:.1e} in probability on average, on "
        f"{activity['questions']} training questions): the posterior is inert and N = 10 is N = 0"
    )
    kl = next((course["kl"] for course in reversed(courses) if course.get("kl")), None)
    if kl is None or kl["summed"] >= kl["needed"]:
        return f"{seen}; {remedy}"
    want = f"train for {kl['steps']:,} steps or more" if kl["steps"] else "raise its learning rate"
    return (
        f"{seen}; its KL weight × learning rate sums to {kl['summed']:.1e} of the {kl['needed']:.1e} that take the std "
        f"from {kl['std'][0]:.2g} to a tenth of the prior's: {want}"
    )


def report(name: str, remedy: str, activity: Mapping[str, Any] | None, courses: Sequence[Mapping[str, Any]]) -> None:
    if activity and activity["inert"]:
        log.warning("%s", warning(name, remedy, activity, courses))
