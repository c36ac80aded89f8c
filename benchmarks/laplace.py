"""Laplace against the model's own passes: factors of a batch / (forward + backward), linearised answers / forward.

Forward and backward are plain PEFT's on the same batch: logits at every position, gradients of the LoRA. The peer,
laplace-torch, is measured where `scripts/install-laplace-oracle.sh` has put it; its head runs at one position only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.setting import QV, QVH, Shape, adapter, questions, run_of
from benchmarks.timing import Row, figure, interleave, peak_bytes, ratio, spread
from uqharness.adapters.laplace import Laplace
from uqharness.curvature.fisher import answer_rows, collect
from uqharness.curvature.laplace import collector
from uqharness.curvature.linearised import Linearised
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import DrawAverage
from uqharness.engine.rows import Rows
from uqharness.posterior import Point, keyed_generator
from uqharness.settings import Run
from uqharness.training.data import ChoiceData
from uqharness.training.loop import collate

BATCH = 8  # as in Laplace-LoRA


def passes(shape: Shape, run: Run, rows: Rows, gold: Tensor) -> dict[str, Callable[[], Any]]:
    """Plain PEFT: forward, and forward + backward."""
    model = adapter(shape, run).train()
    ids, last = rows.input_ids, rows.input_ids.shape[1] - 1
    labels = torch.full_like(ids, -100)
    labels[:, last] = 10 + gold

    def both() -> None:
        model(input_ids=ids, labels=labels, shift_labels=labels).loss.backward()
        model.zero_grad()

    @torch.inference_mode()
    def forward() -> None:
        model(input_ids=ids)

    return {"forward": forward, "both": both}


def factors(shape: Shape, run: Run, data: ChoiceData, batch: tuple[Rows, Tensor], fisher: str) -> Callable[[], Any]:
    """What a batch adds to the Kronecker factors."""
    stack = LoraStack(adapter(shape, run))
    names = list(stack.layers)
    sums = collector("kron", stack, names, 64, "sum", answer_rows(stack, names, data.train))
    sample = None if fisher == "exact" else lambda k: keyed_generator("fisher", 0, k)
    return lambda: collect(stack, names, [batch], sums, sample)


def predictive(shape: Shape, run: Run, data: ChoiceData, rows: Rows) -> Callable[[], Any]:
    """Answers of the linearised model with the joint covariance."""
    stack = LoraStack(adapter(shape, run))
    linearised = Laplace().fit(stack.model, data, run, DrawAverage(Point(stack.mean(), 0)))
    assert isinstance(linearised, Linearised)
    return torch.inference_mode()(partial(linearised.answers, stack, rows, linearised.posterior.curvature))


class ChoiceModel(nn.Module):
    """What laplace-torch sees: ids -> logits of the choices, the head at the last position only."""

    def __init__(self, stack: LoraStack) -> None:
        super().__init__()
        self.inner = stack.model
        for name, parameter in self.inner.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        self.inner.get_base_model().get_output_embeddings().register_forward_pre_hook(lambda m, a: (a[0][:, -1:],))

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(input_ids=ids, use_cache=False).logits[:, -1, 10:14]


def peer(shape: Shape, run: Run, rows: Rows, gold: Tensor) -> dict[str, Callable[[], Any]]:
    """laplace-torch's Kronecker factors of a batch, and its linearised answers."""
    if importlib.util.find_spec("laplace") is None:
        return {}
    import laplace
    from laplace.curvature import AsdlGGN
    from torch.utils.data import DataLoader, TensorDataset

    data = DataLoader(TensorDataset(rows.input_ids, gold), BATCH)
    model = ChoiceModel(LoraStack(adapter(shape, run)))
    fitted = laplace.Laplace(
        model, "classification", subset_of_weights="all", hessian_structure="kron", backend=AsdlGGN
    )
    fitted.fit(data)
    return {
        "peer fit": lambda: fitted.backend.kron(rows.input_ids, gold, N=len(gold)),
        "peer answers": lambda: fitted(rows.input_ids, pred_type="glm", link_approx="mc", n_samples=100_000),
    }


def rows(quick: bool) -> Iterator[Row]:
    shape = Shape.of(quick)
    data = questions(shape, 2 * BATCH)
    batch, gold = collate(data.train[:BATCH], data)
    for targets, quoted in ((QV, ("3.2", "26")), (QVH, ("19.4", "60; peak 1.1–1.6 GiB"))):
        run, words = run_of(BATCH, targets), ",".join(t.split("_")[-1 if t == "lm_head" else 0] for t in targets)
        functions = passes(shape, run, batch, gold) | {"answers": predictive(shape, run, data, batch)}
        functions |= {f: factors(shape, run, data, (batch, gold), f) for f in ("exact", "mc")}
        times = interleave(functions, 1 if quick else 11)
        others = {} if quick else interleave(passes(shape, run, batch, gold) | peer(shape, run, batch, gold), 2)
        seen = [
            f"laplace-torch {spread(ratio(others, f'peer {name}', to)) if f'peer {name}' in others else quoted[k]}"
            for k, (name, to) in enumerate((("fit", "both"), ("answers", "forward")))
        ]
        for fisher, goal in (("exact", 1.6), ("mc", 0.9)):
            name = f"KFAC fit, {words}, fisher={fisher} / (forward + backward)"
            yield figure(name, seen[0], goal, ratio(times, fisher, "both"))
        yield figure(f"linearised joint answers, {words} / forward", seen[1], 6, ratio(times, "answers", "forward"))
        peak = peak_bytes(functions["answers"]) / 2**20
        yield figure(f"linearised joint answers, {words}: peak MiB", "laplace-torch 1.1–1.6 GiB", 150, [peak])
