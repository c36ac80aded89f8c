"""The same questions on a 7B-shaped random Llama in bf16: `python -m benchmarks.gpu [--shape 7b] [--json OUT]`.

Each line: seconds, tokens per second, peak memory, and the share of the card's own ceiling: the rate of a large bf16
matrix product in the same run. A forward counts 2 FLOPs per weight of the layers and token, a backward through frozen
weights as many; head and attention count nothing. `--shape tiny --device cpu`: a smoke test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.setting import Shape, questions, run_of
from benchmarks.timing import Seconds, peak_bytes
from benchmarks.training import ours, plain
from uqharness.adapters.blob import BLoB
from uqharness.adapters.laplace import Laplace
from uqharness.adapters.melora import MeLoRA
from uqharness.adapters.mle import MLE
from uqharness.atomic import write_atomic
from uqharness.base_model import inject
from uqharness.bma import Engine, Rows
from uqharness.config import Run
from uqharness.data import ChoiceData
from uqharness.lora import LoraStack
from uqharness.posterior import Gaussian, Point
from uqharness.training import collate

SHAPES = {"7b": Shape(4096, 32, 256, 32_000), "tiny": Shape(64, 2, 32, 256)}


@dataclass(frozen=True)
class Line:
    what: str
    seconds: float
    tokens_per_second: float
    peak_gib: float
    share_of_ceiling: float


class Bench:
    def __init__(self, shape: Shape, device: torch.device, batch: int) -> None:
        self.shape, self.device = shape, device
        self.run = Run(**{**vars(run_of(batch, steps=6)), "device": device.type})
        self.model = build(shape, self.run, device)
        self.data = questions(shape, 4 * batch)
        self.tokens = batch * shape.tokens
        layers = self.model.get_base_model().model.layers
        self.flops = 2 * sum(p.numel() for n, p in layers.named_parameters() if ".lora_" not in n)
        self.ceiling = self.product_rate()

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def product_rate(self) -> float:
        """FLOPs per second of a large matrix product in the model's precision."""
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
        """Bytes held at most, the model included."""
        if self.device.type != "cuda":
            return peak_bytes(function)
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated()

    def lines(self, times: int) -> Iterator[Line]:
        steps = self.run.steps - 1  # the first does not count
        trained = {"plain PEFT": plain(self.model, self.run, self.data, self.clock)}
        for method in (MLE(), BLoB(), MeLoRA()):
            trained[method.name] = ours(method, self.model, self.run, self.data, self.clock)
        for name, function in trained.items():
            yield self.line(f"train step, {name}", 2, times, function, steps)
        self.model.eval()
        batch, gold = collate(self.data.train[: self.run.batch_size], self.data)
        yield self.line("evaluate, as hf: log-softmax everywhere", 1, times, self.hf(batch))
        for samples in (1, 10):
            yield self.line(f"evaluate, N = {samples}", samples, times, self.engine(batch, samples))
        some = ChoiceData(self.data.train[: self.run.batch_size], [], [], 512)
        posterior = Laplace().fit(self.model, some, self.run, Point(LoraStack(self.model).mean(), 0))
        source = Point(posterior.mean, 0)
        yield self.line("Laplace fit, exact", 4, times, lambda: Laplace().fit(self.model, some, self.run, source))
        yield self.line("Laplace answers, joint", 4, times, lambda: Engine(self.model, posterior).score(batch))

    @torch.inference_mode()
    def hf(self, batch: Rows) -> Callable[[], Tensor]:
        ids = batch.input_ids.to(self.device)
        return torch.inference_mode()(lambda: self.model(input_ids=ids).logits.float().log_softmax(-1))

    def engine(self, batch: Rows, samples: int) -> Callable[[], Any]:
        mean = LoraStack(self.model).mean()
        std = {name: torch.full_like(tensor, 0.01) for name, tensor in mean.items() if ".lora_A." in name}
        engine = Engine(self.model, Gaussian(mean, std, 0), samples, mean=False)
        return lambda: engine.score(batch)


def build(shape: Shape, run: Run, device: torch.device) -> PeftModel:
    """Made on the device in its precision: 7B weights in float32 on the CPU would take minutes."""
    heads = max(2, shape.width // 128)
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=43 * shape.width // 16,
        num_hidden_layers=shape.layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=4 * shape.tokens,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            base = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model = inject(base, run)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.02)  # B = 0 has no Fisher
    return model.to(device)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=4, help="questions at once")
    parser.add_argument("--times", type=int, default=5, help="repetitions, of which the median is shown")
    parser.add_argument("--json", type=Path, help="also write the lines there")
    flags = parser.parse_args(words)
    disable_progress_bar()
    bench = Bench(SHAPES[flags.shape], torch.device(flags.device), flags.batch)
    name = torch.cuda.get_device_name() if flags.device.startswith("cuda") else "CPU"
    print(f"{name}, torch {torch.__version__}, {bench.shape}, batch {flags.batch}")
    print(f"ceiling: {bench.ceiling / 1e12:.3g} TFLOP/s in {bench.model.dtype}")
    print("| what | seconds | tokens/s | peak GiB | of the ceiling |\n|---|---|---|---|---|")
    found = []
    for line in bench.lines(flags.times):
        numbers = f"{line.seconds:.4g} | {line.tokens_per_second:.4g} | {line.peak_gib:.3g}"
        print(f"| {line.what} | {numbers} | {line.share_of_ceiling:.1%} |", flush=True)
        found.append(asdict(line))
    if flags.json:
        write_atomic(flags.json, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
