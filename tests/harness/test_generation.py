"""Text of `bayeslora`: the next-token mixture, one full forward per draw and step beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.slow_twin import install
from tests.tiny import make_lora
from tests.tiny_adapter import TEXTS, instances
from uqharness.adapter_io import folder as adapter_io
from uqharness.errors import InputError
from uqharness.harness.model import BayesLoRA


def mixture_text(blob: Path, base: Path, ids: list[int], steps: int, samples: int) -> list[int]:
    """Greedy decoding of the next-token mixture, one full forward per draw and step."""
    posterior = adapter_io.load_predictive(blob)[0].posterior
    models = []
    for i in range(samples):
        models.append(make_lora(base))
        install(models[-1], {**posterior.mean, **{n: t[0] for n, t in posterior.draws(i, i + 1, 0).items()}})
    made: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            probs = [m(input_ids=torch.tensor([ids + made])).logits[0, -1].softmax(-1) for m in models]
        made.append(int(sum(probs).argmax()))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("size", [1, 4])
def test_greedy_text_is_the_mixtures(base: Path, blob: Path, size: int) -> None:
    ours = BayesLoRA(adapter=str(blob), samples=3, batch_size=size, device="cpu")
    prompts = instances("generate_until", [(text, {"until": [], "max_gen_toks": 6}) for text in TEXTS])
    for text, generated in zip(TEXTS, ours.generate_until(prompts, disable_tqdm=True), strict=True):
        made = mixture_text(blob, base, ours.tok_encode(text), 6, 3)
        made = made[: made.index(2)] if 2 in made else made
        assert ours.tok_encode(generated) == [t for t in made if t > 3]  # special tokens are not printed


def test_sampled_text_does_not_depend_on_the_batch(blob: Path) -> None:
    settings = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 0.9, "top_k": 20}
    prompts = instances("generate_until", [(text, settings) for text in TEXTS])
    texts = []
    for size, seed in ((1, 0), (4, 0), (4, 1)):
        model = BayesLoRA(adapter=str(blob), samples=3, batch_size=size, seed=seed, device="cpu")
        texts.append(model.generate_until(prompts, disable_tqdm=True))
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_beams_are_refused(blob: Path) -> None:
    model = BayesLoRA(adapter=str(blob), samples=2, device="cpu")
    with pytest.raises(InputError, match="num_beams=2"):
        model.generate_until(
            instances("generate_until", [(TEXTS[0], {"until": [], "num_beams": 2, "max_gen_toks": 4})])
        )
