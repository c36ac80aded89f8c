"""A suite of the tiny world that takes seconds, and what it says of every question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import make_base
from tests.tiny_task import make_task
from uqharness.suite.store import Store

SUITE = """
title: tiny
bases: {tiny: {base: %(root)s/base}}
include_path: tasks
train: [tiny_uq]
evaluate: [same, other_uq]
draws: [0, 2]
batch_size: 4
run: {steps: 6, save_every: 2, lr: 0.02, batch_size: 4, lora_r: 2, lora_alpha: 4, target_modules: [q_proj, v_proj],
      max_length: 24, device: cpu}
methods:
  mle: {}
  ens: {source: mle, members: 2}
  laplace: {source: mle, structure: diag, mc_samples: 64}
  blob: {}
  zero-shot: {model: hf}
"""


def make_world(root: Path) -> Path:
    """Base, tasks and tiny.yaml in a folder."""
    make_base(root / "base")
    make_task(root / "tasks")
    make_task(root / "tasks", "other_uq", seed=7)
    (root / "tiny.yaml").write_text(SUITE % {"root": root})
    return root


def records(out: Path) -> dict[str, Any]:
    """The answers of every draw to every question, by place in the table, as bytes."""
    from uqharness.results.reading import read_results

    made = Store(out).read()
    by_file: dict[str, Any] = {}
    for entry in (each for each in made.entries if Store(out).is_done(each.cell)):
        (run,) = read_results(Store(out).results(entry.cell))
        by_file[entry.name] = run.record.logp.tobytes()
    return by_file
