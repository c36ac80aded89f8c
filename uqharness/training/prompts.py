"""Build prompts from questions: chat template, system instruction, shots; shared by training and evaluation.

lm-eval's task builds the prompt (`fewshot_context`); this module renders its messages, keeps an item from being one of
its own shots, and describes the prompt format, which an adapter's record stores.
"""

from __future__ import annotations

import functools
import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict

import jinja2

from uqharness.errors import InputError
from uqharness.loose_json import check
from uqharness.results.leakage import document_fingerprint
from uqharness.results.record import digest
from uqharness.settings import Run
from uqharness.training.pairs import pair_of

log = logging.getLogger("lm_eval.uqharness")
TODAY = datetime(2024, 7, 26)  # what `strftime_now` returns in every template; Llama 3's own default
FEWSHOT_SEED = 1234  # lm-eval's default
Message = Mapping[str, str]


class ChatText(str):
    """A prompt that a chat template rendered; `entry` describes the template."""

    entry: Mapping[str, Any]

    def __new__(cls, text: str, entry: Mapping[str, Any]) -> ChatText:
        made = super().__new__(cls, text)
        made.entry = entry
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatText, (str(self), dict(self.entry))


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with the arguments that it is rendered with."""

    tokenizer: Any
    text: str
    arguments: Mapping[str, Any]

    @classmethod
    def of(
        cls, tokenizer: Any, arguments: Mapping[str, Any] | None = None, name: str | None = None, base: str = ""
    ) -> ChatTemplate:
        """Return the tokenizer's template (the one called `name` if it has several); thinking is off by default."""
        return cls(tokenizer, template_text(tokenizer, name, base), {"enable_thinking": False, **(arguments or {})})

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> ChatText:
        """Render as HFLM does, with a fixed date. A template without a system message gets none."""
        try:
            text = self._render(messages, add_generation_prompt)
        except jinja2.exceptions.TemplateError:
            text = self._render([m for m in messages if m["role"] != "system"], add_generation_prompt)
            _say_no_system()
        return ChatText(text, self.entry)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        with fixed_date():
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.arguments,
            )
        return text

    @functools.cached_property
    def entry(self) -> dict[str, Any]:
        """Return its entry in records and protocols: the text's hash and the arguments that the text reads."""
        dated = {"strftime_now": TODAY.strftime("%d %b %Y")} if "strftime_now" in self.text else {}
        return describe(self.text, {**self.arguments, **dated})


def template_text(tokenizer: Any, name: str | None = None, base: str = "") -> str:
    """Return the text of a tokenizer's chat template."""
    templates = getattr(tokenizer, "chat_template", None)
    if not templates:
        raise InputError(
            f"the tokenizer of {base or getattr(tokenizer, 'name_or_path', '') or 'the base'} has no chat template: "
            "remove --apply_chat_template, or take an instruct model"
        )
    if isinstance(templates, str):
        return templates
    if (name or "default") not in templates:
        raise InputError(
            f"no chat template {name or 'default'!r}: the tokenizer has {', '.join(sorted(templates))}; "
            "give --apply_chat_template NAME"
        )
    return str(templates[name or "default"])


def describe(text: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"chat_template": digest(text), "chat_arguments": {k: v for k, v in arguments.items() if k in text}}


def described(render: Any, tokenizer_name: str = "") -> dict[str, Any]:
    """Return the entry of the template behind an lm-eval model's `apply_chat_template`."""
    model = getattr(render, "__self__", None)
    if isinstance(own := getattr(model, "template", None), ChatTemplate):
        return own.entry
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None or not hasattr(tokenizer, "chat_template"):  # a model behind an API
        return {"chat_template": digest(tokenizer_name), "chat_arguments": {}}
    return describe(template_text(tokenizer), getattr(model, "chat_template_args", None) or {})


