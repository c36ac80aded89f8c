"""The Python API: what the commands do, from a script or a notebook.

    import uqharness

    uqharness.train("blob", base="toyworld", task="toyworld_uq", out="runs/blob", steps=800, lr=3e-3)
    runs = uqharness.evaluate("runs/blob", ["toyworld_uq"], samples=10)
    model = uqharness.load("runs/blob")
    answers = model.predict(["Which gas do plants take in?\\nAnswer:"], ["oxygen", "carbon dioxide"], samples=10)

`uqharness.__getattr__` resolves `uqharness.load` and the others, so `import uqharness` loads nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uqharness.errors import InputError
from uqharness.metrics import averaging, points
from uqharness.results.reading import Run as TaskResult
from uqharness.results.reading import read_results

if TYPE_CHECKING:
    from uqharness.harness.model import BayesLoRA

__all__ = ["Answer", "Model", "TaskResult", "evaluate", "load", "read_results", "train"]


@dataclass(frozen=True)
class Answer:
    """The averaged answer to one question, and the draws that it was averaged from.

    `total` is the entropy of `probs` in nats; it is the sum of `aleatoric`, the mean entropy of the single draws, and
    `epistemic`, the mutual information of answer and weights: how much the draws disagree.

    Example:
        >>> answer = Answer(("yes", "no"), np.array([0.5, 0.5]), np.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> round(answer.total, 3), round(answer.aleatoric, 3), round(answer.epistemic, 3)
        (0.693, 0.325, 0.368)
    """

    choices: tuple[str, ...]
    probs: np.ndarray  # [C], sums to 1
    draws: np.ndarray  # [S, C]: the answer of each draw; [1, C] where `samples=0` asks for the mean's weights

    @property
    def choice(self) -> str:
        """Return the most probable choice."""
        return self.choices[int(self.probs.argmax())]

    @property
    def confidence(self) -> float:
        return float(self.probs.max())

    @property
    def total(self) -> float:
        return float(points.entropy(self.probs))

    @property
    def aleatoric(self) -> float:
        return float(points.entropy(self.draws).mean())

    @property
    def epistemic(self) -> float:
        return max(self.total - self.aleatoric, 0.0)


class Model:
    """A base model with a Bayesian LoRA adapter, ready to answer multiple-choice questions.

    `uqharness.load` creates it. `lm` is the underlying lm-eval model.
    """

    def __init__(self, lm: BayesLoRA) -> None:
        self.lm = lm
        self._samples = _samples(lm)

    @property
    def record(self) -> Mapping[str, Any]:
        """Return the adapter folder's own record (uq_config.json); empty for a plain PEFT adapter."""
        return self.lm.record or {}

    def predict(
        self,
        prompts: Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        samples: int | None = None,
        chat: bool = False,
    ) -> list[Answer]:
        """Return the averaged probability of each choice for each prompt.

        Args:
            prompts: the text before the answer, as a task would give it ("Question: …\\nAnswer:").
            choices: the answers of all prompts, or one list of answers for each prompt. An answer is scored after one
                space, as lm-eval scores it, by its summed log-probability.
            samples: how many draws to average; 0 answers with the mean's weights. The default is that of `load`.
            chat: render each prompt as a user's message by the tokenizer's chat template.
        """
        from lm_eval.api.instance import Instance

        if isinstance(prompts, str):
            raise InputError("prompts is a string: give a list of prompts")
        lists = _lists(choices, len(prompts))
        wanted = self._samples if samples is None else samples
        if wanted != _samples(self.lm):
            self.lm.set_samples(wanted)
        texts = list(prompts)
        if chat:
            texts = [self.lm.apply_chat_template([{"role": "user", "content": text}]) for text in texts]
        gap = "" if chat else " "
        requests = [
            Instance("loglikelihood", {}, (text, gap + choice), k, ("", q, 1))
            for q, (text, options) in enumerate(zip(texts, lists, strict=True))
            for k, choice in enumerate(options)
        ]
        scores = iter([score for score, _ in self.lm.answer(requests, disable_tqdm=True)])
        answers = []
        for options in lists:
            values: list[Any] = [next(scores) for _ in options]
            terms = [[term for term in value.draws or (value.mean,) if term is not None] for value in values]
            logp = np.array(terms).T[:, None, :]  # [S, 1, C]
            probs = np.asarray(averaging.combine_draws(logp, values[0].combine))[0]
            answers.append(Answer(options, probs, np.asarray(averaging.softmax_draws(logp))[:, 0]))
        return answers


def _samples(lm: BayesLoRA) -> int | str:
    return "auto" if lm.tolerance else lm.samples


def _lists(choices: Sequence[str] | Sequence[Sequence[str]], count: int) -> list[tuple[str, ...]]:
    if isinstance(choices, str) or not choices:
        raise InputError("choices must be a list of answers, or one such list for each prompt")
    if all(isinstance(choice, str) for choice in choices):
        return [tuple(map(str, choices))] * count
    if len(choices) != count:
        raise InputError(f"{count} prompts and {len(choices)} lists of choices: give one list for each prompt")
    return [tuple(options) for options in choices]


def load(adapter: str | Path, *, base: str | None = None, samples: int = 10, **model_args: Any) -> Model:
    """Load an adapter folder (or `hub:user/name`) on its base model.

    Args:
        adapter: a folder that `uqharness train` made, a plain PEFT adapter, or `hub:user/name[@revision]`.
        base: the base model, if the adapter does not name it or it has moved.
        samples: how many draws `predict` averages.
        model_args: `--model_args` of `lm_eval --model bayeslora`: seed, device, dtype, batch_size, ….
    """
    from uqharness.harness.model import BayesLoRA

    return Model(BayesLoRA(adapter=str(adapter), base=base, samples=samples, **model_args))


def train(method: str, *, out: str | Path, adapter: str | Path | None = None, **settings: Any) -> Path:
    """Train an adapter, as `uqharness train` does, and return its folder.

    Args:
        method: a name of `uqharness methods`.
        out: the folder to create.
        adapter: a trained LoRA to build on, for methods that support it.
        settings: run settings (`base`, `task`, `steps`, `lr`, `seed`, …; see `uqharness train METHOD --help`), flags of
            the command (`overwrite=True`) and the method's own settings (`kl_lr=0.04`) by name.
    """
    from uqharness.commands import train as command
    from uqharness.commands.parser import Parser

    parser = Parser(prog="uqharness.train")
    command.add_arguments(parser)
    actions = {action.dest: action for action in parser._actions}
    words = [method, "--out", str(out), *(["--adapter", str(adapter)] if adapter else [])]
    own = {name: value for name, value in settings.items() if name not in actions}
    for name, value in settings.items():
        if name in actions:
            words += _flag(actions[name], value)
    if own:
        words += ["--set", *(f"{name}={value}" for name, value in own.items())]
    args = parser.parse_args(words)
    args.argv, args.debug = ["train", *words], False
    command.run(args)
    return Path(out)


def _flag(action: argparse.Action, value: Any) -> Iterator[str]:
    flag = action.option_strings[0]
    if action.nargs == 0:  # a switch; those whose default is not false have a --no- form
        yield from [flag] if value else [name for name in action.option_strings if name.startswith("--no-")][:1]
    elif value is not None:
        values = value if isinstance(value, (list, tuple)) else [value]
        yield from [flag, *map(str, values)]


def evaluate(
    adapter: str | Path,
    tasks: str | Sequence[str],
    *,
    samples: int | str = 10,
    model_args: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> list[TaskResult]:
    """Evaluate an adapter through lm-eval and return the results of its `_uq` tasks.

    Args:
        adapter: as in `load`.
        tasks: names of lm-eval tasks; those ending in `_uq` come with this package.
        samples: how many draws to average, or "auto". The results hold N = 0 (the mean) to `samples`.
        model_args: further `--model_args`, by name.
        arguments: further arguments of `lm_eval.simple_evaluate`: `limit`, `batch_size`, `num_fewshot`, ….
    """
    import lm_eval

    given = {"adapter": str(adapter), "samples": samples, **(model_args or {})}
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    results = lm_eval.simple_evaluate(model="bayeslora", model_args=given, tasks=names, **arguments)
    return read_results(results) if results is not None else []  # None: not the process that collects
