"""`ChoiceTask`: our metrics and the record of every draw for any multiple-choice task of lm-eval.

lm-eval asks for log p(choice text | prompt) as always; this class normalises it over the question's own choices, draw
by draw, keeps the compact record of all of it, and says which protocol the answers belong to. In a YAML:

    class: !function uqharness.harness.choices.ChoiceTask

and in Python `class MyTask(ChoiceTask, TheirTask)`. The task's own metrics stay. lm-eval prints the metrics
with `console=True`; all others are in the record's `metrics`, in the results file.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from uqharness.errors import InputError
from uqharness.harness.scoring import Answer, per_byte, score
from uqharness.metrics.registry import METRICS, compute_all, find
from uqharness.results.reading import RECORD, say_if_not_kept
from uqharness.results.record import digest, pack, unpack
from uqharness.training import prompts
from uqharness.training.pairs import pair_of

# What lm-eval prints: values per item, whose mean and standard error it computes, and values of the whole task.
SHOWN = {name: metric for name, metric in METRICS.items() if metric.console}
OF_ITEMS = tuple(name for name, metric in SHOWN.items() if metric.items)
# A key `<name>_stderr` after `<name>` fills lm-eval's column for its standard error.
OF_TASK = tuple(
    each
    for name, metric in SHOWN.items()
    if not metric.items
    for each in (name, *[f"{name}_stderr"] * ("stderr" in metric.ends))
)


def doc_hash(doc: Mapping[str, Any]) -> str:
    """Return a hash of a document's content, independent of its place in the split."""
    return digest({key: value for key, value in doc.items() if key != "uq_id"})


