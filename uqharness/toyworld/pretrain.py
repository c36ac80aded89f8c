"""Pretrain the base: a Llama of 3 layers and 64 units, AdamW on next-token cross-entropy, one CPU core.

The last phase labels 30 % of the questions at random: a base that has never seen an answer go wrong would
be overconfident before any fine-tuning, and would hide what fine-tuning does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from uqharness.atomic import write_atomic
from uqharness.toyworld.corpus import IGNORE, Corpus, Phase
from uqharness.toyworld.tokenizer import MAX_LENGTH, vocabulary
from uqharness.toyworld.world import World

ROWS = 64
RARE = 0.15  # how often a "far" entity is seen, relative to the others
PHASES = (  # mix: facts, tell, copy, relation, pick, echo
    Phase(steps=1500, lr=3e-3, mix=(0.0, 0.0, 1.0, 0.0, 0.0, 0.0), noise=0.0, until=0.1),
    Phase(steps=300, lr=3e-3, mix=(0.35, 0.05, 0.2, 0.0, 0.0, 0.4), noise=0.0),
    Phase(steps=2000, lr=3e-3, mix=(0.2, 0.05, 0.05, 0.4, 0.25, 0.05), noise=0.05),
    Phase(steps=800, lr=3e-3, mix=(0.15, 0.05, 0.03, 0.45, 0.27, 0.05), noise=0.05, hard=0.5),
    Phase(steps=500, lr=1e-3, mix=(0.12, 0.06, 0.04, 0.38, 0.36, 0.04), noise=0.3, hard=0.3),
)
TOTAL_STEPS = sum(phase.steps for phase in PHASES)
Progress = Callable[[int, float], None]


def base_config(world: World) -> LlamaConfig:
    """`initializer_range` must be large at this width: with 0.02 the letter circuit never forms."""
    return LlamaConfig(
        vocab_size=len(vocabulary(world)), hidden_size=64, intermediate_size=160, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=MAX_LENGTH,
        initializer_range=0.1, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip


def new_base(world: World) -> LlamaForCausalLM:
    """An untrained base whose weights depend on the world's seed alone (norms stay at one)."""
    config = base_config(world)
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(world.seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter.data, std=config.initializer_range, generator=generator)
    for layer in model.model.layers:  # a token attends to its like from the start: the letter circuit needs it
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
    return model


def learning_rate(phase: Phase, step: int, first: bool, last: bool) -> float:
    """Warm-up over 100 steps at the very start, cosine to a tenth in the last phase, constant between."""
    if first:
        return phase.lr * min(1.0, (step + 1) / 100)
    return phase.lr * (0.55 + 0.45 * math.cos(math.pi * step / phase.steps)) if last else phase.lr


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the tokens to predict; the head is computed for those positions only."""
    hidden = model.model(tokens[:, :-1]).last_hidden_state  # [B, T-1, H]
    asked = labels[:, 1:] != IGNORE
    return functional.cross_entropy(model.lm_head(hidden[asked]), labels[:, 1:][asked])


def pretrain(
    world: World, steps: int | None = None, progress: Progress | None = None
) -> tuple[LlamaForCausalLM, list[float]]:
    """The base after all phases (or the first `steps` steps), and the loss of every step."""
    model = new_base(world)
    corpus, rng = Corpus(world, RARE), np.random.default_rng([world.seed, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    losses: list[float] = []
    for number, phase in enumerate(PHASES):
        for step in range(phase.steps):
            if steps is not None and len(losses) >= steps:
                return model, losses
            rate = learning_rate(phase, step, number == 0, number == len(PHASES) - 1)
            for group in optimizer.param_groups:
                group["lr"] = rate
            tokens, labels = (torch.from_numpy(a) for a in corpus.batch(rng, phase, ROWS))
            loss = loss_of(model, tokens, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            if progress is not None:
                progress(len(losses), losses[-1])
            if step >= 30 and sum(losses[-30:]) < 30 * phase.until:
                break
    return model, losses


def save_base(model: LlamaForCausalLM, folder: Path) -> None:
    """Weights stored in fp16, a config that says to compute in fp32, and a greedy generation config."""
    model = model.half()
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1, do_sample=False)
    model.save_pretrained(str(folder), safe_serialization=True)
    # "dtype: auto" follows the config: fp16 on a CPU would be eight times slower and would cost digits.
    config = folder / "config.json"
    write_atomic(config, config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def make_base(world: World, folder: Path, progress: Progress | None = None) -> list[float]:
    """Pretrain on one thread (more would change the order of sums) and save; returns the losses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, losses = pretrain(world, progress=progress)
    finally:
        torch.set_num_threads(threads)
    save_base(model, folder)
    return losses
