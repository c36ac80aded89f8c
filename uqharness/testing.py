"""The contract of a method on a tiny CPU Llama or RoBERTa: third parties call `check_method` in their own tests."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from uqharness import registry
from uqharness.adapter_io.folder import load_predictive, save_adapter
from uqharness.engine.lora import is_classifier
from uqharness.engine.predictive import Predictive, as_predictive
from uqharness.engine.rows import Pair, make_rows
from uqharness.method import Method
from uqharness.posterior import Posterior, keyed_generator
from uqharness.settings import Run, as_json
from uqharness.training.base_model import inject
from uqharness.training.data import ChoiceData
from uqharness.training.questions import Question

TINY = Run(
    base="tiny",
    task="tiny",
    steps=12,
    lr=5e-2,
    batch_size=4,
    max_length=24,
    lora_r=2,
    lora_alpha=4,
    warmup=0.1,
    device="cpu",
)


def tiny_llama(seed: int = 0, **settings: Any) -> nn.Module:
    """Return a random Llama: 2 layers, width 32, 64 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**shape, **heads, "initializer_range": 0.2, **settings})).eval()


def tiny_encoder(seed: int = 0, kind: str = "roberta", **settings: Any) -> nn.Module:
    """Return a random sequence classifier of 3 classes: 2 layers, width 32, 64 tokens, no dropout of its own."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 66, "pad_token_id": 1, "num_labels": 3}
    heads["type_vocab_size"] = 1  # as RoBERTa's checkpoints have it
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
    config = AutoConfig.for_model(kind, **{**shape, **heads, **still, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config).eval()


def tiny_data(items: int = 16, seed: int = 0, encoder: bool = False) -> ChoiceData:
    """Return learnable questions: the right letter follows from the first token. Some answers have two tokens.

    encoder: the answers are the classes 0, 1 and 2.
    """
    generator, questions = keyed_generator("tiny data", seed), []
    for n in range(items):
        length = 5 + n % 4
        context = torch.randint(8, 64, (length,), generator=generator).tolist()
        tail = [5] if n % 3 == 0 else []
        pairs: list[Pair] = [(context, [k] if encoder else [k + 1, *tail]) for k in range(3)]
        questions.append(Question(pairs, context[0] % 3, f"{seed}-{n}"))
    split = {"purpose": "fit", "split": "train", "items": items, "hash": "tiny"}
    record = {"task": "tiny", "splits": [{**split, "fingerprints": [q.fingerprint for q in questions]}]}
    return ChoiceData(questions, questions[: items // 4], questions[: items // 4], TINY.max_length, 0, record)


def tiny_adapter(seed: int = 0) -> PeftModel:
    """Return `tiny_llama` with a LoRA whose weights, B included, are random."""
    model = inject(tiny_llama(), dataclasses.replace(TINY, target_modules=("q_proj", "v_proj"))).eval()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=keyed_generator("tiny adapter", seed, name))
    return model


def fit_tiny(
    method: Method, run: Run = TINY, source: Posterior | Predictive | None = None, encoder: bool = False
) -> tuple[Any, PeftModel, ChoiceData]:
    """Fit a method on the tiny data; return its result, the model and the data."""
    model, data = inject(tiny_encoder() if encoder else tiny_llama(), run), tiny_data(encoder=encoder)
    return method.fit(model, data, run, None if source is None else as_predictive(source)), model, data


def check_method(
    cls: type[Method],
    run: Run = TINY,
    source: Posterior | Predictive | None = None,
    encoder: bool = False,
    **settings: Any,
) -> Any:
    """Run the contract of docs/plugin.md; raise an AssertionError that names the violated clause.

    Args:
        cls: the method.
        run: the run's settings.
        source: the adapter to build on.
        encoder: on a tiny RoBERTa that classifies, in place of the Llama.
        settings: the method's own.

    Returns:
        The result of `fit`.

    Example:
        >>> from uqharness.registry import get_method
        >>> check_method(get_method("mle")).kind
        'point'
    """
    method = cls(**settings)
    for name in ("name", "label", "paper", "summary", "passes"):
        assert isinstance(getattr(cls, name, None), str), f"{cls.__name__} has no {name}"
    before = {k: v.clone() for k, v in (tiny_encoder() if encoder else tiny_llama()).state_dict().items()}
    made, model, data = fit_tiny(method, run, source, encoder)
    check_base_untouched(model, before)
    check_loss_falls(data)
    check_draws(as_predictive(made).posterior)
    with tempfile.TemporaryDirectory() as folder:
        check_saved(method, as_predictive(made), model, data, Path(folder))
        check_resume(method, as_predictive(made).posterior, run, source, Path(folder), encoder)
    return made


def check_base_untouched(model: PeftModel, before: dict[str, Tensor]) -> None:
    """Check that training changes the adapter and nothing else, bit for bit."""
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", "."): t
        for name, t in model.state_dict().items()
    }
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), f"base weight {name} was changed"


def check_loss_falls(data: ChoiceData) -> None:
    for curve in data.record.get("training", []):
        losses = [value for _, value in curve["loss"]]
        third = max(1, len(losses) // 3)
        assert sum(losses[-third:]) < sum(losses[:third]), f"the loss does not fall: {losses}"


def check_draws(posterior: Posterior) -> None:
    """Check that draws are reproducible, independent of count and chunk, and dependent on the seed."""
    count = posterior.usable(10)
    whole, again = posterior.draws(0, count, 3), posterior.draws(0, count, 3)
    first, later = posterior.draws(0, min(5, count), 3), posterior.draws(min(2, count - 1), count, 3)
    for name, tensor in whole.items():
        assert name in posterior.mean and tensor.shape == (count, *posterior.mean[name].shape), f"shape of {name}"
        assert torch.equal(tensor, again[name]), f"draws of {name} are not reproducible"
        assert torch.equal(tensor[: min(5, count)], first[name]), f"the first 5 of 10 draws of {name} are not the 5"
        assert torch.equal(tensor[min(2, count - 1) :], later[name]), f"draws of {name} depend on the chunk"
    if posterior.finite is None and whole:
        other = posterior.draws(0, count, 4)
        assert any(not torch.equal(whole[name], other[name]) for name in whole), "the seed changes no draw"
    if posterior.symmetric:
        for name, tensor in posterior.draws(0, 64, 5).items():
            off = (tensor.mean(0) - posterior.mean[name]).abs()
            assert bool((off <= tensor.std(0) + 1e-5).all()), f"draws of {name} do not lie around the mean"


def check_saved(method: Method, predictive: Predictive, model: PeftModel, data: ChoiceData, folder: Path) -> None:
    """Check that loading restores the saved numbers exactly, and that PEFT gives N = 0 of a mean that is plain."""
    cls, out = type(method), folder / "adapter"
    record = {"method": {"name": cls.name, "settings": as_json(method)}, "base": {"name": "tiny"}, "data": {}}
    save_adapter(out, model, predictive, record)
    restored, posterior = _restore(cls, out), predictive.posterior
    loaded = restored.posterior
    for kind, left, right in (
        ("mean", posterior.mean, loaded.mean),
        ("draws", posterior.draws(0, posterior.usable(3), 0), loaded.draws(0, loaded.usable(3), 0)),
    ):
        assert set(left) == set(right), f"the {kind} has other tensors after loading"
        assert all(torch.equal(left[name], right[name]) for name in left), f"the {kind} is not what was saved"
    few = make_rows([q.pairs for q in data.train[:2]], data.max_length, data.pad)
    drawn, again = (p.engine(model.eval(), 3).score(few) for p in (predictive, restored))
    assert torch.equal(drawn.draws, again.draws), "the answers are not those of what was saved"
    at_mean, mean_again = (p.engine(model, 0).score(few).mean for p in (predictive, restored))
    assert at_mean is not None and mean_again is not None
    assert torch.equal(at_mean, mean_again), "the answers at N = 0 are not those of what was saved"
    beside_draws = at_mean if drawn.mean is None else drawn.mean
    problem = "N = 0 is not the mean's row of N = 3: set mean_is_plain = False if `inputs` change the mean"
    assert float((at_mean - beside_draws).abs().max()) < 1e-4, problem
    encoder = is_classifier(model.get_base_model())
    fresh = PeftModel.from_pretrained(tiny_encoder() if encoder else tiny_llama(), str(out)).eval()
    if not predictive.mean_is_plain:
        return
    rows = make_rows([q.pairs for q in data.train], data.max_length, data.pad)
    expected = predictive.engine(model, samples=0).score(rows).mean
    assert expected is not None
    ids = [([*context, *answer], len(answer)) for q in data.train for context, answer in q.pairs]
    for (tokens, length), value in zip(ids, expected, strict=True):
        with torch.no_grad():  # a classifier does not see its answer, the class
            logp = fresh(input_ids=torch.tensor([tokens[:-1] if encoder else tokens])).logits.double().log_softmax(-1)
        read = [logp[0]] if encoder else [logp[0, i - 1] for i in range(len(tokens) - length, len(tokens))]
        value_of_peft = sum(float(one[token]) for one, token in zip(read, tokens[-length:], strict=True))
        assert abs(value_of_peft - float(value)) < 1e-4, "PEFT's prediction from the saved mean is not that of N = 0"


def _restore(cls: type[Method], out: Path) -> Predictive:
    """Load like `load_predictive`, for a method that need not be registered."""
    from unittest import mock

    installed = registry.get_method

    def get_method(name: str, package: str | None = None) -> type[Method]:
        return cls if name == cls.name else installed(name, package)

    with mock.patch("uqharness.registry.get_method", get_method):
        return load_predictive(out)[0]


def check_resume(
    method: Method, posterior: Posterior, run: Run, source: Any, folder: Path, encoder: bool = False
) -> None:
    """Check that a resumed run equals the uninterrupted one, bit for bit."""
    stop = run.steps // 2
    saving = dataclasses.replace(run, out=str(folder / "resumed"), save_every=stop)
    fit_tiny(method, saving, source, encoder)
    for marker in folder.rglob(f"checkpoint-{run.steps}/complete.json"):
        marker.unlink()  # as if it had been stopped while it wrote its last checkpoint
    made, _, data = fit_tiny(method, dataclasses.replace(saving, resume=True), source, encoder)
    resumed = as_predictive(made).posterior
    courses = data.record.get("training", [])
    went_on = not courses or any(curve["resumed_from"] == stop for curve in courses)
    assert went_on, "the run did not resume from its checkpoint: train through uqharness.training.loop.fit_loop"
    for name, tensor in posterior.mean.items():
        assert torch.equal(tensor, resumed.mean[name]), f"the resumed mean differs in {name}"
    for name, tensor in posterior.state().items():
        assert torch.equal(tensor, resumed.state()[name]), f"the resumed posterior differs in {name}"
