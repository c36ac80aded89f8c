"""Maximise Σ log p(gold choice | question, its choices) over an adapter; Hugging Face's `Trainer` loops.

A method passes its specific parts: a loss, parameter groups, its own parameters and a callable
after each optimiser step. All random numbers depend on (seed, step), so a resumed run equals an
uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.readers import choice_logprobs, reader_of
from uqharness.engine.rows import Rows, make_rows
from uqharness.engine.shortcuts import drops, may_branch
from uqharness.errors import InputError
from uqharness.posterior import keyed_generator
from uqharness.settings import Run, as_json
from uqharness.training.checkpoints import Course, own_randomness
from uqharness.training.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from uqharness.training.data import ChoiceData
    from uqharness.training.questions import Question

log = logging.getLogger(__name__)
# The rest of the Trainer's chatter (its banner at the start, its dictionary at the end) says nothing new.
logging.getLogger("transformers.trainer").setLevel(logging.WARNING)


@dataclass
class Batch:
    """Questions as token rows, and where in the run they are: noise is keyed by (step, micro)."""

    rows: Rows
    gold: Tensor  # [Q]
    step: int  # optimiser step, from 0
    micro: int  # forward, from 0 over the whole run and all processes

    def to(self, device: torch.device | str, **_: Any) -> Batch:
        return Batch(self.rows.to(device), self.gold.to(device), self.step, self.micro)


@dataclass(frozen=True)
class Learned:
    """Facts on a std that is learned with a KL, for the record and the warning on an inert posterior."""

    stds: Callable[[], Mapping[str, Tensor]]  # of the random weights now, by tensor
    rate: Callable[[int, Run], float]  # KL weight × learning rate of a step of a run
    needed: Callable[[float], float]  # Σ rate with which the KL alone takes the std from here to a tenth of the prior's
    cycle: int = 1  # steps after which the KL's weights repeat

    @torch.no_grad()
    def std(self) -> float:
        """Return the mean std of all random weights now."""
        return float(torch.cat([std.flatten() for std in self.stds().values()]).mean())

    @torch.no_grad()
    def layers(self) -> dict[str, float]:
        """Return the mean std of each tensor now."""
        stds = self.stds()
        return dict(zip(stds, torch.stack([std.mean() for std in stds.values()]).tolist(), strict=True))

    def record(self, run: Run, start: float) -> dict[str, Any]:
        summed, needed = math.fsum(self.rate(step, run) for step in range(run.last_step)), self.needed(start)
        return {"summed": summed, "needed": needed, "steps": self.steps(run, needed), "std": [start, self.std()]}

    def steps(self, run: Run, needed: float) -> int | None:
        """Return the fewest whole cycles, in steps, reaching the needed sum (to 1 %); None: over a million steps."""

        def enough(cycles: int) -> bool:
            longer = dataclasses.replace(run, steps=cycles * self.cycle)
            taken = range(cycles) if cycles <= 64 else [round((i + 0.5) * cycles / 64 - 0.5) for i in range(64)]
            rates = (self.rate(c * self.cycle + k, longer) for c in taken for k in range(self.cycle))
            return math.fsum(rates) * cycles / len(taken) >= needed

        high = 1
        while not enough(high):
            high *= 2
            if high * self.cycle > 10**6:
                return None
        low = high // 2
        while high - low > max(1, high // 100):
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high * self.cycle


Loss = Callable[[LoraStack, Batch], Tensor]


def choice_loss(stack: LoraStack, batch: Batch) -> Tensor:
    """−1/Q Σ_q log softmax over q's own choices of Σ_tokens log p(token), at the gold choice."""
    table = choice_table(stack.model, batch.rows)
    return -table[torch.arange(len(table), device=table.device), batch.gold.to(table.device)].mean()


def choice_table(model: PeftModel, rows: Rows) -> Tensor:
    """Return log p(choice | question), `[Q, C]`, from logits at the answer positions."""
    reader = reader_of(model)
    return choice_logprobs(reader.log_likelihoods(reader.logits(model, rows, skip=True), rows), rows)[0]


def collate(questions: Sequence[Question], data: ChoiceData, branch: bool = False) -> tuple[Rows, Tensor]:
    """Collate questions to a batch. branch: choices of a question share a prefix if this saves tokens."""
    pairs = [q.pairs for q in questions]
    rows = make_rows(pairs, data.max_length, data.pad)
    if branch and len(rows.input_ids) > len(questions):
        shared = make_rows(pairs, data.max_length, data.pad, branch=True)
        rows = shared if shared.input_ids.numel() < rows.input_ids.numel() else rows
    return rows, torch.tensor([q.gold for q in questions])