class _Fixed(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return TODAY


@contextmanager
def fixed_date() -> Iterator[None]:
    """Make templates that insert today's date (`strftime_now`) insert `TODAY` inside this context.

    The clock of transformers' own `strftime_now` is replaced, because it cannot be passed to a template.
    """
    from transformers.utils import chat_template_utils as module

    original = module.datetime
    module.datetime = _Fixed
    try:
        yield
    finally:
        module.datetime = original


@functools.lru_cache(maxsize=1)
def _say_no_system() -> None:
    log.warning("the chat template has no system message: it is omitted, as in lm-eval")


# ---------------------------------------------------------------- the prompts of a training run


@dataclass(frozen=True)
class Prompting:
    """The settings from which lm-eval builds prompts."""

    template: ChatTemplate | None = None
    system_instruction: str | None = None
    num_fewshot: int = 0
    multiturn: bool = True

    @classmethod
    def of(cls, task: Any, tokenizer: Any, run: Run) -> Prompting:
        """Return the settings that `lm_eval` would use for the flags of a training run."""
        if pair_of(task):
            refuse_prompts(task.config.task, run.apply_chat_template, run.system_instruction, run.num_fewshot)
        template = ChatTemplate.of(tokenizer, base=run.base) if run.apply_chat_template else None
        shots = number_of_shots(task, run.num_fewshot)
        return cls(template, run.system_instruction or None, shots, run.fewshot_as_multiturn)

    @property
    def form(self) -> dict[str, Any]:
        entry = self.template.entry if self.template else None
        return make_form(entry, self.system_instruction, self.num_fewshot, self.multiturn)

    def context(self, task: Any, doc: Mapping[str, Any]) -> Any:
        """Return the prompt of an item, or one for each choice, by lm-eval's own task."""
        with without_own_shots(task, doc, self.num_fewshot):
            return task.fewshot_context(
                doc,
                num_fewshot=self.num_fewshot,
                system_instruction=self.system_instruction,
                apply_chat_template=self.template is not None,
                fewshot_as_multiturn=self.multiturn,
                chat_template=self.template,
                gen_prefix=task.doc_to_prefix(doc),
            )

    def requests(self, task: Any, doc: Mapping[str, Any], metadata: tuple[str, int, int]) -> list[Any]:
        chat = {"apply_chat_template": self.template is not None, "chat_template": self.template}
        return list(task.construct_requests(doc=doc, ctx=self.context(task, doc), metadata=metadata, **chat))


def refuse_prompts(name: str, chat: object, system: object, shots: int | None) -> None:
    """Refuse templates, system instructions and shots for a task of sentence pairs, which has no prompt."""
    given = {"a chat template": chat, "a system instruction": system, f"{shots} shots": shots}
    if wrong := [words for words, value in given.items() if value]:
        raise InputError(
            f"task {name} is answered from its documents' own fields, and {wrong[0]} is requested: remove it"
        )


def number_of_shots(task: Any, shots: int | None) -> int:
    """Return the number of shots as lm-eval decides: the given one, else the task's; a 0 in the YAML is final."""
    own = task.config.num_fewshot
    shots = int(own or 0) if shots is None else shots
    if own == 0 and shots:
        raise InputError(
            f"task {task.config.task} is zero-shot in its YAML, where lm-eval ignores --num_fewshot {shots}: remove it"
        )
    if shots and (items := len(getattr(getattr(task, "sampler", None), "df", ()))) <= shots:
        raise InputError(f"task {task.config.task} has {items} items to take shots from: {shots} are too many")
    return shots


@contextmanager
def without_own_shots(task: Any, doc: Mapping[str, Any], shots: int = 1) -> Iterator[None]:
    """Exclude the item and its copies from the shots inside this context; lm-eval does so only in a test split."""
    sampler = getattr(task, "sampler", None)
    if not shots or sampler is None or "sample" in vars(sampler):  # a `UQTask` does so itself
        yield
        return
    draw, own = sampler.sample, document_fingerprint(doc)

    def sample(n: int, eval_doc: Any = None, df: Any = None, **kwargs: Any) -> Any:
        drawn = draw(n=n, eval_doc=eval_doc, df=df, **kwargs)
        if not any(document_fingerprint(shot) == own for shot in drawn):
            return drawn
        whole = sampler.df
        sampler.df = [each for each in whole if document_fingerprint(each) != own]
        try:
            return draw(n=n, **kwargs)
        finally:
            sampler.df = whole

    sampler.sample = sample
    try:
        yield
    finally:
        del sampler.sample


# ---------------------------------------------------------------- the form that an adapter was trained in


class Form(TypedDict, total=False):
    """A prompt format in an adapter's record; missing fields were off."""

    chat_template: str | None
    chat_arguments: dict[str, Any]
    system_instruction: str | None
    num_fewshot: int
    multiturn: bool


def make_form(
    entry: Mapping[str, Any] | None, system_instruction: str | None, num_fewshot: int, multiturn: object
) -> dict[str, Any]:
    """Return the record's entry of the prompt format."""
    return {
        **(entry or {"chat_template": None, "chat_arguments": {}}),
        "system_instruction": digest(system_instruction) if system_instruction else None,
        "num_fewshot": num_fewshot,
        "multiturn": bool(entry and num_fewshot and multiturn),
    }


PLAIN = make_form(None, None, 0, False)


def recorded_form(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the prompt format of an adapter's training; None if unknown (imported or plain PEFT).

    Adapters from before it was recorded were trained zero-shot and without a template.
    """
    if record is None:
        return None
    form = (record.get("data") or {}).get("form")
    if form is None and record.get("imported"):
        return None
    return {**PLAIN, **check({} if form is None else form, Form, "the adapter's record: data: form")}


def flags(run: Mapping[str, Any]) -> list[str]:
    """Return lm-eval's flags for the prompts of a recorded run."""
    words = ["--apply_chat_template"] if run.get("apply_chat_template") else []
    if text := run.get("system_instruction"):
        words += ["--system_instruction", str(text)]
    if run.get("num_fewshot") is not None:
        words += ["--num_fewshot", str(run["num_fewshot"])]
    if run.get("apply_chat_template") and run.get("num_fewshot") and not run.get("fewshot_as_multiturn", True):
        words += ["--fewshot_as_multiturn", "false"]
    return words


def difference(trained: Mapping[str, Any], now_form: Mapping[str, Any], run: Mapping[str, Any]) -> str | None:
    """Return how two prompt formats differ and which flags make them equal; None if equal. `run`: the recorded run."""
    if trained == now_form:
        return None
    facts, fixes = [], []
    before, now = trained["chat_template"], now_form["chat_template"]
    if before is None and now is not None:
        facts.append("without a chat template")
        fixes.append("remove --apply_chat_template")
    elif before is not None and now is None:
        facts.append("with a chat template")
        fixes.append("add --apply_chat_template")
    elif before != now:
        facts.append(f"with the chat template {before} (this tokenizer's is {now})")
        fixes.append("give the tokenizer that it was trained with (tokenizer= in --model_args)")
    elif trained["chat_arguments"] != now_form["chat_arguments"]:
        facts.append(f"with chat_template_args {json.dumps(trained['chat_arguments'])}")
        fixes.append(f"give these (here they are {json.dumps(now_form['chat_arguments'])})")
    if trained["system_instruction"] != now_form["system_instruction"]:
        if trained["system_instruction"] is None:
            facts.append("without a system instruction")
            fixes.append("remove --system_instruction")
        else:
            facts.append("with a system instruction")
            text = run.get("system_instruction")
            fixes.append(f"add --system_instruction {shlex.quote(str(text)) if text else 'with its text'}")
    if trained["num_fewshot"] != now_form["num_fewshot"]:
        count = trained["num_fewshot"]
        facts.append(f"with {count} shots" if count else "zero-shot")
        fixes.append(f"add --num_fewshot {count}")
    elif trained["multiturn"] != now_form["multiturn"] and before is not None and now is not None:
        facts.append("with its shots as turns" if trained["multiturn"] else "with its shots in one message")
        fixes.append(f"add --fewshot_as_multiturn {str(bool(trained['multiturn'])).lower()}")
    return f"trained {', '.join(facts)}: {', '.join(fixes)}" if facts else None


class FormCheck:
    """Refuse to evaluate an adapter with another prompt format than its training."""

    def __init__(self, record: Mapping[str, Any] | None) -> None:
        self.form = recorded_form(record)
        self.run: Mapping[str, Any] = (record or {}).get("run") or {}
        self._said: set[str] = set()

    def check(self, requests: Sequence[Any]) -> None:
        """Check the format that `UQTask` writes on its requests; for stock tasks only the chat template is known."""
        groups: dict[str, list[Any]] = {}
        for request in requests:
            groups.setdefault(str(request.task_name), []).append(request)
        for name, group in groups.items():
            if not any(request.idx for request in group):
                continue  # no choices: not what adapters are trained on
            if self.form is None:
                self._say("bayeslora: the adapter does not record its prompt format: no prompts are refused")
                continue
            if (form := getattr(group[0], "uq_form", None)) is None:
                what = f"bayeslora: of {name}'s prompts only the chat template is compared with the adapter's training"
                self._say(what)
                chat = next((r.args[0].entry for r in group if isinstance(r.args[0], ChatText)), None)
                form = {**self.form, **(chat or {"chat_template": None, "chat_arguments": {}})}
            if problem := difference(self.form, form, self.run):
                raise InputError(f"task {name} has another prompt format than the adapter, which was {problem}")

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            log.info(line)
