"""F = Σ_n Σ_k j_nk j_nkᵀ, j_nk = ∂/∂W Σ_c S_n[c, k] f_c(x_n), S Sᵀ = diag(p) − p pᵀ: the exact Fisher over a
question's own choices (Laplace-LoRA, arXiv:2308.13111, Eq. 8), by one forward and C − 1 backward passes.

Only the inputs and output gradients of LoRA's A and B are used: the base is frozen, so no weight gradient
is ever formed. This module knows models and token rows; `uqharness.curvature.laplace` uses the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from uqharness.engine.lora import LoraStack
from uqharness.engine.readers import reader_of
from uqharness.engine.rows import Rows
from uqharness.engine.shortcuts import skip_unread
from uqharness.errors import InputError, RunError


class Tape:
    """Record inputs of the named LoRA linears in a forward, and gradients at their outputs in a backward."""

    def __init__(self, stack: LoraStack, names: Iterable[str]) -> None:
        self.stack, self.names = stack, list(names)
        self.inputs: dict[str, Tensor] = {}  # [R, T, in], in the order in which the layers ran
        self.roots: list[Tensor] = []
        self.receive: Callable[[str, Tensor], None] | None = None
        self.undo: list[Callable[[], Any]] = []

    def __enter__(self) -> Tape:
        for parameter in self.stack.parameters.values():
            self.undo.append(partial(parameter.requires_grad_, parameter.requires_grad))
            parameter.requires_grad_(False)
        for name in self.names:
            handle = self.stack.layers[name].register_forward_hook(partial(self._forward, name))
            self.undo.append(handle.remove)
        embedding = self.stack.model.get_base_model().get_input_embeddings()
        if embedding is not None:  # gradient checkpointing leaves them with a gradient that nobody wants here
            self.undo.append(embedding.register_forward_hook(lambda m, a, out: out.detach()).remove)
        return self

    def __exit__(self, *error: object) -> None:
        for undo in self.undo:
            undo()
        self.roots, self.receive = [], None

    def _forward(self, name: str, module: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.inputs[name] = args[0].detach()
        if not output.requires_grad:  # nothing trainable below: the backward pass ends here
            output = output.detach().requires_grad_()
            self.roots.append(output)
        output.register_hook(partial(self._backward, name))
        return output

    def _backward(self, name: str, gradient: Tensor) -> None:
        if self.receive is not None:
            self.receive(name, gradient.detach())

    def backward(self, value: Tensor, receive: Callable[[str, Tensor], None]) -> None:
        """Run one backward pass through the activations; call `receive(name, gradient)` for each layer."""
        self.receive = receive
        torch.autograd.grad(value, self.roots, retain_graph=True, allow_unused=True)
        self.receive = None


def choice_logits(stack: LoraStack, rows: Rows, whole: Sequence[str] = ()) -> Tensor:
    """Return f_c(x): `[Q, C]`, −inf for absent choices. whole: layers whose inputs are recorded at all tokens."""
    reader = reader_of(stack.model)
    with skip_unread(stack.model, rows, 1, {stack.layers[name] for name in whole}):
        return reader.choice_logits(reader.logits(stack.model, rows)[0], rows)


def fisher_root(f: Tensor) -> Tensor:
    """Return S with S Sᵀ = diag(p) − p pᵀ: `[Q, C]` -> `[Q, C, C − 1]`; the matrix has rank C − 1 at most."""
    p = f.detach().softmax(-1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[..., None] * p[..., None, :])
    return (vectors * values.clamp(min=0).sqrt()[..., None, :])[..., 1:]


def sampled_root(f: Tensor, generator: torch.Generator) -> Tensor:
    """Return e_y − p for one label y ~ p: `[Q, C]` -> `[Q, C, 1]`, whose expected square is diag(p) − p pᵀ."""
    p = f.detach().softmax(-1)
    label = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)  # [Q, 1]
    return (torch.zeros_like(p).scatter(-1, label, 1.0) - p)[..., None]


def split(rows: Rows, size: int) -> Iterator[Rows]:
    """Yield the rows of `size` questions at a time."""
    number = torch.arange(int(rows.question.max()) + 1, device=rows.question.device)
    for start in range(0, len(number), size):
        yield rows.take((number >= start) & (number < start + size))[0]


def weigh(f: Tensor, weights: Tensor) -> Tensor:
    """Return Σ weights · f over the choices that exist."""
    return torch.where(f.isfinite(), f, 0.0).mul(weights).sum()


def per_question(inputs: Tensor, gradients: Tensor, rows: Rows) -> Tensor:
    """Return ∂/∂W of each question: Σ_t g_t a_tᵀ over its tokens, `[Q, out, in]`."""
    gradients = gradients if gradients.dtype == torch.float64 else gradients.float()
    outer = gradients.transpose(1, 2) @ inputs.to(gradients.dtype)  # [R, out, in]; g is 0 behind the last read
    example = rows.examples[len(inputs)]
    return outer.new_zeros(int(rows.question.max()) + 1, *outer.shape[1:]).index_add(0, example, outer)


def jacobians(
    stack: LoraStack, names: Sequence[str], rows: Rows, differences: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return f and ∂f_c/∂W of every choice and layer: `[Q, C]`, `{name: [Q, C, out, in]}`.

    differences: ∂(f_c − f_last)/∂W, with one pass less; all that the softmax of a joint Gaussian needs.
    """
    with Tape(stack, names) as tape:
        f = choice_logits(stack, rows)
        parts: dict[str, list[Tensor]] = {name: [] for name in names}

        def receive(name: str, gradient: Tensor) -> None:
            parts[name].append(per_question(tape.inputs[name], gradient, rows))

        eye = torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
        last = f.isfinite().sum(1) - 1  # [Q]
        for unit in eye[: len(eye) - differences]:
            weights = unit * f.isfinite()
            tape.backward(weigh(f, weights - eye[last] * weights.sum(1)[:, None] if differences else weights), receive)
    jacobian = {name: torch.stack(per_choice, dim=1) for name, per_choice in parts.items()}
    if differences:
        jacobian = {name: torch.cat([j, torch.zeros_like(j[:, :1])], dim=1) for name, j in jacobian.items()}
    return f.detach(), jacobian


