"""Hugging Face's `Trainer`, told our data order, loss, checkpoints and progress.

Apart from `training.py` because importing the Trainer takes seconds, which evaluation need not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from uqharness.errors import InputError, RunError
from uqharness.posterior import keyed_generator
from uqharness.settings import Run
from uqharness.training.checkpoints import PARTIAL, Course
from uqharness.training.fit import Batch, LossModel, collate, learning_rate
from uqharness.training.questions import Question

if TYPE_CHECKING:
    from uqharness.training.data import ChoiceData


class Stream(Dataset[tuple[int, Question]]):
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
        found = order[:begun]
        for start in range(begun, len(order), 32 * size):
            window = sorted(order[start : start + 32 * size], key=lambda k: self.questions[k].tokens)
            count = len(window) // size
            for k in torch.randperm(count, generator=generator).tolist():
                found += window[k * size : (k + 1) * size]
            found += window[count * size :]
        return found


class ChoiceTrainer(Trainer):
    """Our data order, our checkpoints (safetensors and a completion marker), our loss."""

    def __init__(
        self,
        wrapped: LossModel,
        data: ChoiceData,
        run: Run,
        groups: Sequence[dict[str, Any]],
        course: Course,
        scratch: str,
    ) -> None:
        optimizer = torch.optim.AdamW(
            [dict(group) for group in groups], lr=run.lr, eps=run.adam_eps, weight_decay=run.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, run))
        self.wrapped, self.data, self.run, self.course = wrapped, data, run, course
        super().__init__(wrapped, arguments_of(run, scratch), optimizers=(optimizer, scheduler))
        self.remove_callback(PrinterCallback)  # the bar of `Course` is enough

    def get_train_dataloader(self) -> DataLoader[Any]:
        forwards = self.run.steps * self.run.grad_accumulation * self.args.world_size
        grouped = self.run.batch_size if self.run.group_by_length else 0
        stream = Stream(self.data.train, self.run.seed, forwards * self.run.batch_size, grouped)
        loader = DataLoader(
            stream,
            self.run.batch_size,
            collate_fn=self._batch,
            generator=keyed_generator("loader", self.run.seed),
        )
        return self.accelerator.prepare(loader)

    def _batch(self, items: Sequence[tuple[int, Question]]) -> dict[str, Batch]:
        micro = items[0][0] // self.run.batch_size
        rows, gold = collate([question for _, question in items], self.data, self.wrapped.branch)
        return {"batch": Batch(rows, gold, micro // (self.run.grad_accumulation * self.args.world_size), micro)}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Batch], *args: Any, **kwargs: Any) -> Any:
        loss = model(inputs["batch"])
        # The mean over processes, so that all of them stop at the same loss that is no number.
        shown = self.accelerator.reduce(loss.detach(), "mean") if self.args.world_size > 1 else loss.detach()
        self.course.add_loss(inputs["batch"].step, shown)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return grad_norm  # recent versions compute it at every step by clipping at infinity

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if output_dir and self.args.should_save:
            self.course.save_weights(Path(output_dir))

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(super()._get_output_dir(trial)) / PARTIAL)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes the state of its own generators
            if self.args.should_save:  # the marker comes last: without it the checkpoint does not count
                self.course.mark(Path(self._get_output_dir(trial)) / f"checkpoint-{step}")
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap the system's
            own = self.course.own_checkpoints()
            left = f"the last one is {own[-1].name}" if own else "there is no earlier one"
            reason = " ".join(str(error).split())
            raise RunError(
                f"the checkpoint of step {step} cannot be written in {self.run.checkpoints} ({reason}); {left}; "
                "make room and add --resume"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        return None  # `Course.begin` has loaded the weights


class Watch(TrainerCallback):
    """The method's own step, the progress bar, scoring for --select, and when to save."""

    def __init__(self, course: Course, after_step: Callable[[int], None] | None) -> None:
        self.course, self.after_step = course, after_step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.after_step is not None:
            self.after_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.course.end_step(state.global_step)
        every, last = self.course.run.save_every, state.global_step == state.max_steps
        if every and (last or state.global_step % every == 0):
            control.should_save = True


def arguments_of(run: Run, scratch: str) -> TrainingArguments:
    if missing := sorted(set(run.report_to) - set(get_available_reporting_integrations())):
        raise InputError(f"report_to names {', '.join(missing)}, which is not installed: pip install it")
    keeps = run.save_every or run.report_to
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints) if keeps and run.checkpoints else scratch,
        max_steps=run.steps,
        per_device_train_batch_size=run.batch_size,
        gradient_accumulation_steps=run.grad_accumulation,
        learning_rate=run.lr,
        max_grad_norm=0.0,
        seed=run.seed,
        use_cpu=run.device == "cpu",
        save_strategy="no",
        save_total_limit=None,  # `Course` drops older ones, and only its own
        logging_strategy="steps" if run.report_to else "no",
        logging_steps=max(1, min(50, run.steps // 100)),
        logging_nan_inf_filter=False,
        report_to=list(run.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs: one process each (accelerate), no DataParallel
    return arguments
