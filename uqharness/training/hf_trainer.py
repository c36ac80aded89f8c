"""Hugging Face's `Trainer` with our data order, loss, checkpoints and progress.

A module of its own, because importing the Trainer takes seconds, which evaluation need not pay. It knows neither
methods nor questions: `loop.py` hands it the loss as a module, the optimiser, its schedule and the batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from uqharness.errors import InputError, RunError
from uqharness.settings import Run
from uqharness.training.checkpoints import PARTIAL, Course


class ChoiceTrainer(Trainer):
    """A Trainer with our data order, our checkpoints (safetensors and a completion marker) and our loss.

    Args:
        wrapped: the loss as a module, called with one batch.
        schedule: the factor on every learning rate at a step.
        loader: makes the batches of the whole run for a number of processes.
    """

    def __init__(
        self,
        wrapped: nn.Module,
        run: Run,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        loader: Callable[[int], DataLoader[Any]],
        course: Course,
        scratch: str,
    ) -> None:
        self.run, self.course, self.loader = run, course, loader
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        super().__init__(wrapped, arguments_of(run, scratch), optimizers=(optimizer, scheduler))
        self.remove_callback(PrinterCallback)  # the bar of `Course` is enough

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.accelerator.prepare(self.loader(self.args.world_size))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
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
        every, last = self.course.run.save_every, state.global_step == self.course.run.last_step
        if every and (last or state.global_step % every == 0):
            control.should_save = True
        control.should_training_stop = control.should_training_stop or last


def arguments_of(run: Run, scratch: str) -> TrainingArguments:
    if missing := sorted(set(run.report_to) - set(get_available_reporting_integrations())):
        raise InputError(f"report_to names {', '.join(missing)}, which is not installed: pip install it")
    fields = [(spec.metadata["trainer"], spec.name) for spec in dataclasses.fields(run)]
    keeps = run.save_every or run.report_to
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints) if keeps and run.checkpoints else scratch,
        **{argument: getattr(run, name) for argument, name in fields if argument},
        max_grad_norm=0.0,
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
