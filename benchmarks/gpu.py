"""What has to be known of a CUDA card, in one script of less than ten minutes: `bash benchmarks/gpu.sh` (docs/gpu.md).

path       train and evaluate the embedded world on the card; its draws beside those of the CPU
precision  the same questions and draws in float32, bf16 and 4 bit (NF4): |Δp| over the choices
speed      training steps and evaluation in bf16: seconds, tokens per second, peak memory, and the share of the card's
           own ceiling, the rate of a large bf16 matrix product in the same run. A forward counts 2 FLOPs per weight of
           the layers and token, a backward through frozen weights as many; head and attention count nothing
4bit       the same on a base in 4 bit: mle and blob steps, and evaluation

The base has random weights in the shape of Llama 3.2 1B (`--shape`), so nothing is downloaded; `--base DIR` takes real
ones. A part that fails is named and the others run; one that would begin after `--seconds` is left out. The JSON file
is written anew after each line. `--shape tiny --device cpu` is the smoke test.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import platform
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.evaluation import answered, save_tokenizer
from benchmarks.setting import QVH, Shape, questions, run_of
from benchmarks.timing import Seconds, peak_bytes
from benchmarks.training import ours, plain
from uqharness import cli
from uqharness.adapters.blob import BLoB
from uqharness.adapters.laplace import Laplace
from uqharness.adapters.melora import MeLoRA
from uqharness.adapters.mle import MLE
from uqharness.atomic import write_atomic
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.predictive import DrawAverage
from uqharness.engine.readers import choice_logprobs
from uqharness.engine.rows import Rows
from uqharness.method import Method
from uqharness.posterior import Gaussian, Point, keyed_generator
from uqharness.settings import Run
from uqharness.training.base_model import build_model, load_base
from uqharness.training.data import ChoiceData
from uqharness.training.loop import collate

# 1b: Llama 3.2 1B, whose head is tied to its embedding.
SHAPES = {
    "1b": Shape(2048, 16, 256, 128_256),
    "7b": Shape(4096, 32, 256, 32_000),
    "tiny": Shape(64, 2, 32, 256),
}
OWN: dict[str, dict[str, Any]] = {
    "1b": {"intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "7b": {"intermediate_size": 11_008, "num_attention_heads": 32, "num_key_value_heads": 32},
    "tiny": {"intermediate_size": 176, "num_attention_heads": 2, "num_key_value_heads": 2},
}
HALF = "bfloat16"
PARTS = ("path", "precision", "speed", "4bit")
PACKAGES = ("torch", "transformers", "peft", "lm-eval", "accelerate", "bitsandbytes")


@dataclasses.dataclass(frozen=True)
class Line:
    what: str
    seconds: float
    tokens_per_second: float
    peak_gib: float
    share_of_ceiling: float


class Bench:
    """A base on the device in one precision, with a LoRA on query, value and head, and questions for it."""

    def __init__(self, base: Path, shape: Shape, device: torch.device, batch: int, precision: str, steps: int = 6):
        self.shape, self.device = shape, device
        how = {"load_in_4bit": True} if precision == "4bit" else {"dtype": precision}
        self.run = dataclasses.replace(
            run_of(batch, QVH, steps),
            base=str(base),
            device=device.type,
            dtype=how.get("dtype", "auto"),
            load_in_4bit=precision == "4bit",
        )
        self.model, _ = build_model(self.run)
        random_adapter(self.model)
        self.data = questions(shape, 4 * batch)
        self.tokens = batch * shape.tokens
        layers = dict(self.model.get_base_model().model.layers.named_modules())
        self.flops = 2 * sum(m.in_features * m.out_features for m in layers.values() if is_base_linear(m))
        self.ceiling = self.product_rate()

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def product_rate(self) -> float:
        """FLOPs per second of a large matrix product in the precision of the products here."""
        size = 8192 if self.device.type == "cuda" else 512
        a = torch.randn(size, size, device=self.device).to(self.model.dtype)
        seconds = []
        for _ in range(12):
            start = self.clock()
            a @ a
            seconds.append(self.clock() - start)
        return 2 * size**3 / statistics.median(seconds[2:])

    def line(self, what: str, passes: float, times: int, function: Callable[[], Any], steps: int = 1) -> Line:
        """passes: of one batch through the layers, forward or backward, per step."""
        function()
        seconds = []
        for _ in range(times):
            start = self.clock()
            own = function()
            seconds.append((own if isinstance(own, Seconds) else self.clock() - start) / steps)
        took = statistics.median(seconds)
        rate = passes * self.flops * self.tokens / took
        return Line(what, took, self.tokens / took, self.peak(function) / 2**30, rate / self.ceiling)

    def peak(self, function: Callable[[], Any]) -> int:
        """Bytes held at most; on a card the model included."""
        if self.device.type != "cuda":
            return peak_bytes(function)
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated()

    def training(self, methods: Sequence[Method], times: int) -> Iterator[Line]:
        steps = self.run.steps - 1  # the first does not count
        trained = {"plain PEFT": plain(self.model, self.run, self.data, self.clock)}
        for method in methods:
            trained[method.name] = ours(method, self.model, self.run, self.data, self.clock)
        for name, function in trained.items():
            yield self.line(f"train step, {name}", 2, times, function, steps)
        random_adapter(self.model)  # a trained one differs from run to run

    def evaluation(self, times: int) -> Iterator[Line]:
        self.model.eval()
        batch = self.batch()
        yield self.line("evaluate, as hf: log-softmax everywhere", 1, times, self.hf(batch))
        for samples in (1, 10):
            yield self.line(f"evaluate, N = {samples}", samples, times, self.engine(batch, samples))

    def laplace(self, times: int) -> Iterator[Line]:
        self.model.eval()
        some = ChoiceData(self.data.train[: self.run.batch_size], [], [], 512)
        source = DrawAverage(Point(LoraStack(self.model).mean(), 0))
        linearised = Laplace().fit(self.model, some, self.run, source)
        yield self.line("Laplace fit, exact", 4, times, lambda: Laplace().fit(self.model, some, self.run, source))
        batch = self.batch()
        yield self.line("Laplace answers, joint", 4, times, lambda: linearised.engine(self.model).score(batch))

    def batch(self) -> Rows:
        return collate(self.data.train[: self.run.batch_size], self.data)[0]

    def hf(self, batch: Rows) -> Callable[[], Tensor]:
        ids = batch.input_ids.to(self.device)
        return torch.inference_mode()(lambda: self.model(input_ids=ids).logits.float().log_softmax(-1))

    def engine(self, batch: Rows, samples: int) -> Callable[[], Any]:
        engine = Engine(self.model, posterior_of(self.model), samples, mean=False)
        return lambda: engine.score(batch)

    def probabilities(self) -> Tensor:
        """Of the choices of all questions, each draw's: `[S, Q, C]`."""
        self.model.eval()
        rows, _ = collate(self.data.train, self.data)
        scores = Engine(self.model, posterior_of(self.model), 10).score(rows)
        return choice_logprobs(scores.draws, rows).exp()


