from __future__ import annotations

import dataclasses

import pytest
import torch

from uqharness.adapters.ens import Ensemble, member_run
from uqharness.adapters.mle import MLE
from uqharness.engine.engine import Engine
from uqharness.engine.rows import make_rows
from uqharness.errors import InputError
from uqharness.metrics.averaging import combine_draws
from uqharness.posterior import Members
from uqharness.settings import build
from uqharness.testing import TINY, check_method, fit_tiny

torch.set_num_threads(1)


def test_contract():
    posterior = check_method(Ensemble, members=2).posterior
    assert isinstance(posterior, Members) and posterior.usable(10) == 2 and posterior.mean_is_member


def test_members_are_mles_of_their_own_seeds():
    predictive, _, data = fit_tiny(Ensemble(members=2))
    posterior = predictive.posterior
    assert isinstance(posterior, Members) and len(data.record["training"]) == 2
    for k, member in enumerate(posterior.members):
        alone, _, _ = fit_tiny(MLE(), member_run(TINY, k))
        assert all(torch.equal(member[name], alone.mean[name]) for name in alone.mean), k
    assert member_run(TINY, 0).seed == TINY.seed  # so member 0 is the MLE of this seed


def test_no_two_ensembles_share_a_member():
    seeds = [member_run(dataclasses.replace(TINY, seed=s), k).seed for s in range(20) for k in range(5)]
    assert len(set(seeds)) == len(seeds)


def test_a_trained_lora_is_the_first_member() -> None:
    whole, _, _ = fit_tiny(Ensemble(members=2))
    first, _, _ = fit_tiny(MLE())
    built, _, data = fit_tiny(Ensemble(members=2), source=first)
    assert len(data.record["training"]) == 1
    for one, other in zip(whole.posterior.members, built.posterior.members, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InputError, match="found 2"):
        fit_tiny(Ensemble(members=2), source=built)


@pytest.mark.parametrize("average", ["probs", "logits"])
def test_average_says_what_is_averaged(average):
    """Oracle: the members' answers one by one, averaged by hand."""
    predictive, model, data = fit_tiny(Ensemble(members=2, average=average))
    assert predictive.rule == average
    rows = make_rows([q.pairs for q in data.train[1:3]], data.max_length)
    together = predictive.engine(model).score(rows).draws  # [2, 2·3]
    alone = torch.stack([Engine(model, Members([m], 0)).score(rows).draws[0] for m in predictive.posterior.members])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    values = alone.view(2, 2, 3)
    softmax = values.softmax(-1).mean(0) if average == "probs" else values.log_softmax(-1).mean(0).softmax(-1)
    averaged = combine_draws(together.view(2, 2, 3).numpy(), predictive.rule)
    torch.testing.assert_close(torch.tensor(averaged), softmax, atol=1e-6, rtol=0)


def test_bad_settings():
    with pytest.raises(InputError, match="members is 0"):
        build(Ensemble, {"members": 0})
    with pytest.raises(InputError, match="did you mean logits"):
        build(Ensemble, {"average": "logit"})
