"""Tiny real models for the tests: a random Llama with a word-level tokenizer, and LoRA adapters of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "Answer:", "Choices:", *"ABCDE", *(f"w{i}" for i in range(40))]


# Settings of an architecture beside those of all.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "gemma3": {"image_token_index": 50, "boi_token_index": 49, "eoi_token_index": 48, "mm_tokens_per_image": 4},
    "mistral": {"head_dim": 8},
    "phi3": {},
    "smollm3": {},
    "gpt2": {},
    "openai-gpt": {},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
VISION = {"image_size": 8, "patch_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}


def random_base(kind: str = "llama", attention: str | None = None, **config: Any) -> PreTrainedModel:
    """A base model whose weights are drawn from the global generator."""
    settings = dict(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    settings = {**settings, **KINDS.get(kind, {}), **config}
    if kind == "gemma3":  # a multimodal one
        text = {**settings, "head_dim": 8}
        settings |= {"text_config": text, "vision_config": {**VISION, "hidden_size": 16, "intermediate_size": 24}}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), attn_implementation=attention)


def make_base(path: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A saved base model with its tokenizer."""
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = random_base(kind, **config)
    model.to(dtype).save_pretrained(path)
    return path


def make_encoder(path: Path, kind: str = "roberta", **config: Any) -> Path:
    """A saved encoder without a head, and a tokenizer that pairs texts as its kind does."""
    bert = kind == "bert"
    first, last = ("[CLS]", "[SEP]") if bert else ("<s>", "</s>")
    words = [first, "<pad>", last, "<unk>", *(f"w{i}" for i in range(200))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    between = f"{last} $B:1 {last}:1" if bert else f"{last} {last} $B {last}"
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {between}", special_tokens=[(first, 0), (last, 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        cls_token=first,
        sep_token=last,
        unk_token="<unk>",
        model_input_names=["input_ids", *["token_type_ids"] * bert, "attention_mask"],
    ).save_pretrained(path)
    settings = dict(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=130 if bert else 132,
        type_vocab_size=2 if bert else 1,
        pad_token_id=1,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(kind, **{**settings, **config})).save_pretrained(path)
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
