"""Temperature scaling: T against a grid, averages against an independent implementation, folders, bad input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from uqharness.adapter_io.folder import load_predictive, save_adapter
from uqharness.adapters.tempscale import HIGHEST, LOWEST, TempScale, best_temperature, nll
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import DrawAverage, Tempered
from uqharness.errors import InputError
from uqharness.metrics.averaging import combine_draws
from uqharness.posterior import Gaussian, Members, Point, Posterior, keyed_generator
from uqharness.testing import TINY, check_method, fit_tiny, tiny_data, tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.loop import collate

torch.set_num_threads(1)


def mean(key: str = "a") -> dict[str, torch.Tensor]:
    start = LoraStack(inject(tiny_llama(), TINY)).mean()
    return {n: 0.4 * torch.randn(t.shape, generator=keyed_generator(key, n)) for n, t in sorted(start.items())}


def gaussian() -> Gaussian:
    centre = mean()
    return Gaussian(centre, {name: torch.full_like(t, 0.2) for name, t in centre.items() if "lora_A" in name}, 3)


def test_contract() -> None:
    assert isinstance(check_method(TempScale, min_items=4), Tempered)
    members = DrawAverage(Members([mean("a"), mean("b"), mean("c")], 1), "logits")
    assert check_method(TempScale, source=members, min_items=4).finite == 3


def test_contract_on_a_bayesian_source() -> None:
    source = gaussian()
    scaled = check_method(TempScale, source=source, min_items=4, samples=3)
    assert scaled.posterior is source and scaled.open_form().record() == DrawAverage(source).record()


def overconfident(items: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(items, 4, generator=keyed_generator("logits")).double()
    gold = torch.multinomial((logits / 2.5).softmax(-1), 1, generator=keyed_generator("gold"))[:, 0]
    logits[::3, 3] = -math.inf  # questions with three choices
    gold[::3] = gold[::3] % 3
    return (3 * logits).log_softmax(-1), gold


def test_the_temperature_is_that_of_a_grid_search() -> None:
    logp, gold = overconfident()
    grid = np.exp(np.linspace(math.log(0.5), math.log(50), 4001))
    best = grid[np.argmin([nll(logp, gold, t) for t in grid])]
    temperature = best_temperature(logp, gold)
    assert temperature == pytest.approx(best, rel=2e-3) and temperature > 2
    assert nll(logp, gold, temperature) <= min(nll(logp, gold, t) for t in grid) + 1e-12


def test_the_temperature_undoes_a_known_one_and_stays_finite() -> None:
    logp, gold = overconfident()
    temperature = best_temperature(logp, gold)
    assert best_temperature((logp / temperature).log_softmax(-1), gold) == pytest.approx(1.0, rel=1e-6)
    assert best_temperature(logp, logp.argmax(-1)) == LOWEST
    assert best_temperature(logp, logp.nan_to_num(neginf=1e9).argmin(-1)) == HIGHEST


@pytest.mark.parametrize("rule", ["probs", "logits"])
def test_given_is_the_scaled_average_of_the_sources_draws(rule: str) -> None:
    posterior: Posterior = Members([mean("a"), mean("b"), mean("c")], 0) if rule == "logits" else gaussian()
    source = DrawAverage(posterior, rule)
    model, data = inject(tiny_llama(), TINY).eval(), tiny_data()
    rows, _ = collate(data.train, data)
    draws = source.engine(model, 3, 0).score(rows).draws.view(3, len(data.train), 3)  # [S, Q, C]
    p = combine_draws(draws.numpy(), rule)  # float64, without torch
    wanted = p ** (1 / 1.7) / (p ** (1 / 1.7)).sum(-1, keepdims=True)
    answers = Tempered(source, 1.7, 3).engine(model, 10).score(rows).draws
    assert answers.shape == (1, 3 * len(data.train))
    np.testing.assert_allclose(answers.exp().view(-1, 3).numpy(), wanted, rtol=1e-6)
    assert (answers.view(-1, 3).argmax(-1).numpy() == p.argmax(-1)).all()


def test_fit_takes_the_tuning_split_and_says_what_it_did() -> None:
    source = gaussian()
    scaled, model, data = fit_tiny(TempScale(min_items=4, samples=5), source=source)
    assert isinstance(scaled, Tempered)
    rows, _ = collate(data.tune, data)
    table = Engine(model, source, 5).score(rows).average(rows)
    gold = torch.tensor([q.gold for q in data.tune])
    assert scaled.temperature == pytest.approx(best_temperature(table, gold))
    before, after = data.record["tempscale"]["nll"]
    assert before == pytest.approx(nll(table, gold, 1.0)) and after < before and "training" not in data.record


def test_the_folder_is_self_contained(tmp_path: Path) -> None:
    source = gaussian()
    scaled, model, data = fit_tiny(TempScale(min_items=4, samples=2), source=source)
    save_adapter(tmp_path / "a", model, scaled, {"method": {"name": "tempscale"}, "base": {}})
    loaded, record = load_predictive(tmp_path / "a")
    assert isinstance(loaded, Tempered) and record and record["posterior"]["train_seed"] == 3
    assert type(loaded.posterior) is Gaussian and loaded.record() == scaled.record()
    rows, _ = collate(data.train, data)
    answers = [p.engine(model, 1).score(rows).draws for p in (scaled, loaded)]
    assert torch.equal(*answers)


def test_bad_input_is_one_line() -> None:
    for items, least in ((0, 1), (4, 10)):
        model, data = inject(tiny_llama(), TINY), tiny_data()
        data.tune = data.tune[:items]
        with pytest.raises(InputError, match=f"it has {items} items, at least {least}"):
            TempScale(min_items=least).fit(model, data, TINY)
    other = {name: t for name, t in mean().items() if "q_proj" in name}
    with pytest.raises(InputError, match="missing in the adapter"):
        fit_tiny(TempScale(min_items=4), source=Point(other, 0))

    class Unknown(Point):
        kind = "unknown"

    with pytest.raises(InputError, match="no installed method restores unknown"):
        fit_tiny(TempScale(min_items=4), source=Unknown(mean(), 0))