def is_base_linear(module: Any) -> bool:
    """A linear layer of the base, quantised or not, and no LoRA's (which has at most r = 8 inputs or outputs)."""
    return isinstance(module, torch.nn.Linear) and min(module.in_features, module.out_features) > 8


@torch.no_grad()
def random_adapter(model: PeftModel) -> None:
    """A and B from keys, so that they are the same on every base and in every precision. B = 0 has no Fisher."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            values = torch.randn(parameter.shape, generator=keyed_generator("gpu", name))
            parameter.copy_(values / math.sqrt(parameter.shape[1]) * (1.0 if ".lora_A." in name else 0.1))


def posterior_of(model: PeftModel) -> Gaussian:
    mean = LoraStack(model).mean()
    return Gaussian(mean, {name: torch.full_like(t, 0.01) for name, t in mean.items() if ".lora_A." in name}, 0)


def write_base(folder: Path, name: str, device: torch.device) -> Path:
    """Random weights of that shape, made on the device (on a CPU it takes minutes), in bf16, and a tokenizer."""
    shape = SHAPES[name]
    settings = {"vocab_size": shape.vocab, "hidden_size": shape.width, "num_hidden_layers": shape.layers, **OWN[name]}
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            LlamaForCausalLM(LlamaConfig(max_position_embeddings=4 * shape.tokens, **settings)).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    save_tokenizer(folder, shape.vocab)
    return folder


def real_base(base: Path, folder: Path) -> Path:
    """A folder of safetensors, which every precision can be loaded from, also where `base` is a GGUF file."""
    if base.suffix != ".gguf":
        return base
    model, tokenizer = load_base(Run(base=str(base), device="cpu", dtype="float32"))
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return folder


def shape_of(base: Path) -> Shape:
    """Of a real base, with questions of 256 tokens."""
    config = AutoConfig.from_pretrained(base).get_text_config()
    return Shape(config.hidden_size, config.num_hidden_layers, 256, config.vocab_size)


class Report:
    """What is known so far, on the screen and in the file."""

    def __init__(self, flags: argparse.Namespace, device: torch.device) -> None:
        self.flags, self.device, self.start = flags, device, time.monotonic()
        card = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({platform.machine()})"
        self.found: dict[str, Any] = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "card": card,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "versions": {name: installed(name) for name in PACKAGES},
            "base": str(flags.base) if flags.base else f"random weights, {flags.shape}",
            "batch": flags.batch,
            "ceiling_tflops": {},
            "speed": [],
            "4bit": [],
            "precision": {},
            "path": {},
            "seconds": {},
            "failed": {},
        }
        print(f"{card}, {', '.join(f'{n} {v}' for n, v in self.found['versions'].items())}, {self.found['base']}")

    def part(self, name: str, function: Callable[[], None]) -> None:
        start = time.monotonic()
        if start - self.start > self.flags.seconds:
            self.found["failed"][name] = f"left out: begun after {self.flags.seconds} s"
        else:
            try:
                function()
            except Exception as error:  # the next part still has its few minutes on the card
                traceback.print_exc()
                self.found["failed"][name] = f"{type(error).__name__}: {error}"
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.found["seconds"][name] = round(time.monotonic() - start, 1)
        self.write()

    def write(self) -> None:
        if self.flags.json:
            write_atomic(self.flags.json, json.dumps(self.found, indent=1))

    def lines(self, part: str, bench: Bench, lines: Iterable[Line]) -> None:
        self.found["ceiling_tflops"][part] = bench.ceiling / 1e12
        print(f"\n{part}, {bench.shape}: ceiling {bench.ceiling / 1e12:.3g} TFLOP/s in {bench.model.dtype}")
        print("| what | seconds | tokens/s | peak GiB | of the ceiling |\n|---|---|---|---|---|")
        for line in lines:
            numbers = f"{line.seconds:.4g} | {line.tokens_per_second:.4g} | {line.peak_gib:.3g}"
            print(f"| {line.what} | {numbers} | {line.share_of_ceiling:.1%} |", flush=True)
            self.found[part].append(dataclasses.asdict(line))
            self.write()


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def speed(report: Report, base: Path, shape: Shape) -> None:
    flags, device = report.flags, report.device
    bench = Bench(base, shape, device, flags.batch, HALF if device.type == "cuda" else "float32")
    training = bench.training((MLE(), BLoB(), MeLoRA()), flags.times)
    report.lines("speed", bench, chain(training, bench.evaluation(flags.times), bench.laplace(flags.times)))


def four_bit(report: Report, base: Path, shape: Shape) -> None:
    flags = report.flags
    bench = Bench(base, shape, report.device, flags.batch, "4bit")
    report.lines("4bit", bench, chain(bench.training((MLE(), BLoB()), flags.times), bench.evaluation(flags.times)))


def precision(report: Report, base: Path, shape: Shape) -> None:
    """Each precision against float32, on the same questions and draws."""
    exact: Tensor | None = None
    print("\n| precision | mean of the absolute Δp | largest | of the average over draws: largest | other answers |")
    print("|---|---|---|---|---|")
    for name in ("float32", HALF, "4bit"):
        bench = Bench(base, shape, report.device, report.flags.batch, name)
        p = bench.probabilities().cpu()
        if exact is None:
            exact = p
            # What the others are to be compared with: how far draws are from their average.
            report.found["precision"][name] = {"mean": float((p - p.mean(0)).abs().mean())}
            continue
        change, average = (p - exact).abs(), (p.mean(0) - exact.mean(0)).abs()
        other = (p.mean(0).argmax(-1) != exact.mean(0).argmax(-1)).double().mean()
        values = [float(change.mean()), float(change.max()), float(average.max()), float(other)]
        report.found["precision"][name] = dict(zip(("mean", "largest", "average", "other"), values, strict=True))
        print(f"| {name} | {' | '.join(f'{value:.2g}' for value in values)} |", flush=True)
        del bench
        report.write()


def path(report: Report) -> None:
    """`uqharness train`, `uqharness eval` on the card and on the CPU: what a user runs, and whether draws agree."""
    flags, device = report.flags, report.device.type
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "blob"
        command = ["train", "blob", "--base", "toyworld", "--task", "toyworld_uq", "--out", str(out), "--lr", "3e-3"]
        command += ["--steps", str(flags.steps), "--batch-size", "8", "--dtype", "float32", "--device", device]
        start = time.monotonic()
        if cli.main([*command, "--target-modules", "q_proj", "v_proj"]):
            raise RuntimeError("the embedded world could not be trained")
        trained = time.monotonic()
        on_device, on_cpu = (answered(out, 10, flags.limit, where) for where in (device, "cpu"))
        seconds = {"train": trained - start, "evaluate on both": time.monotonic() - trained}
        nll = {run.task: run.metrics()["nll"] for run in on_device}
        gaps = [float(np.nanmax(abs(a.record.logp - b.record.logp))) for a, b in zip(on_device, on_cpu, strict=True)]
    report.found["path"] = {"nll": nll, "largest difference of a draw's log p to the CPU's": max(gaps), **seconds}
    print(f"\npath: {report.found['path']}", flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--base", type=Path, help="real weights in place of random ones: a folder, or a GGUF file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=4, help="questions at once")
    parser.add_argument("--times", type=int, default=5, help="repetitions, of which the median is shown")
    parser.add_argument("--steps", type=int, default=200, help="training steps of the embedded world")
    parser.add_argument("--limit", type=int, default=200, help="questions of each of its three test sets")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=400.0, help="no part begins after these")
    parser.add_argument("--json", type=Path, help="also write what was found there")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(words)
    disable_progress_bar()
    if flags.device == "cuda" and not torch.cuda.is_available():
        parser().error("torch sees no GPU: --shape tiny --device cpu is the smoke test")
    device = torch.device(flags.device)
    report = Report(flags, device)
    with tempfile.TemporaryDirectory() as folder:
        if flags.base:
            base = real_base(flags.base, Path(folder) / "base")
            shape = shape_of(base)
        else:
            base, shape = write_base(Path(folder) / "base", flags.shape, device), SHAPES[flags.shape]
        parts = {
            "path": lambda: path(report),
            "precision": lambda: precision(report, base, shape),
            "speed": lambda: speed(report, base, shape),
            "4bit": lambda: four_bit(report, base, shape),
        }
        for name in flags.parts:
            report.part(name, parts[name])
    failed = report.found["failed"]
    print(f"\nseconds: {report.found['seconds']}\n{len(failed)} of {len(flags.parts)} parts failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
