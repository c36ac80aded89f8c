"""Two processes give the numbers of one: the real sharding of lm-eval, on CPU, with the draws made on each rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from uqharness.results.reading import read_results

# lm-eval shards over what it takes for GPUs: say that there are two, and let accelerate use the CPU with gloo.
SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
torch.cuda.device_count = lambda: int(sys.argv[4])
import lm_eval
from lm_eval.tasks import TaskManager
from uqharness.harness.model import BayesLoRA
adapter, tasks, out = sys.argv[1:4]
model = BayesLoRA(adapter=adapter, samples="auto", batch_size=3, device="cpu", dtype="float32")
print("ranks", model.world_size)
found = lm_eval.simple_evaluate(model, tasks=["tiny_uq"], bootstrap_iters=0,
                                task_manager=TaskManager(include_path=tasks, include_defaults=False))
if found is not None:
    json.dump({"results": found["results"], "config": {}}, open(out, "w"), default=str)
"""


def make_task(folder: Path, items: int) -> Path:
    """Questions with 2 to 4 one-word answers, and some of two words; an odd number, so one rank pads."""
    folder.mkdir()
    rows = []
    for i in range(items):
        choices = ["A", "B", "C w1", "D"][: 2 + i % 3]
        text = " ".join(f"w{(i * 7 + k) % 40}" for k in range(3 + i % 5)) + " Answer:"
        rows.append({"prompt": text, "choices": choices, "gold": i % 2})
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "tiny_uq.yaml").write_text(
        "task: tiny_uq\nclass: !function uqharness.harness.task.UQTask\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.json'}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: prompt\ndoc_to_choice: choices\ndoc_to_target: gold\n"
    )
    return folder


def evaluate(tmp_path: Path, adapter: Path, tasks: Path, processes: int) -> Path:
    script, out = tmp_path / "evaluate.py", tmp_path / f"results_{processes}.json"
    script.write_text(SCRIPT)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"] if processes > 1 else []
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, str(script), str(adapter), str(tasks), str(out), str(processes)]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"ranks {processes}" in done.stdout
    return out


def test_two_processes_give_the_numbers_of_one(blob: Path, tmp_path: Path) -> None:
    tasks = make_task(tmp_path / "tasks", items=11)
    (one,) = read_results(evaluate(tmp_path, blob, tasks, 1))
    (two,) = read_results(evaluate(tmp_path, blob, tasks, 2))
    assert one.record.ids.tolist() == two.record.ids.tolist() == list(range(11))
    assert one.protocol_hash == two.protocol_hash
    np.testing.assert_allclose(two.record.logp, one.record.logp, rtol=0, atol=2e-5)
    assert one.record.logp.shape == (11, 11, 4) and one.record.taken.min() < 10
