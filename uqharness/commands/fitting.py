"""Prepare the model and data of a fit and record its cost; shared by `train` and its dry run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from uqharness.commands.settings import Plan
from uqharness.errors import InputError
from uqharness.settings import Run

if TYPE_CHECKING:
    from peft import PeftModel

    from uqharness.training.data import ChoiceData

log = logging.getLogger("uqharness.train")


def prepare(plan: Plan, cell: Run, task: Any) -> tuple[PeftModel, ChoiceData]:
    """Return the base with a new adapter, or with the one to build on, and the tokenised questions."""
    import transformers

    from uqharness.adapter_io import folder as adapter_io
    from uqharness.training.base_model import inject, load_base, tied_head_note
    from uqharness.training.data import prepare as read
    from uqharness.training.pairs import classes_of
    from uqharness.training.prompts import difference, recorded_form

    transformers.utils.logging.disable_progress_bar()  # of loading weights; the one of training stays
    try:
        base, tokenizer = load_base(cell, len(classes_of(task)))
    finally:
        transformers.utils.logging.enable_progress_bar()
    if plan.source is None:
        model = inject(base, cell)
    else:
        model = adapter_io.attach(base, plan.source.folder, cell.base, trainable=True)
        adapter_io.check_fits(model, plan.source.predictive.posterior, plan.source.record, cell.base)
    if note := tied_head_note(model):
        log.info(note)
    data = read(task, tokenizer, cell, plan.method.uses_tune)
    if plan.source is not None and (form := recorded_form(plan.source.record)):
        if problem := difference(form, data.record["form"], (plan.source.record or {}).get("run") or {}):
            raise InputError(f"--adapter {plan.source.name} has other prompts than this command; it was {problem}")
    return model, data


def costs(courses: list[dict[str, Any]], model: PeftModel, seconds: float) -> dict[str, Any]:
    import torch

    device = next(model.parameters()).device
    return {
        "seconds": round(seconds, 3),
        "steps": sum(course["steps"] for course in courses),
        "peak_memory_bytes": max((course["peak_memory_bytes"] for course in courses), default=0),
        "trainable_parameters": max((course["trainable_parameters"] for course in courses), default=0),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }
