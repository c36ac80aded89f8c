"""The lm-eval task behind every `_uq` YAML (`class: !function uqharness.harness.task.UQTask`): p(choice | question).

lm-eval asks for log p(choice text | prompt) as always; this task normalises it over the question's own
choices, draw by draw, keeps the compact record of all of it, and says which protocol the answers belong to.
Keys of its own, under `metadata.uq` in the YAML:
  protocol       name of the protocol (ours: uq-v1)
  train_choices  training items with another number of choices are left out (counted in `train_dropped`)
  normalise      bytes: log p(answer) is divided by the answer's length before the softmax; nothing without it
  slices         {role: [a, b, c]}: the role is rows a*n//c ... b*n//c of its split of n rows
  keep           evaluated items that are left out, by rule and counted (`keep.py`); none without it
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from uqharness.errors import InputError
from uqharness.harness import keep
from uqharness.harness.scoring import PER_ITEM, Answer, per_byte, score
from uqharness.metrics.registry import METRICS, compute_all
from uqharness.results.reading import RECORD, say_if_not_kept
from uqharness.results.record import PackedRecord, count_choices, digest, pack, unpack
from uqharness.training import prompts

SET_LEVEL = tuple(name for name in METRICS if name not in PER_ITEM)


def doc_hash(doc: Mapping[str, Any]) -> str:
    """Of a document's content, wherever it stands in its split."""
    return digest({key: value for key, value in doc.items() if key != "uq_id"})


