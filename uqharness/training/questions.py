"""Tokenise the questions of an lm-eval task. Prompts, choices and labels come from the task object itself.

So training and evaluation use the same prompts, and any multiple-choice lm-eval task with a training split
works. Tokenisation is lm-eval's own too (`PairEncoder`). Knows nothing of splits, models or methods.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from uqharness.engine.rows import Pair
from uqharness.errors import InputError, UQError, did_you_mean
from uqharness.results.leakage import document_fingerprint, fingerprint
from uqharness.training.prompts import FEWSHOT_SEED, Prompting

log = logging.getLogger(__name__)
Encode = Callable[[Sequence[Instance]], list[Pair]]


def load_task(name: str, include_path: str | Path | Sequence[str | Path] | None = None) -> Any:
    """Load a task by name or YAML file. lm-eval's own 14,000 YAMLs are indexed only if the name is not ours."""
    from lm_eval.tasks import TaskManager

    extra = [include_path] if isinstance(include_path, (str, Path)) else list(include_path or ())
    paths = [our_tasks(), *(str(path) for path in extra if path)]
    manager = TaskManager(include_defaults=False, include_path=paths)
    if name not in manager.task_index and not Path(name).is_file():
        log.info("%s is not one of our tasks: indexing lm-eval's", name)
        manager = TaskManager(include_path=(extra if adds_our_tasks(TaskManager) else paths) or None)
        if name not in manager.task_index:
            raise InputError(f"unknown task {name!r}{did_you_mean(name, manager.all_tasks)}; see `uqharness tasks`")
    if name in manager.all_groups or name in manager.all_tags:
        raise InputError(f"{name} is a group of tasks: name one of them; see `uqharness tasks`")
    try:
        tasks = manager.load(name)["tasks"]
    except UQError:
        raise
    except Exception as error:  # the data set: no network, no such file, a broken YAML
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"task {name} cannot be loaded: {reason}") from error
    if len(tasks) != 1:
        raise InputError(f"{name} is a group of {len(tasks)} tasks: name one of {', '.join(sorted(tasks)[:8])}")
    return next(iter(tasks.values()))


def load_again(name: str) -> Any:
    """Load a task by name from the folders of the running evaluation (`--include_path`)."""
    from lm_eval.tasks import TaskManager

    return load_task(name, getattr(TaskManager, "_uqharness_include", None))


def adds_our_tasks(manager: Any) -> bool:
    """Return whether lm-eval's TaskManager knows our folder: by our start-up hook, or by discovery of its own."""
    module = importlib.import_module("lm_eval.tasks.manager")
    return hasattr(module, "discover_plugin_task_paths") or getattr(manager.__init__, "_uqharness", False)


def our_tasks() -> str:
    """Return the folder of our tasks, which stand right of this package: their place, not their code."""
    spec: Any = importlib.util.find_spec("uqharness.tasks")
    return str(Path(spec.origin).parent)


class PairEncoder(HFLM):
    """lm-eval's tokenisation of (context, continuation) without a model: BOS, spaces, empty contexts."""

    def __init__(self, tokenizer: Any, add_bos_token: bool | None = None) -> None:
        # HFLM's own __init__ would load a model; these are all that its encoding reads.
        self.tokenizer, self.add_bos_token = tokenizer, add_bos_token
        self.backend, self.custom_prefix_token_id, self.enable_thinking = "causal", None, None
        self._known: dict[tuple[str, bool | None], list[int]] = {}

    def __call__(self, requests: Sequence[Instance]) -> list[Pair]:
        pairs = self.loglikelihood(list(requests), disable_tqdm=True)
        self._known.clear()
        return pairs

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Encode the shared context of a question's choices once."""
        key = (string, add_special_tokens)
        if key not in self._known:
            self._known[key] = super().tok_encode(string, add_special_tokens, *args, **kwargs)
        return self._known[key]

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        return [(context, continuation) for _, context, continuation in requests]


@dataclass(frozen=True)
class Question:
    """One (context, continuation) of token ids per choice, which choice is right, and its fingerprints."""

    pairs: list[Pair]
    gold: int
    fingerprint: str  # of what it is asked with at zero shots, as plain text
    document: str = ""  # of what is asked (`leakage.document_fingerprint`)
    cut: bool = False  # the tokenizer has left out a part of it

    @property
    def tokens(self) -> int:
        """Return the number of tokens of its longest row."""
        return max(len(context) + len(continuation) for context, continuation in self.pairs)


def check_trainable(task: Any) -> None:
    name = task.config.task
    if task.OUTPUT_TYPE != "multiple_choice":
        raise InputError(f"task {name} has output_type {task.OUTPUT_TYPE}: training needs one with answer choices")
    if not task.has_training_docs():
        raise InputError(f"task {name} has no training split: choose a task whose YAML gives training_split")