def learning_rate(step: int, run: Run) -> float:
    """Return the factor on every learning rate at `step`: up from 0 in the warm-up, then down to 0 (or constant)."""
    warm = math.ceil(run.steps * run.warmup)
    if step < warm:
        return step / warm
    return 1.0 if run.schedule == "constant" else max(0.0, (run.steps - step) / max(1, run.steps - warm))


class Stream(Dataset["tuple[int, Question]"]):
    """All epochs in a row: position k is question k mod n of a permutation keyed by (seed, epoch).

    Batches run across the ends of epochs, so all are full and every question is seen equally often.
    """

    def __init__(self, questions: Sequence[Question], seed: int, length: int, grouped: int = 0) -> None:
        """grouped: the size of batches whose questions should be of about one length; 0: any."""
        self.questions, self.seed, self.length, self.grouped = questions, seed, length, grouped
        self.epoch, self.order = -1, list[int]()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> tuple[int, Question]:
        epoch, index = divmod(position, len(self.questions))
        if epoch != self.epoch:
            generator = keyed_generator("order", self.seed, epoch)
            order = torch.randperm(len(self.questions), generator=generator).tolist()
            self.epoch, self.order = epoch, self._by_length(order, epoch, generator) if self.grouped else order
        return position, self.questions[self.order[index]]

    def _by_length(self, order: list[int], epoch: int, generator: torch.Generator) -> list[int]:
        """Sorts windows of 32 batches by length and shuffles each window's batches."""
        size = self.grouped
        begun = -epoch * len(order) % size  # what the last epoch's last batch lacks
        grouped = order[:begun]
        for start in range(begun, len(order), 32 * size):
            window = sorted(order[start : start + 32 * size], key=lambda k: self.questions[k].tokens)
            count = len(window) // size
            for k in torch.randperm(count, generator=generator).tolist():
                grouped += window[k * size : (k + 1) * size]
            grouped += window[count * size :]
        return grouped


