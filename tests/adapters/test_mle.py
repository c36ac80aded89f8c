from __future__ import annotations

import torch

from uqharness.adapters.mle import MLE
from uqharness.engine.lora import LoraStack
from uqharness.posterior import Point
from uqharness.testing import TINY, check_method, fit_tiny, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.loop import fit_loop

torch.set_num_threads(1)


def test_contract():
    posterior = check_method(MLE)
    assert isinstance(posterior, Point) and posterior.usable(10) == 1 and posterior.draws(0, 1, 0) == {}


def test_it_is_the_plain_training_loop():
    posterior, _, data = fit_tiny(MLE())
    model = inject(tiny_llama(), TINY)
    fit_loop(model, tiny_data(), TINY)
    assert len(data.record["training"]) == 1 and posterior.train_seed == TINY.seed
    for name, tensor in LoraStack(model).mean().items():
        assert torch.equal(posterior.mean[name], tensor), name
