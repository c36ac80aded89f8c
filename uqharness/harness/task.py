"""The lm-eval task behind every `_uq` YAML (`class: !function uqharness.harness.task.UQTask`): p(choice | question).

Metrics and record are those of `ChoiceTask`; this task adds checked documents, in parts of splits, for training too.
Keys of its own, under `metadata.uq` in the YAML:
  protocol       name of the protocol (ours: uq-v1)
  train_choices  training items with another number of choices are removed (counted in `train_dropped`)
  normalise      bytes: log p(answer) is divided by the answer's length before the softmax; nothing without it
  slices         {role: [a, b, c]}: the role is rows a*n//c ... b*n//c of its split of n rows
  keep           rule by which evaluated items are removed and counted (`keep.py`); default: none
  pair           the one or two fields of a document that a sequence classifier reads, its choices being the classes
  show           more metrics that lm-eval prints, beside those of every task
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uqharness.errors import InputError
from uqharness.harness import keep
from uqharness.harness.choices import ChoiceTask, doc_hash
from uqharness.results.record import count_choices, digest
from uqharness.training import prompts


class UQTask(ChoiceTask):
    """A multiple-choice task whose results carry every draw's answer to every item."""

    def __init__(self, config: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self._roles: dict[str, Any] = {}
        self.train_dropped: dict[str, int] = {}
        self.left_out: dict[str, dict[str, Any]] = {}  # by role, where there is a rule
        super().__init__(config, **kwargs)

    # ---------------------------------------------------------------- documents

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """A `custom_dataset` gets its `dataset_kwargs` only; lm-eval adds metadata, model_args and all."""
        if callable(self.config.custom_dataset):
            self.dataset = self.config.custom_dataset(**(dataset_kwargs or {}))
        else:
            super().download(dataset_kwargs, **kwargs)

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
        """Return the documents for tuning: the validation split, or None if it is the evaluated one."""
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
            if role == "training":
                rows = self._drop(rows, choices)
            elif rule := keep.read_rule(self.config.metadata):
                indices, self.left_out[role] = keep.apply(rule, [len(answers) for answers in choices])
                rows = rows.select(indices)
            self._roles[role] = rows
        return self._roles[role]

    def _drop(self, rows: Any, choices: Sequence[Sequence[str]]) -> Any:
        """Remove training items with another number of choices, and those with two identical answers."""
        wanted = self.uq.get("train_choices")
        other = [wanted is not None and len(answers) != wanted for answers in choices]
        repeated = [len(set(answers)) < len(answers) and not out for answers, out in zip(choices, other, strict=True)]
        self.train_dropped = count_choices([len(a) for a, out in zip(choices, other, strict=True) if out])
        if any(repeated):
            self.train_dropped["repeated"] = sum(repeated)
        stay = [i for i in range(len(choices)) if not (other[i] or repeated[i])]
        return rows if len(stay) == len(choices) else rows.select(stay)

    def bounds(self, role: str) -> tuple[int, int]:
        """Return the first row and the row after the last of a role in its split (`metadata.uq.slices`)."""
        rows = len(self.dataset[self.config[f"{role}_split"]])
        start, stop, parts = (self.uq.get("slices") or {}).get(role, (0, 1, 1))
        return rows * start // parts, rows * stop // parts

    def split_record(self, role: str) -> dict[str, Any]:
        """Return the record's entry of a role's items."""
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

    def fewshot_context(self, doc: Any, num_fewshot: int, *args: Any, **kwargs: Any) -> Any:
        with prompts.without_own_shots(self, doc, num_fewshot):
            return super().fewshot_context(doc, num_fewshot, *args, **kwargs)

    def build_all_requests(self, **kwargs: Any) -> None:
        super().build_all_requests(**kwargs)
        for instance in self.instances:
            instance.uq_task = self  # for the leak check, which looks at its splits

    # ---------------------------------------------------------------- what the record says

    def about_training(self) -> dict[str, Any]:
        return {"train_dropped": self.train_dropped}

    def evaluated_rows(self) -> list[int]:
        return list(self.bounds(self.eval_role))

    def protocol(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rule = keep.read_rule(self.config.metadata)
        left_out = {"keep": rule, "left_out": self.left_out[self.eval_role]} if rule else {}
        return {**super().protocol(items), **left_out}