def batches(data: ChoiceData, run: Run, branch: bool, processes: int) -> DataLoader[Any]:
    """Yield the batches of the whole run, over all processes; noise is keyed by their numbers."""

    def batch(items: Sequence[tuple[int, Question]]) -> dict[str, Batch]:
        micro = items[0][0] // run.batch_size
        rows, gold = collate([question for _, question in items], data, branch)
        return {"batch": Batch(rows, gold, micro // (run.grad_accumulation * processes), micro)}

    forwards = run.steps * run.grad_accumulation * processes
    grouped = run.batch_size if run.group_by_length else 0
    stream = Stream(data.train, run.seed, forwards * run.batch_size, grouped)
    return DataLoader(stream, run.batch_size, collate_fn=batch, generator=keyed_generator("loader", run.seed))


class LossModel(nn.Module):
    """The module that the Trainer trains: adapter, the method's own parameters, and the loss as forward."""

    def __init__(
        self, stack: LoraStack, loss: Loss, extra: Mapping[str, nn.Parameter], prefix: PrefixCache | None = None
    ) -> None:
        super().__init__()
        self.stack, self.loss, self.model, self.prefix = stack, loss, stack.model, prefix
        # Not inside PEFT's modules: it would save them as part of the mean. Module names must not have dots.
        self.extra = nn.ParameterDict({name.replace(".", "/"): parameter for name, parameter in extra.items()})

    def forward(self, batch: Batch) -> Tensor:
        with self.prefix.below(batch.rows) if self.prefix else contextlib.nullcontext():
            return self.loss(self.stack, batch)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def fit_loop(
    model: PeftModel | LoraStack,
    data: ChoiceData,
    run: Run,
    *,
    loss: Loss = choice_loss,
    groups: Sequence[dict[str, Any]] | None = None,
    after_step: Callable[[int], None] | None = None,
    extra: Mapping[str, nn.Parameter] | None = None,
    method: Any = None,
    learned: Learned | None = None,
    per_token: bool = False,
) -> Course:
    """Train the adapter in place.

    Args:
        loss: returns the loss of a batch, a scalar with a gradient.
        groups: AdamW's parameter groups; parameters in none of them are the method's to update in `after_step`.
        after_step: called with the step after each optimiser step, before gradients are cleared.
        extra: the method's own parameters, saved in checkpoints, never in PEFT's part of the adapter.
        method: its settings are noted in checkpoints, so that one of other settings is not resumed.
        learned: of a std that is learned with a KL, what an inert posterior's warning needs.
        per_token: the loss draws noise for each token of its rows. Then, as with dropout, every choice of several
            tokens keeps a row of its own: shared tokens would get other noise, and the choices the same. Else they
            may share.
    """
    from uqharness.training.hf_trainer import ChoiceTrainer, Watch  # takes seconds to import

    stack = model if isinstance(model, LoraStack) else LoraStack(model)
    branch = may_branch(stack.model, data.max_length) and not per_token
    branch = branch and not drops(stack.model, stack.model.get_base_model().config)
    wrapped = LossModel(stack, loss, extra or {}, PrefixCache(stack, run) if run.cache_prefix else None)
    if run.eval_every and not data.select:
        raise InputError("eval_every is set but there is no selection split: give --select-split train[-20%]")
    inputs = {
        "form": data.record.get("form"),
        "data": [split["hash"] for split in data.record.get("splits", [])],
        "method": [getattr(method, "name", None), as_json(method)],
    }
    if run.record_every and learned is None:
        log.info("record_every: %s learns no std, so none is recorded", getattr(method, "name", "this method"))
    layers = learned.layers if learned and run.record_every else None
    course = Course(wrapped.trainable(), run, lambda: score(stack, data), inputs, layers)
    data.courses.append(course)
    first_std = learned.std() if learned else 0.0
    start = course.newest_checkpoint() if run.resume else None
    with own_randomness(), tempfile.TemporaryDirectory() as scratch:
        adamw: dict[str, Any] = {"lr": run.lr, "eps": run.adam_eps, "weight_decay": run.weight_decay}
        optimizer = torch.optim.AdamW([dict(group) for group in groups or [{"params": stack.trained}]], **adamw)
        schedule, loader = partial(learning_rate, run=run), partial(batches, data, run, branch)
        trainer = ChoiceTrainer(wrapped, run, optimizer, schedule, loader, course, scratch)
        trainer.add_callback(Watch(course, after_step))
        prepare_memory(stack.model, run)
        course.begin(start)
        try:
            if course.step < run.last_step:
                trainer.train(resume_from_checkpoint=str(start) if start else None)
        finally:
            if wrapped.prefix:
                wrapped.prefix.save()
    course.finish()
    stack.model.eval()
    kl = {"kl": learned.record(run, first_std)} if learned else {}
    data.record.setdefault("training", []).append({**course.record(), **kl})
    return course


@torch.inference_mode()
def score(stack: LoraStack, data: ChoiceData) -> dict[str, float]:
    """Return NLL and accuracy of the current mean on the selection split."""
    stack.clear()  # a method's noise has served its step
    was_training = stack.model.training
    stack.model.eval()
    nll, hits, size, branch = 0.0, 0, 16, may_branch(stack.model, data.max_length)
    for start in range(0, len(data.select), size):
        rows, gold = collate(data.select[start : start + size], data, branch)
        table = choice_table(stack.model, rows.to(stack.device)).cpu()  # [Q, C]
        nll -= float(table[torch.arange(len(gold)), gold].sum())
        hits += int((table.argmax(-1) == gold).sum())
    stack.model.train(was_training)
    return {"nll": nll / len(data.select), "acc": hits / len(data.select)}


# ---------------------------------------------------------------- for methods that fit on the tuning split


def tune_table(engine: Engine, data: ChoiceData, size: int = 16) -> Tensor:
    """Return averaged answers to all questions of the tuning split: `[Q, C]`, −inf where there is no such choice."""
    starts, branch = range(0, len(data.tune), size), may_branch(engine.model, data.max_length)
    batches = [collate(data.tune[i : i + size], data, branch)[0] for i in starts]
    parts = [engine.score(rows).average(rows) for rows in batches]
    width = max(part.shape[1] for part in parts)
    pads = [(0, width - part.shape[1]) for part in parts]
    return torch.cat([nn.functional.pad(p, pad, value=-math.inf) for p, pad in zip(parts, pads, strict=True)])


def check_tune(name: str, data: ChoiceData, least: int) -> None:
    if len(data.tune) < least:
        raise InputError(
            f"{name} fits on the tuning split: it has {len(data.tune)} items, at least {least} are needed; "
            "raise --tune-fraction or take a task with a spare validation split"
        )


def prepare_memory(model: PeftModel, run: Run) -> None:
    """Switch gradient checkpointing on if the run asks for it."""
    if run.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # transformers makes the embedding's output ask for gradients. The reentrant kind alone needs that, and it
        # sends the backward pass through all layers below the first LoRA.
        if hasattr(base := model.get_base_model(), "_require_grads_hook"):
            base.disable_input_require_grads()