class ChoiceTask(ConfigurableTask):
    """A multiple-choice task of lm-eval whose results carry every draw's answer to every item, by our metrics too."""

    def __init__(self, config: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self._asked: dict[int, tuple[str, str]] = {}
        self._asked_with: dict[str, Any] = {}
        self._fewshot_seed: int | None = None
        self._values: dict[str, float] = {}
        self._answers: dict[tuple[int, tuple[float, ...]], Answer] = {}
        super().__init__(config={k: v for k, v in (config or {}).items() if k != "class"}, **kwargs)
        if self.OUTPUT_TYPE != "multiple_choice":
            raise InputError(f"{self.task_name}: output_type is {self.OUTPUT_TYPE}: our metrics need multiple_choice")

    @property
    def uq(self) -> dict[str, Any]:
        return (self.config.metadata or {}).get("uq") or {}

    def labelled(self, doc: Mapping[str, Any], role: str = "this split") -> tuple[list[str], int]:
        """Return an item's answer strings and the index of the right one."""
        target = self.doc_to_text(doc) if getattr(self, "multiple_input", 0) else self.doc_to_target(doc)
        choices = list(self.doc_to_choice(doc))
        gold = choices.index(target) if isinstance(target, str) and target in choices else target
        if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
            raise InputError(
                f"{self.task_name}: item {doc.get('uq_id')} (id {doc.get('id')!r}) of {role} "
                f"has the label {target!r}, none of its {len(choices)} choices {choices}; "
                "fix its label or use a labelled split"
            )
        return choices, gold

    # ---------------------------------------------------------------- requests

    def doc_iterator(self, **kwargs: Any) -> Iterator[tuple[int, Any]]:
        """Yield documents with their position as `uq_id`, which identifies the question of an answer."""
        for doc_id, doc in super().doc_iterator(**kwargs):
            yield doc_id, doc if "uq_id" in doc else {**doc, "uq_id": doc_id}

    def set_fewshot_seed(self, seed: int | None = None) -> None:
        self._fewshot_seed = seed
        super().set_fewshot_seed(seed)

    def build_all_requests(self, **kwargs: Any) -> None:
        chat, shots, pair = template_entry(kwargs), self.config.num_fewshot or 0, pair_of(self)
        if pair:
            prompts.refuse_prompts(self.task_name, chat, kwargs.get("system_instruction"), shots)
        super().build_all_requests(**kwargs)
        form = prompts.make_form(chat, kwargs.get("system_instruction"), shots, kwargs.get("fewshot_as_multiturn"))
        by_item: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for instance in self.instances:
            instance.uq_form = form
            instance.uq_protocol = self.uq.get("protocol")  # for models that were trained under one
            instance.uq_pair = pair  # the fields that a sequence classifier reads
            by_item[instance.doc["uq_id"]].append(instance.args[:2])
        self._asked = {}
        for key, pairs in by_item.items():  # prompts are several where they differ by choice
            contexts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
            self._asked[key] = digest(contexts[0] if len(set(contexts)) == 1 else contexts), digest(answers)
        self._asked_with = kwargs

    # ---------------------------------------------------------------- answers

    def apply_filters(self) -> Any:
        """Score all items at once; lm-eval calls this between the model's answers and `process_results`."""
        out = super().apply_filters()
        self._answers = {}
        if "bypass" in self._metric_fn_list:  # --predict_only
            return out
        requests_of: dict[int, list[Any]] = defaultdict(list)
        for instance in sorted(self.instances, key=lambda instance: instance.idx):
            requests_of[instance.doc["uq_id"]].append(instance)
        labelled = [self.labelled(ones[0].doc) for ones in requests_of.values()]
        for name in self.instances[0].filtered_resps:
            scores = {
                key: tuple(one.filtered_resps[name][0] for one in ones[: len(texts)])
                for (key, ones), (texts, _) in zip(requests_of.items(), labelled, strict=True)
            }
            given = [self._normalised(one, texts) for one, (texts, _) in zip(scores.values(), labelled, strict=True)]
            names = [f"{self.task_name}: item {key}" for key in requests_of]
            answers = score(given, [gold for _, gold in labelled], names)
            self._answers |= dict(zip(scores.items(), answers, strict=True))
        return out

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        has_own = self._metric_fn_list or callable(self.config.process_results)
        stock = super().process_results(doc, results) if has_own else {}
        if "bypass" in self._metric_fn_list:
            return stock
        key, (texts, gold) = doc["uq_id"], self.labelled(doc)
        scores = tuple(value for value, _ in results[: len(texts)])  # behind them acc_mutual_info's, without a prompt
        answer = self._answers.get((key, scores))
        if answer is None:  # not through `apply_filters`
            answer = score([self._normalised(scores, texts)], [gold], [f"{self.task_name}: item {key}"])[0]
        prompt_hash, answer_hash = self._asked[key]
        record = {
            "id": key,
            "gold": gold,
            "probs": answer.probs,
            "logp": answer.rows,
            "combine": answer.rule,
            "doc_hash": doc_hash(doc),
            "prompt_hash": prompt_hash,
            "answer_hash": answer_hash,
            "metrics": {name: value for name, value in answer.values.items() if name not in SHOWN},
        }
        shown = {name: answer.values[name] for name in OF_ITEMS}
        # The record comes first: its aggregation computes what those of the whole task hand out.
        return {RECORD: record, **stock, **shown, **dict.fromkeys(self.of_task)}

    @property
    def of_task(self) -> tuple[str, ...]:
        """Return the metrics that lm-eval prints: `OF_TASK`, and the metrics that `metadata.uq.show` names."""
        more = [find(name).name for name in self.uq.get("show") or ()]
        return (*OF_TASK, *(each for name in more for each in (name, f"{name}_stderr")))

    def _normalised(self, scores: Sequence[float], answers: Sequence[str]) -> Sequence[float]:
        return per_byte(scores, answers) if self.normalise else scores

    @property
    def normalise(self) -> str | None:
        """Return the YAML's rule, or that of `--metadata '{"normalise": "bytes"}'` of the command line."""
        rule = (self.config.metadata or {}).get("normalise", self.uq.get("normalise"))
        if rule not in (None, "bytes"):
            raise InputError(f"{self.task_name}: normalise is {rule!r}: write bytes, or remove it")
        return rule

    def aggregation(self) -> dict[str, Callable[[Any], Any]]:
        stock = super().aggregation()
        if "bypass" in self._metric_fn_list:
            return stock
        of_task = {name: partial(self._value, name) for name in self.of_task}
        return {**stock, RECORD: self._record, **dict.fromkeys(OF_ITEMS, mean), **of_task}

    def higher_is_better(self) -> dict[str, bool | None]:
        stock = super().higher_is_better()
        if "bypass" in self._metric_fn_list:
            return stock
        shown = {name: METRICS[name] for name in (*SHOWN, *self.of_task) if name in METRICS}
        return {**stock, **{name: metric.higher_is_better for name, metric in shown.items()}}

    def _record(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The first of all aggregations: the record, with all metrics in it."""
        items = sorted(items, key=lambda item: item["id"])  # from all ranks
        packed = pack(items, task=self.task_name, protocol=self.protocol(items), **self.about_training())
        record = unpack(packed)
        self._values = compute_all(record.rows(), record.gold, record.combine)
        say_if_not_kept()
        # JSON has no NaN.
        return {**packed, "metrics": {name: None if math.isnan(v) else v for name, v in self._values.items()}}

    def about_training(self) -> dict[str, Any]:
        """Return the fields of the training split for `pack`."""
        return {}

    def _value(self, name: str, _: Any) -> float | str | None:
        value = self._values[name]
        undefined = "N/A" if name.endswith("_stderr") else None  # N/A is lm-eval's own word
        return undefined if math.isnan(value) else float(value)

    # ---------------------------------------------------------------- protocol

    def protocol(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return everything that defines the evaluation; model, training and metric settings are not part of it."""
        config, arguments = self.config, self._asked_with
        path, system = str(config.dataset_path), arguments.get("system_instruction")
        chat = template_entry(arguments) or {}
        return {
            "name": self.uq.get("protocol"),
            "version": self.VERSION,
            "output_type": self.OUTPUT_TYPE,
            "dataset": None if os.path.isabs(path) else path,
            "subset": config.dataset_name,
            "split": config["test_split" if self.has_test_docs() else "validation_split"],
            "rows": self.evaluated_rows(),
            **{
                key: config[key] if isinstance(config[key], (str, list)) else None
                for key in ("doc_to_text", "doc_to_choice", "description", "gen_prefix", "target_delimiter")
            },
            "fewshot": self._fewshot(),
            "chat_template": chat.get("chat_template"),
            "system_instruction": None if system is None else digest(system),
            "items": len(items),
            "documents": digest([item["doc_hash"] for item in items]),
            "prompts": digest([item["prompt_hash"] for item in items]),
            "answers": digest([item["answer_hash"] for item in items]),
            **({"chat_arguments": chat["chat_arguments"]} if chat.get("chat_arguments") else {}),
            **({"normalise": self.normalise} if self.normalise else {}),
        }

    def evaluated_rows(self) -> list[int]:
        """Return the first row and the row after the last of the evaluated split."""
        return [0, len(self.eval_docs)]

    def _fewshot(self) -> dict[str, Any] | None:
        if not self.config.num_fewshot:
            return None
        chat = self._asked_with.get("apply_chat_template")
        return {
            "number": self.config.num_fewshot,
            "seed": self._fewshot_seed,
            "split": self.fewshot_cfg.split or self.config.training_split,
            "sampler": str(self.fewshot_cfg.sampler),
            "delimiter": self.config.fewshot_delimiter,
            "multiturn": bool(chat and self._asked_with.get("fewshot_as_multiturn")),
        }


def template_entry(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the entry of the chat template, if one is applied; lm-eval passes the model's method, not the text."""
    if not arguments.get("apply_chat_template"):
        return None
    return prompts.described(arguments.get("chat_template"), str(arguments.get("tokenizer_name", "")))
