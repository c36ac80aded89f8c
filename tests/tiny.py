"""Tiny real models for the tests: a random Llama with a word-level tokenizer, and LoRA adapters of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "Answer:", "Choices:", *"ABCDE", *(f"w{i}" for i in range(40))]


KINDS: dict[str, Any] = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}


def make_base(path: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A saved base model with its tokenizer."""
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(path)
    settings = dict(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extra = {} if kind == "llama" else {"head_dim": 8}
        model = AutoModelForCausalLM.from_config(KINDS[kind](**{**settings, **extra, **config}))
    model.to(dtype).save_pretrained(path)
    return path


def make_lora(base: Path, seed: int = 0, **config: Any) -> PeftModel:
    """A PEFT model whose LoRA weights are random, B included."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "lm_head"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, LoraConfig(**{**settings, **config}))
        for name, parameter in peft_model.named_parameters():
            if ".lora_" in name and "magnitude" not in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return peft_model.eval()
