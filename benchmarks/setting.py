"""What is measured: a Llama of width 256 and 4 layers, r = 8 on q, v and the head, questions of 128 tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from peft import PeftModel

from uqharness.engine.rows import Pair
from uqharness.posterior import keyed_generator
from uqharness.settings import Run
from uqharness.testing import tiny_llama
from uqharness.training.base_model import inject
from uqharness.training.data import ChoiceData
from uqharness.training.questions import Question

QVH, QV = ("q_proj", "v_proj", "lm_head"), ("q_proj", "v_proj")


@dataclasses.dataclass(frozen=True)
class Shape:
    width: int = 256
    layers: int = 4
    tokens: int = 128
    vocab: int = 4000

    @staticmethod
    def of(quick: bool) -> Shape:
        return Shape(64, 2, 32, 256) if quick else Shape()


def run_of(batch: int = 4, targets: Sequence[str] = QVH, steps: int = 1) -> Run:
    """r = 8 everywhere; nothing is written anywhere."""
    base = Run(base="random", task="random", steps=steps, batch_size=batch, max_length=512, device="cpu")
    return dataclasses.replace(base, lora_r=8, lora_alpha=16, target_modules=tuple(targets))


def adapter(shape: Shape, run: Run, seed: int = 0) -> PeftModel:
    """A random Llama with a LoRA whose A and B are both random, as if it had been trained."""
    base = tiny_llama(
        seed,
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=11 * shape.width // 4,
        num_hidden_layers=shape.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2 * shape.tokens,
        initializer_range=0.02,
    )
    model = inject(base, run)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def questions(shape: Shape, count: int, choices: int = 4, answer: int = 1, seed: int = 0) -> ChoiceData:
    """Questions of `shape.tokens` tokens each, with `answer` tokens per choice."""
    generator, train = keyed_generator("benchmark", seed), []
    for n in range(count):
        context = torch.randint(100, shape.vocab, (shape.tokens,), generator=generator).tolist()
        tails = torch.randint(100, shape.vocab, (choices, answer - 1), generator=generator).tolist()
        pairs: list[Pair] = [(context, [10 + c, *tail]) for c, tail in enumerate(tails)]
        train.append(Question(pairs, n % choices, f"{seed}-{n}"))
    return ChoiceData(train, [], [], 512, 0, {})
