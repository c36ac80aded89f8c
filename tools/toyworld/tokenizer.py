"""The world's word-level tokenizer: one token per word, and one for each fixed phrase of the prompt.

`encode(context + continuation) == encode(context) + encode(continuation)` holds for every continuation that
starts with a space, because tokens never contain whitespace. No BOS is ever added; EOS begins and ends a
pretraining document.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tools.toyworld.world import CLOZE_INSTRUCTION, INSTRUCTION, LETTERS, RELATIONS, VALUES, World

SPECIAL = ("<pad>", "<eos>", "<unk>")
PHRASES = (INSTRUCTION, CLOZE_INSTRUCTION, "Choices:", "Answer:", *(f"{letter}." for letter in LETTERS))
WORDS = (
    "The",
    "What",
    "Which",
    "does",
    "of",
    "these",
    "would",
    "is",
    "the",
    "choice",
    "says",
    "pick",
    "choose",
    "and",
    "?",
    ".",
)
MAX_LENGTH = 64


def vocabulary(world: World) -> list[str]:
    """Every token of the world, in a fixed order."""
    values = [v for vs in VALUES.values() for v in vs]
    return [*SPECIAL, *PHRASES, *LETTERS, *WORDS, *RELATIONS, *values, *world.entities]


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A tokenizer that AutoTokenizer loads without any code of ours."""
    tokens = vocabulary(world)
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    phrases = "|".join(p.replace(".", r"\.") for p in PHRASES[:4])
    pattern = Regex(rf"{phrases}|\b[A-E]\.|\w+|[^\w\s]")
    core.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with spaces
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(world: World, folder: Path) -> None:
    make_tokenizer(world).save_pretrained(str(folder))