def read_questions(
    task: Any,
    split: str,
    docs: Iterable[Mapping[str, Any]],
    encode: Encode,
    limit: int | None = None,
    prompting: Prompting | None = None,
) -> list[Question]:
    """Return every document of a split as lm-eval would ask it; without `prompting` zero-shot, as plain text."""
    docs = list(itertools.islice(docs, limit))
    plain = Prompting()
    with compiled_templates():
        places, requests, sizes = _ask(task, split, docs, prompting or plain)
        # The same items are held out, and are the same items, however they are asked.
        bare = requests if prompting in (None, plain) else _ask(task, split, docs, plain)[1]
    if not places:
        raise InputError(f"{task.config.task}: its {split} split is empty")
    if empty := next((request.task_name for request in requests if request.args[1] == ""), None):
        raise InputError(f"{empty}: an answer choice is empty and tokenises to nothing: give it text")
    pairs = encode(requests)
    lost: Collection[tuple[int, ...]] = getattr(encode, "cut", ())
    questions, start = [], 0
    for (where, gold), size in zip(places, sizes, strict=True):
        chunk = slice(start, start := start + size)
        check_choices(pairs[chunk], requests[chunk], where)
        check_letters(pairs[chunk], [str(request.args[1]) for request in requests[chunk]], where)
        prompt = fingerprint([r.args[:2] for r in bare[chunk]])
        document, cut = document_fingerprint(requests[chunk.start].doc), tuple(pairs[start - 1][0]) in lost
        questions.append(Question(pairs[chunk], gold, prompt, document, cut))
    return questions


def _ask(
    task: Any, split: str, docs: Iterable[Mapping[str, Any]], prompting: Prompting
) -> tuple[list[tuple[str, int]], list[Instance], list[int]]:
    """Yield lm-eval's requests for each document, its position and the right choice."""
    places, requests, sizes = [], [], []
    if prompting.num_fewshot:
        task.set_fewshot_seed(FEWSHOT_SEED)
    for index, doc in enumerate(docs):
        where = f"{task.config.task}, {split} item {index}"
        count = len(task.doc_to_choice(doc))
        # Mutual-information metrics append requests with empty contexts: the choices come first.
        instances = prompting.requests(task, doc, (task.config.task, index, 1))[:count]
        places.append((where, gold_choice(task, doc, count, where)))
        requests.extend(instances)
        sizes.append(len(instances))
    return places, requests, sizes


@contextlib.contextmanager
def compiled_templates() -> Iterator[None]:
    """Make lm-eval compile each prompt template once instead of per document, which takes half of the time."""
    from lm_eval.utils import env

    original = env.from_string
    env.from_string = functools.lru_cache(maxsize=64)(original)
    try:
        yield
    finally:
        env.from_string = original


def gold_choice(task: Any, doc: Mapping[str, Any], count: int, where: str) -> int:
    """Return the index of the right choice: doc_to_text where inputs vary (WinoGrande), else doc_to_target."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        choices = list(task.doc_to_choice(doc))
        gold = choices.index(gold) if gold in choices else gold
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < count:
        raise InputError(f"{where}: label {gold!r} is not one of its {count} choices: fix the label or remove the item")
    return gold


def check_choices(pairs: Sequence[Pair], requests: Sequence[Instance], where: str) -> None:
    """Refuse choices that tokenise to nothing or to the same tokens."""
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}
    for (context, continuation), request in zip(pairs, requests, strict=True):
        text = request.args[1]
        if not continuation:
            raise InputError(f"{where}: choice {text!r} tokenises to nothing: give it text the tokenizer knows")
        key = (tuple(context), tuple(continuation))
        if key in seen:
            raise InputError(f"{where}: choices {seen[key]!r} and {text!r} are the same tokens: make them different")
        seen[key] = text


def check_letters(pairs: Sequence[Pair], texts: Sequence[str], where: str) -> None:
    """Refuse letters as answers if one of them is several tokens after the common prefix.

    Digits are not letters: "3" or "4" is the answer itself in a question of arithmetic, summed like any other text.
    """
    letters = [text.strip() for text in texts]
    lettered = all(len(letter) == 1 and letter.isalpha() for letter in letters)
    if len(set(letters)) < len(letters) or len(letters) < 2 or not lettered:
        return
    for letter, rest in zip(letters, without_shared_start(pairs), strict=True):
        if len(rest) > 1:
            raise InputError(
                f"{where}: the tokenizer splits the answer letter {letter!r} into {len(rest)} tokens: take a task "
                "with answers as text (a cloze variant), or another base"
            )


def without_shared_start(pairs: Sequence[Pair]) -> list[list[int]]:
    """Return the continuations without the tokens that all of them begin with; at least one token of each stays."""
    continuations = [list(continuation) for _, continuation in pairs]
    while min(map(len, continuations)) > 1 and len({tokens[0] for tokens in continuations}) == 1:
        continuations = [tokens[1:] for tokens in continuations]
    return continuations