class UQTask(ConfigurableTask):
    """A multiple-choice task whose results carry every draw's answer to every item."""

    def __init__(self, config: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self._roles: dict[str, Any] = {}
        self._asked: dict[int, tuple[str, str]] = {}
        self._asked_with: dict[str, Any] = {}
        self._fewshot_seed: int | None = None
        self._values: dict[str, float] = {}
        self._packed = PackedRecord()
        self._answers: dict[tuple[int, tuple[float, ...]], Answer] = {}
        self.train_dropped: dict[str, int] = {}
        self.left_out: dict[str, dict[str, Any]] = {}  # by role, where there is a rule
        super().__init__(config={k: v for k, v in (config or {}).items() if k != "class"}, **kwargs)

    # ---------------------------------------------------------------- documents

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """A `custom_dataset` gets its `dataset_kwargs` only; lm-eval adds metadata, model_args and all."""
        if callable(self.config.custom_dataset):
            self.dataset = self.config.custom_dataset(**(dataset_kwargs or {}))
        else:
            super().download(dataset_kwargs, **kwargs)

    @property
    def uq(self) -> dict[str, Any]:
        return (self.config.metadata or {}).get("uq") or {}

    @property
    def eval_role(self) -> str:
        return "test" if self.has_test_docs() else "validation"

    def training_docs(self) -> Any:
        return self._docs("training") if self.has_training_docs() else None

    def validation_docs(self) -> Any:
        return self._docs("validation") if self.has_validation_docs() else None

    def test_docs(self) -> Any:
        return self._docs("test") if self.has_test_docs() else None

    def tuning_docs(self) -> Any:
        """What settings may be chosen on: the validation split, or None where it is the one evaluated."""
        return self.validation_docs() if self.eval_role == "test" else None

    def _docs(self, role: str) -> Any:
        if role not in self._roles:
            rows = self.dataset[self.config[f"{role}_split"]]
            start, stop = self.bounds(role)
            if (start, stop) != (0, len(rows)):
                rows = rows.select(range(start, stop))
            if self.config.process_docs is not None:
                rows = self.config.process_docs(rows)
            if len(rows) != stop - start:
                raise InputError(
                    f"{self.task_name}: process_docs made {stop - start} items of {role} into "
                    f"{len(rows)}; items are never trimmed: return one for each"
                )
            self.features = list(rows.features)
            rows = rows.add_column("uq_id", list(range(len(rows))))
            choices = [self.labelled(doc, role)[0] for doc in rows.to_list()]
            sizes = [len(answers) for answers in choices]
            self._roles[role] = self._drop(rows, choices) if role == "training" else self._keep(rows, sizes, role)
        return self._roles[role]

    def _drop(self, rows: Any, choices: Sequence[Sequence[str]]) -> Any:
        """Leave out training items with another number of choices, and those where two answers are the same text."""
        wanted = self.uq.get("train_choices")
        other = [wanted is not None and len(answers) != wanted for answers in choices]
        repeated = [len(set(answers)) < len(answers) and not out for answers, out in zip(choices, other, strict=True)]
        self.train_dropped = count_choices([len(a) for a, out in zip(choices, other, strict=True) if out])
        if any(repeated):
            self.train_dropped["repeated"] = sum(repeated)
        stay = [i for i in range(len(choices)) if not (other[i] or repeated[i])]
        return rows if len(stay) == len(choices) else rows.select(stay)

    def _keep(self, rows: Any, sizes: Sequence[int], role: str) -> Any:
        rule = keep.read_rule(self.config.metadata)
        if not rule:
            return rows
        kept, self.left_out[role] = keep.apply(rule, sizes)
        return rows.select(kept)

    def labelled(self, doc: Mapping[str, Any], role: str = "this split") -> tuple[list[str], int]:
        """An item's answer strings and the index of the right one."""
        choices, target = list(self.doc_to_choice(doc)), self.doc_to_target(doc)
        gold = choices.index(target) if isinstance(target, str) and target in choices else target
        if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
            raise InputError(
                f"{self.task_name}: item {doc.get('uq_id')} (id {doc.get('id')!r}) of {role} "
                f"has the label {target!r}, none of its {len(choices)} choices {choices}; "
                "mend its label or use a labelled split"
            )
        return choices, gold

    def bounds(self, role: str) -> tuple[int, int]:
        """First row and row after the last of a role in its split (`metadata.uq.slices`)."""
        rows = len(self.dataset[self.config[f"{role}_split"]])
        start, stop, parts = (self.uq.get("slices") or {}).get(role, (0, 1, 1))
        return rows * start // parts, rows * stop // parts

    def split_record(self, role: str) -> dict[str, Any]:
        """What a role's items are, for the record of whoever uses them."""
        docs = self._docs(role)
        start, stop = self.bounds(role)
        whole = stop - start == len(self.dataset[self.config[f"{role}_split"]])
        return {
            "dataset": self.config.dataset_path,
            "subset": self.config.dataset_name,
            "split": self.config[f"{role}_split"] + ("" if whole else f"[{start}:{stop}]"),
            "items": len(docs),
            "documents": digest([doc_hash(doc) for doc in docs]),
        }

    # ---------------------------------------------------------------- requests

    def set_fewshot_seed(self, seed: int | None = None) -> None:
        self._fewshot_seed = seed
        super().set_fewshot_seed(seed)

    def fewshot_context(self, doc: Any, num_fewshot: int, *args: Any, **kwargs: Any) -> Any:
        with prompts.without_own_shots(self, doc, num_fewshot):
            return super().fewshot_context(doc, num_fewshot, *args, **kwargs)

    def build_all_requests(self, **kwargs: Any) -> None:
        chat, shots = template_entry(kwargs), self.config.num_fewshot or 0
        super().build_all_requests(**kwargs)
        form = prompts.make_form(chat, kwargs.get("system_instruction"), shots, kwargs.get("fewshot_as_multiturn"))
        for instance in self.instances:
            instance.uq_form = form
            instance.uq_protocol = self.uq.get("protocol")  # for models that were trained under one
            instance.uq_task = self  # for the leak check, which looks at its splits
        asked: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for instance in self.instances:
            asked[instance.doc["uq_id"]].append(instance.args[:2])
        self._asked = {key: hash_asked(pairs) for key, pairs in asked.items()}
        self._asked_with = kwargs

    # ---------------------------------------------------------------- answers

    def apply_filters(self) -> Any:
        """lm-eval calls this between the model's answers and `process_results`: score all items at once."""
        out = super().apply_filters()
        self._answers = {}
        if "bypass" in self._metric_fn_list:
            return out
        asked: dict[int, list[Any]] = defaultdict(list)
        for instance in sorted(self.instances, key=lambda instance: instance.idx):
            asked[instance.doc["uq_id"]].append(instance)
        for name in self.instances[0].filtered_resps:
            scores = {key: tuple(one.filtered_resps[name][0] for one in ones) for key, ones in asked.items()}
            labelled = [self.labelled(ones[0].doc) for ones in asked.values()]
            given = [self._normalised(one, texts) for one, (texts, _) in zip(scores.values(), labelled, strict=True)]
            answers = score(given, [gold for _, gold in labelled], [f"{self.task_name}: item {key}" for key in asked])
            self._answers |= dict(zip(scores.items(), answers, strict=True))
        return out

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        if "bypass" in self._metric_fn_list:  # --predict_only
            return super().process_results(doc, results)
        key, (texts, gold) = doc["uq_id"], self.labelled(doc)
        scores = tuple(value for value, _ in results)
        answer = self._answers.get((key, scores))
        if answer is None:  # not through `apply_filters`
            answer = score([self._normalised(scores, texts)], [gold], [f"{self.task_name}: item {key}"])[0]
        prompt_hash, answer_hash = self._asked[key]
        out: dict[str, Any] = {
            "uq_record": {
                "id": key,
                "gold": gold,
                "probs": answer.probs,
                "logp": answer.rows,
                "combine": answer.rule,
                "doc_hash": doc_hash(doc),
                "prompt_hash": prompt_hash,
                "answer_hash": answer_hash,
            },
            RECORD: None,
        }
        out |= answer.values
        # Set-level metrics have no value per item: their aggregation reads what the record's has computed,
        # and the key `<name>_stderr` after some fills lm-eval's column for its standard error.
        for name in SET_LEVEL:
            out |= dict.fromkeys((name, *beside(name)))
        return out

    def _normalised(self, scores: Sequence[float], answers: Sequence[str]) -> Sequence[float]:
        return per_byte(scores, answers) if self.normalise else scores

    @property
    def normalise(self) -> str | None:
        """The YAML's rule, or `--metadata '{"normalise": "bytes"}'` of the command line."""
        rule = (self.config.metadata or {}).get("normalise", self.uq.get("normalise"))
        if rule not in (None, "bytes"):
            raise InputError(f"{self.task_name}: normalise is {rule!r}: write bytes, or leave it out")
        return rule

    def aggregation(self) -> dict[str, Callable[[Any], Any]]:
        if "bypass" in self._metric_fn_list:
            return super().aggregation()
        names = [each for name in SET_LEVEL for each in (name, *beside(name))]
        return {
            "uq_record": self._record,
            RECORD: lambda _: self._packed,
            **dict.fromkeys(PER_ITEM, mean),
            **{name: partial(self._value, name) for name in names},
        }

    def higher_is_better(self) -> dict[str, bool | None]:
        if "bypass" in self._metric_fn_list:
            return super().higher_is_better()
        return {name: metric.higher_is_better for name, metric in METRICS.items()}

    def _record(self, items: Sequence[Mapping[str, Any]]) -> str:
        """The first of all aggregations computes what the others hand out; itself a line in the table."""
        items = sorted(items, key=lambda item: item["id"])  # from all ranks
        self._packed = pack(items, task=self.task_name, protocol=self.protocol(items), train_dropped=self.train_dropped)
        record = unpack(self._packed)
        self._values = compute_all(record.rows(), record.gold, record.combine)
        say_if_not_kept()
        return self._packed.summary()

    def _value(self, name: str, _: Any) -> float | str | None:
        value = self._values[name]
        undefined = "N/A" if name.endswith("_stderr") else None  # JSON has no NaN; N/A is lm-eval's own word
        return undefined if np.isnan(value) else float(value)

    # ---------------------------------------------------------------- protocol

    def protocol(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """All that defines the evaluation: not the model, not the training, not the settings of a metric."""
        config, asked = self.config, self._asked_with
        start, stop = self.bounds(self.eval_role)
        path, rule = str(config.dataset_path), keep.read_rule(config.metadata)
        chat = template_entry(asked) or {}
        return {
            "name": self.uq.get("protocol"),
            "version": self.VERSION,
            "output_type": self.OUTPUT_TYPE,
            "dataset": None if os.path.isabs(path) else path,
            "subset": config.dataset_name,
            "split": config[f"{self.eval_role}_split"],
            "rows": [start, stop],
            **{
                key: config[key] if isinstance(config[key], (str, list)) else None
                for key in ("doc_to_text", "doc_to_choice", "description", "gen_prefix", "target_delimiter")
            },
            "fewshot": self._fewshot(),
            "chat_template": chat.get("chat_template"),
            "system_instruction": optional_digest(asked.get("system_instruction")),
            "items": len(items),
            "documents": digest([item["doc_hash"] for item in items]),
            "prompts": digest([item["prompt_hash"] for item in items]),
            "answers": digest([item["answer_hash"] for item in items]),
            **({"chat_arguments": chat["chat_arguments"]} if chat.get("chat_arguments") else {}),
            **({"normalise": self.normalise} if self.normalise else {}),
            **({"keep": rule, "left_out": self.left_out[self.eval_role]} if rule else {}),
        }

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


def beside(name: str) -> tuple[str, ...]:
    """What is reported with a set-level metric: its standard error, or the ends of its 95 % interval."""
    return tuple(f"{name}_{end}" for end in METRICS[name].ends)


def hash_asked(pairs: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Hashes of an item's prompt (or prompts, where they differ by choice) and of its answer strings."""
    prompts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
    return digest(prompts[0] if len(set(prompts)) == 1 else prompts), digest(answers)


def optional_digest(text: str | None) -> str | None:
    return None if text is None else digest(text)


def template_entry(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The chat template where one is applied; lm-eval hands over the model's method and not the text."""
    if not asked.get("apply_chat_template"):
        return None
    return prompts.described(asked.get("chat_template"), str(asked.get("tokenizer_name", "")))