class Collector:
    """Sums over the passes of successive batches."""

    def inputs(self, inputs: Mapping[str, Tensor], rows: Rows) -> None:
        """Receive the inputs of each layer, once per batch."""

    def gradients(self, name: str, x: Tensor, g: Tensor, rows: Rows) -> None:
        """Receive the output gradient of a layer, once per backward pass."""

    def end_pass(self) -> None:
        """Finish a backward pass."""


def collect(
    stack: LoraStack,
    names: Sequence[str],
    batches: Iterable[tuple[Rows, Tensor]],
    collector: Collector,
    sample: Callable[[int], torch.Generator] | None = None,
) -> float:
    """Run all batches through `collector`; return Σ log p(gold | question). `sample`: labels instead of all choices."""
    total = 0.0
    for index, (rows, gold) in enumerate(batches):
        with torch.enable_grad(), Tape(stack, names) as tape:
            f = choice_logits(stack, rows, names)
            if bool((f.isnan() | (f == math.inf)).any()):
                raise RunError("the model answers training questions with NaN or inf: check the adapter and the base")
            root = fisher_root(f) if sample is None else sampled_root(f, sample(index))
            collector.inputs(tape.inputs, rows)

            def receive(name: str, gradient: Tensor, tape: Tape = tape, rows: Rows = rows) -> None:
                collector.gradients(name, tape.inputs[name], gradient, rows)

            for k in range(root.shape[-1]):
                tape.backward(weigh(f, root[..., k]), receive)
                collector.end_pass()
        table = f.detach().log_softmax(-1)
        total += float(table[torch.arange(len(gold)), gold.to(table.device)].sum())
    return total


def answer_rows(stack: LoraStack, names: Sequence[str], questions: Iterable[Any]) -> dict[str, Tensor]:
    """Return which output rows of the head's B can have a gradient; empty if all of them can.

    Shifts common to all choices are no part of the Fisher, so where choices are single tokens read at one place
    only the rows of those tokens have one: the head's factor is trimmed to them without loss.
    """
    tokens: set[int] = set()
    for question in questions:
        if any(len(answer) != 1 or list(context) != list(question.pairs[0][0]) for context, answer in question.pairs):
            return {}
        tokens |= {answer[0] for _, answer in question.pairs}
    head = stack.model.get_base_model().get_output_embeddings()
    own = set(head.modules()) if head is not None else set()
    return {n: torch.tensor(sorted(tokens)) for n in names if ".lora_B." in n and stack.layers[n] in own}


def last_layer(names: Sequence[str]) -> list[str]:
    """Return the linears of the last block that has any: the output head's, else the last decoder layer's."""
    if not names:
        raise InputError("the adapter has no linear LoRA layer: Laplace needs one")
    parts = names[-1].split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    stem = ".".join(parts[: numbers[-1] + 1]) if numbers else names[-1].split(".lora_")[0]
    return [name for name in names if name.startswith(f"{stem}.")]
