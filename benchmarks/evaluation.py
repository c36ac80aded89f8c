"""Ten draws against one forward: the engine against PEFT's own, and `bayeslora` against `lm_eval --model hf`.

N = 10 runs eleven functions where the mean's own row is asked for, as it is by default.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from benchmarks.setting import QVH, Shape, adapter, questions, run_of
from benchmarks.timing import Row, Times, figure, interleave, peak_bytes, ratio, spread
from uqharness import cli
from uqharness.adapter_io import folder as adapter_io
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import make_rows
from uqharness.harness.model import BayesLoRA
from uqharness.posterior import Gaussian
from uqharness.results.reading import Run, read_results
from uqharness.training.data import ChoiceData

TOY = ["toyworld_uq", "toyworld_near_uq", "toyworld_far_uq"]
PEER = "bayesian-peft 11.2–11.6, without a mean"


def gaussian(model: PeftModel) -> Gaussian:
    """As BLoB's: noise on A."""
    mean = LoraStack(model).mean()
    return Gaussian(mean, {name: torch.full_like(t, 0.02) for name, t in mean.items() if "lora_A" in name}, 0)


def plain(model: PeftModel, ids: torch.Tensor) -> Callable[[], Any]:
    """PEFT's LoRA as everyone runs it: logits at every position."""

    def forward() -> None:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)

    return forward


def forwards(shape: Shape, batch: int, rounds: int) -> Times:
    model, data = adapter(shape, run_of()), questions(shape, batch)
    ids = torch.tensor([question.pairs[0][0] for question in data.train])
    rows = make_rows([question.pairs for question in data.train], 512)
    ten = Engine(model, gaussian(model), 10, mean=False)
    whole = Engine(model, gaussian(model), 10)
    scores = {"ten": partial(ten.score, rows), "whole": partial(whole.score, rows)}
    return interleave({"plain": plain(adapter(shape, run_of()), ids), **scores}, rounds)


def save_tokenizer(folder: Path, vocab: int) -> None:
    """Words w4, w5 … for tokens."""
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    words = [*special.values(), *(f"w{i}" for i in range(len(special), vocab))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def saved(folder: Path, shape: Shape, targets: Sequence[str] = QVH) -> tuple[Path, Path, Path]:
    """A base with words for tokens, the mean's plain PEFT adapter, and an adapter with a posterior."""
    model = adapter(shape, run_of(targets=targets))
    save_tokenizer(folder / "base", shape.vocab)
    mean = gaussian(model)
    record = {"method": {"name": "blob", "settings": {}}, "base": {"name": str(folder / "base")}}
    adapter_io.save_adapter(folder / "blob", model, mean, record)
    model.save_pretrained(str(folder / "plain"), save_embedding_layers=False)
    model.unload().save_pretrained(folder / "base")
    return folder / "base", folder / "plain", folder / "blob"


def words_of(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def requests(data: ChoiceData, text: Callable[[Sequence[int]], str] = words_of) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, (text(context), " " + text(answer)), k, metadata=("stock", n, 1))
        for n, question in enumerate(data.train)
        for k, (context, answer) in enumerate(question.pairs)
    ]


def against_hf(shape: Shape, data: ChoiceData, samples: int, rounds: int) -> Times:
    """Whole `loglikelihood` calls on the same requests, tokenisation included."""
    with tempfile.TemporaryDirectory() as folder:
        base, point, blob = saved(Path(folder), shape)
        common: dict[str, Any] = {"batch_size": 8, "device": "cpu", "dtype": "float32"}
        hf = HFLM(pretrained=str(base), peft=str(point), **common)
        ours = BayesLoRA(adapter=str(blob if samples > 1 else point), base=str(base), samples=samples, **common)
    instances = requests(data)
    calls = {name: partial(model.loglikelihood, instances, True) for name, model in (("hf", hf), ("ours", ours))}
    return interleave(calls, rounds)


def memory(shape: Shape) -> float:
    """Peak of all tensors of an evaluation at N = 10 by that at N = 1, both with the mean."""
    model, data = adapter(shape, run_of()), questions(shape, 8)
    rows = make_rows([question.pairs for question in data.train], 512)
    engines = [Engine(model, gaussian(model), samples) for samples in (10, 1)]
    ten, one = (peak_bytes(partial(engine.score, rows)) for engine in engines)
    return ten / one


def answered(adapter: Path, samples: int | str, limit: int | None, device: str = "cpu") -> list[Run]:
    """The three test sets of the toy world."""
    model = BayesLoRA(adapter=str(adapter), samples=samples, mean=False, batch_size=50, device=device)
    manager = TaskManager(include_path=str(files("uqharness.tasks")), include_defaults=False)
    results = simple_evaluate(model, tasks=TOY, task_manager=manager, limit=limit, bootstrap_iters=0)
    return read_results({"results": results["results"]})


def automatic(quick: bool) -> Row:
    """Draws of samples=auto per question; not a number where its NLL is more than 1 % from that of N = 10."""
    with tempfile.TemporaryDirectory() as folder:
        steps = ["--steps", "10" if quick else "800", "--lr", "3e-3", "--batch-size", "8", "--set", "kl_lr=0.02"]
        where = ["--base", "toyworld", "--task", "toyworld_uq", "--out", f"{folder}/blob", "--device", "cpu"]
        if cli.main(["train", "blob", *where, *steps, "--target-modules", "q_proj", "v_proj"]):
            raise RuntimeError("the adapter for samples=auto could not be trained")
        ten, auto = (answered(Path(folder) / "blob", samples, 20 if quick else None) for samples in (10, "auto"))
    losses = [sum(run.metrics()["nll"] * run.record.items for run in runs) for runs in (ten, auto)]
    items = [run.record.items for run in ten]
    taken = [float(run.record.taken.mean()) for run in auto]
    mean = sum(t * n for t, n in zip(taken, items, strict=True)) / sum(items)
    change = losses[1] / losses[0] - 1
    value = mean if abs(change) <= 0.01 else math.nan
    name = f"samples=auto: draws per question, BLoB on {sum(items):,} toy questions, NLL within 1 % of N = 10"
    return Row(name, f"10; NLL of auto {100 * change:+.2f} %", 5.0, value, min(taken), max(taken), value <= 5.0)


def rows(quick: bool) -> Iterator[Row]:
    shape, rounds = Shape.of(quick), 1 if quick else 15
    for batch, goal in ((8, 6.5), (1, 5.5)):
        times = forwards(shape, batch, rounds)
        name = f"/ one plain PEFT forward, vocabulary {shape.vocab:,}, batch {batch}"
        peer = f"{PEER}; with the mean's own row, ours: {spread(ratio(times, 'whole', 'plain'))}"
        yield figure(f"N = 10 evaluation {name}", peer, goal, ratio(times, "ten", "plain"))
    large = Shape.of(quick) if quick else Shape(vocab=32_000)
    times = against_hf(large, questions(large, 8), 10, rounds=1 if quick else 7)
    name = f"N = 10 and the mean / one pass of `lm_eval --model hf`, vocabulary {large.vocab:,}"
    yield figure(name, "≈ 11", 3.0, ratio(times, "ours", "hf"))
    times = against_hf(shape, questions(shape, 8, answer=8), 1, rounds)
    name = "stock multi-token choices (4 of 8 tokens), N = 1 / `lm_eval --model hf`"
    yield figure(name, "1", 0.45, ratio(times, "ours", "hf"))
    yield figure("peak memory of an evaluation, N = 10 / N = 1", "", 1.15, [memory(shape)])
    yield automatic(quick)
