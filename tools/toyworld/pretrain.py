"""Pretrain the base: a Llama of 3 layers and 64 units, AdamW on next-token cross-entropy, one CPU core.

The last phase labels 30 % of the questions at random: a base that has never seen an answer go wrong would
be overconfident before any fine-tuning, and would hide what fine-tuning does.

Not every initialisation learns to copy. An attempt that misses a phase's goal (`Phase.until`, `Phase.right`) is
given up, and the next one starts from other weights and rows; the goals look at the corpus alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tools.toyworld.corpus import IGNORE, Corpus, Ints, Phase
from tools.toyworld.tokenizer import MAX_LENGTH, vocabulary
from tools.toyworld.world import World
from uqharness.atomic import write_atomic
from uqharness.errors import RunError

ROWS = 64
RARE = 0.15  # how often a "far" entity is seen, relative to the others
PHASES = (  # mix: facts, tell, copy, relation, pick, echo
    Phase(steps=600, lr=3e-3, mix=(0.0, 0.0, 1.0, 0.0, 0.0, 0.0), noise=0.0, until=0.1),
    Phase(steps=300, lr=3e-3, mix=(0.35, 0.05, 0.2, 0.0, 0.0, 0.4), noise=0.0),
    Phase(steps=2000, lr=3e-3, mix=(0.2, 0.05, 0.05, 0.4, 0.25, 0.05), noise=0.05),
    Phase(steps=800, lr=3e-3, mix=(0.15, 0.05, 0.03, 0.45, 0.27, 0.05), noise=0.05, hard=0.5),
    Phase(steps=500, lr=1e-3, mix=(0.12, 0.06, 0.04, 0.38, 0.36, 0.04), noise=0.3, hard=0.3, right=0.6),
)
TOTAL_STEPS = sum(phase.steps for phase in PHASES)
ATTEMPTS = 6
Progress = Callable[[int, float], None]


@dataclass
class Pretrained:
    """A base, the loss of every step that made it, and why earlier attempts were given up."""

    model: LlamaForCausalLM
    losses: list[float]
    failed: list[str]


def base_config(world: World) -> LlamaConfig:
    """`initializer_range` must be large at this width: with 0.02 the letter circuit never forms."""
    return LlamaConfig(
        vocab_size=len(vocabulary(world)),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.1,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def new_base(world: World, attempt: int = 0) -> LlamaForCausalLM:
    """An untrained base whose weights depend on the world's seed and the attempt alone (norms stay at one)."""
    config = base_config(world)
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(world.seed + 1_000_003 * attempt)
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
    scored = labels[:, 1:] != IGNORE
    return functional.cross_entropy(model.lm_head(hidden[scored]), labels[:, 1:][scored])


def relations_right(model: LlamaForCausalLM, corpus: Corpus, rng: np.random.Generator, rows: int = 1000) -> float:
    """Share of new relation questions (four choices, chance .25; none hard) whose letter the model puts first."""
    corpus.hard = 0.0
    tokens, _ = corpus.relation(rng, rows, 4, 0.0)  # [rows, T], ends with the letter and <eos>
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens[:, :-2])).logits[:, -1, corpus.letters[:4]]
    return float((corpus.letters[logits.argmax(-1).numpy()] == tokens[:, -2]).mean())


def train_attempt(
    world: World, attempt: int, steps: int | None, progress: Progress | None
) -> tuple[LlamaForCausalLM, list[float], str]:
    """All phases (or the first `steps` steps) from one initialisation, and the goal missed ("" if none)."""
    model = new_base(world, attempt)
    corpus, rng = Corpus(world, RARE), np.random.default_rng([world.seed, 1, *([attempt] if attempt else [])])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    losses: list[float] = []
    for number, phase in enumerate(PHASES):
        solved = not phase.until
        for step in range(phase.steps):
            if steps is not None and len(losses) >= steps:
                return model, losses, ""
            rate = learning_rate(phase, step, number == 0, number == len(PHASES) - 1)
            losses.append(train_step(model, optimizer, rate, corpus.batch(rng, phase, ROWS)))
            if progress is not None:
                progress(len(losses), losses[-1])
            if step >= 30 and sum(losses[-30:]) < 30 * phase.until:
                solved = True
                break
        if not solved:
            return model, losses, f"copying not learned: loss {np.mean(losses[-30:]):.2f} after {phase.steps} steps"
        right = relations_right(model, corpus, np.random.default_rng([world.seed, 2])) if phase.right else 1.0
        if right < phase.right:
            return model, losses, f"relations not learned: {right:.0%} right after {len(losses)} steps"
    return model, losses, ""


def train_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, rate: float, batch: tuple[Ints, Ints]
) -> float:
    """One step of AdamW at learning rate `rate`; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(model, *(torch.from_numpy(a) for a in batch))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.item())


def pretrain(world: World, steps: int | None = None, progress: Progress | None = None) -> Pretrained:
    """The base of the first attempt that reaches all goals (or its first `steps` steps)."""
    failed: list[str] = []
    for attempt in range(ATTEMPTS):
        model, losses, missed = train_attempt(world, attempt, steps, progress)
        if not missed:
            return Pretrained(model, losses, failed)
        failed.append(missed)
    raise RunError(f"no base for world {world.seed} in {ATTEMPTS} attempts (last: {failed[-1]}): take another seed")


def save_base(model: LlamaForCausalLM, folder: Path) -> None:
    """Weights stored in fp16, a config that says to compute in fp32, and a greedy generation config."""
    model = model.half()
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=1, do_sample=False)
    model.save_pretrained(str(folder), safe_serialization=True)
    # "dtype: auto" follows the config: fp16 on a CPU would be eight times slower and would cost digits.
    config = folder / "config.json"
    write_atomic(config, config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def make_base(world: World, folder: Path, progress: Progress | None = None) -> Pretrained:
    """Pretrain on one thread (more would change the order of sums) and save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = pretrain(world, progress=progress)
    finally:
        torch.set_num_threads(threads)
    save_base(made.model, folder)
    return made
