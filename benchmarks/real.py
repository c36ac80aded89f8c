"""`bayeslora` against `lm_eval --model hf,peft=` on real weights: SmolLM2-135M-Instruct in float32, LoRA on q and v.

The same adapter, not merged, and the same requests through lm-eval's `loglikelihood`. The letter task has four choices
of one token after 60, the cloze task four answers of five. N = 1 is the plain adapter; N = 10 runs its mean as well.
The weights are those of `tools/real_models.py`, in the folder that UQHARNESS_REAL_MODELS names; without them the rows
are skipped. Peak memory is that of a process of its own, from the end of loading on.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from benchmarks.evaluation import gaussian, requests, saved
from benchmarks.layers import SMOLLM2, model_of
from benchmarks.setting import QV, Shape, questions, run_of
from benchmarks.timing import Row, figure, interleave, ratio, spread
from uqharness.adapter_io import folder as adapter_io
from uqharness.harness.model import BayesLoRA

SHAPE = Shape(576, 30, 60, 49152)
# {task: (tokens of an answer, questions, predicted ratio to hf at N = 1 and N = 10)}
TASKS = {"letters": (1, 4, 0.75, 8.1), "cloze": (5, 2, 0.24, 2.6)}
SKIPPED = (
    "real: skipped: no real weights: python tools/real_models.py --out DIR makes them, and UQHARNESS_REAL_MODELS=DIR "
    "says where they are"
)


@dataclasses.dataclass(frozen=True)
class Folders:
    base: Path
    point: Path
    blob: Path

    def model(self, name: str) -> HFLM:
        """hf, or bayeslora at N = 1 (`1`) or N = 10 and the mean (`10`)."""
        common: dict[str, Any] = {"batch_size": 8, "device": "cpu", "dtype": "float32"}
        if name == "hf":
            return HFLM(pretrained=str(self.base), peft=str(self.point), **common)
        adapter = self.point if name == "1" else self.blob
        return BayesLoRA(adapter=str(adapter), base=str(self.base), samples=int(name), **common)


def made(folder: Path, shape: Shape, real: bool) -> Folders:
    """The plain adapter and one with a posterior around it; a random base where it is not the real one."""
    if not real:
        return Folders(*saved(folder, shape, QV))
    model = model_of(shape, run_of(targets=QV), real)
    model.save_pretrained(str(folder / "plain"), save_embedding_layers=False)
    record = {"method": {"name": "blob", "settings": {}}, "base": {"name": str(SMOLLM2)}}
    adapter_io.save_adapter(folder / "blob", model, gaussian(model), record)
    return Folders(SMOLLM2, folder / "plain", folder / "blob")


def instances_of(folders: Folders, shape: Shape, answer: int, count: int, real: bool) -> list[Instance]:
    """Made-up questions: random words, each of them one token of the tokenizer."""
    data = questions(shape, count, answer=answer)
    if not real:
        return requests(data)
    tokenizer = AutoTokenizer.from_pretrained(folders.base)
    known = tokenizer.get_vocab()
    words = sorted(word for word in known if re.fullmatch("[a-z]{3,}", word) and f"Ġ{word}" in known)  # Ġ: a space
    instances = requests(data, lambda ids: " ".join(words[i % len(words)] for i in ids))
    for instance in instances:
        context, tail = cast(tuple[str, str], instance.args)
        lengths = [len(tokenizer(text).input_ids) for text in (context + tail, tail)]
        if abs(lengths[0] - answer - shape.tokens) > 1 or lengths[1] != answer:
            raise RuntimeError(f"words of {folders.base} are not one token each: {lengths}")
    return instances


def call(model: HFLM, instances: list[Instance]) -> Callable[[], Any]:
    return partial(model.loglikelihood, instances, True)


def high_water(reset: bool = False) -> int:
    """Bytes that this process held at most, since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    match = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


def peak(folder: Path, name: str, task: str, real: bool) -> int:
    """Peak memory of one evaluation, weights and libraries included, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.real", str(folder), name, task, json.dumps(real)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return int(done.stdout.split()[-1])


def shape_of(real: bool) -> Shape:
    return SHAPE if real else Shape.of(True)


def rows(quick: bool) -> Iterator[Row]:
    real = not quick
    if real and not SMOLLM2.is_dir():
        print(SKIPPED)
        return
    shape, name = shape_of(real), "SmolLM2-135M" if real else "random Llama"
    with tempfile.TemporaryDirectory() as text:
        folders = made(Path(text), shape, real)
        models = {kind: folders.model(kind) for kind in ("hf", "1", "10")}
        for task, (answer, count, *predicted) in TASKS.items():
            instances = instances_of(folders, shape, answer, count, real)
            times = interleave({k: call(model, instances) for k, model in models.items()}, 1 if quick else 3)
            for kind, goal in zip(("1", "10"), predicted, strict=True):
                rates = {k: spread([count / t for t in times[k]]) for k in (kind, "hf")}
                peer = f"predicted {goal}; questions per second: {rates[kind]}, hf {rates['hf']}"
                row = f"{label(kind)} / `lm_eval --model hf,peft=`, {task}, {name}"
                yield figure(row, peer, round(1.1 * goal, 3), ratio(times, kind, "hf"))
        del models
        for task in TASKS if real else ("letters",):
            kinds = ("1", "10") if real else ("10",)
            peaks = {kind: peak(Path(text), kind, task, real) for kind in ("hf", *kinds)}
            for kind in kinds:
                peer = f"predicted ≤ 1; GiB: {peaks[kind] / 2**30:.3g}, hf {peaks['hf'] / 2**30:.3g}"
                row = f"peak memory, {label(kind)} / hf, {task}, {name}"
                yield figure(row, peer, 1.0, [peaks[kind] / peaks["hf"]])


def label(kind: str) -> str:
    return "N = 1" if kind == "1" else "N = 10 and the mean"


def main(words: Sequence[str]) -> None:
    """One evaluation, for `peak`."""
    folder, kind, task, real = Path(words[0]), words[1], words[2], bool(json.loads(words[3]))
    torch.set_num_threads(1)
    folders = Folders(SMOLLM2 if real else folder / "base", folder / "plain", folder / "blob")
    answer, count, *_ = TASKS[task]
    instances = instances_of(folders, shape_of(real), answer, count, real)
    model = folders.model(kind)
    high_water(reset=True)
    model.loglikelihood(instances, disable_tqdm=True)
    print(high_water())


if __name__ == "__main__":
    main(sys.argv[1:])
