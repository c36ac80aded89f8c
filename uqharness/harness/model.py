"""`lm_eval --model bayeslora`: HFLM with an adapter whose answers are averaged over draws of its posterior.

log p(y | x) = log 1/S Σ_s p(y | x, θ_s), normalised over the full vocabulary   (decisions/averaging.md)

All arguments of HFLM work here; this module loads the adapter and answers the three request types.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import transformers
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from uqharness.adapter_io import folder as adapter_io
from uqharness.adapter_io import hub
from uqharness.engine.engine import Engine, Scores
from uqharness.engine.rows import Pair, make_rows, model_input
from uqharness.engine.shortcuts import may_branch
from uqharness.errors import InputError
from uqharness.harness.arguments import (
    check_arguments,
    draws_asked,
    recorded_base,
    sampling_asked,
    whole_number,
    with_gguf,
)
from uqharness.harness.generation import Mixture, Sampler, split_settings, unpadded
from uqharness.results import leakage
from uqharness.results.provenance import ProtocolCheck
from uqharness.results.record import BMALogProb
from uqharness.settings import boolean
from uqharness.training import base_model
from uqharness.training.pairs import PairReader
from uqharness.training.prompts import ChatTemplate, ChatText, FormCheck, Message
from uqharness.training.questions import check_letters, load_again

log = logging.getLogger("lm_eval.uqharness")
Question = tuple[str | None, int | None]  # (task, document)
Asked = tuple[Question, tuple[int, ...], tuple[int, ...]]  # (question, context, continuation)


class BayesLoRA(HFLM):
    """Bayesian model averaging of any adapter folder over `samples` draws (0: the posterior's mean).

    samples="auto": stop drawing for a question when its averaged probabilities move by no more than `tolerance`.
    sampling="antithetic": take draws in pairs that are mirrored at the mean (`draws=` is an alias).
    """

    _model: Any  # HFLM's

    def __init__(
        self,
        adapter: str = "",
        samples: int | str = 10,
        seed: int = 0,
        base: str | None = None,
        mean: bool | str = True,
        allow_leak: bool | str = False,
        tolerance: float = 0.1,
        sampling: str = "independent",
        **kwargs: Any,
    ) -> None:
        mean, allow_leak = boolean("mean", mean), boolean("allow_leak", allow_leak)
        self.sampling = sampling_asked(sampling, kwargs.pop("draws", None))
        kwargs = check_arguments(type(self), adapter, base, kwargs)
        self.samples, self.tolerance = draws_asked(samples, tolerance, self.sampling)
        self._tolerance = tolerance  # of samples=auto, should it be asked for later
        self.seed = whole_number("seed", seed)
        self.adapter, self.folder = str(adapter), adapter_io.fetch(str(adapter))
        self.predictive, self.record = adapter_io.load_predictive(self.folder)
        self.base_name = with_gguf(base or recorded_base(self.folder, self.record), kwargs.pop("gguf_file", None))
        kwargs.setdefault("dtype", None)  # HFLM's own default is the checkpoint's
        kwargs.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")  # its own fails without CUDA
        self.classes = adapter_io.classes(self.folder, self.record)
        if self.classes:  # inputs are cut as in training
            kwargs.setdefault("max_length", (self.record or {}).get("run", {}).get("max_length"))
        self._load(*base_model.base_location(self.base_name), kwargs)
        if self.classes:
            self._max_length = min(self.max_length, base_model.most_tokens(self.model.get_base_model()))
        adapter_io.check_fits(self.model, self.predictive.posterior, self.record, self.base_name)
        self.mean = mean
        self.engine = self._engine()
        self.truncated = 0
        self.leaks = leakage.LeakCheck(self.folder, self.record, allow_leak, load_again, self.world_size > 1)
        self.protocols, self.forms = ProtocolCheck(self.record), FormCheck(self.record)
        self._template: ChatTemplate | None = None  # once it is asked for
        self._tell()

    def _load(self, base: str, gguf_file: str | None, kwargs: dict[str, Any]) -> None:
        self.quantised = kwargs.pop("quantization_config", None)
        try:
            if gguf_file is None and "subfolder" not in kwargs:
                base_model.check_size(base, **({"revision": kwargs["revision"]} if "revision" in kwargs else {}))
            with base_model.gguf_errors(self.base_name, gguf_file):
                super().__init__(pretrained=base, gguf_file=gguf_file, **kwargs)
        except OSError as error:
            raise InputError(f"base model {base!r} cannot be loaded: {str(error).splitlines()[0]}") from error

    def _create_model(self, pretrained: str, dtype: Any = None, quantization_config: Any = None, **kwargs: Any) -> None:
        """Load the base as training does, and put the adapter on it.

        HFLM's own `peft=` shrinks padded embeddings to the tokenizer's size and re-ties a tied head, which fails.
        """
        if self.backend != "causal":
            raise InputError(f"{self.base_name} is a {self.backend} model: bayeslora takes causal ones and encoders")
        base_model.check_kind(self.config, self.base_name, len(self.classes))
        if self.classes:
            self.AUTO_MODEL_CLASS = transformers.AutoModelForSequenceClassification
            kwargs["num_labels"] = len(self.classes)
        dtype = base_model.named_dtype(dtype or base_model.evaluation_dtype(self.device, self.record))
        computed = dtype if isinstance(dtype, torch.dtype) else getattr(self.config, "dtype", None)
        self.quantised = base_model.quantisation(kwargs, computed) or self.quantised
        config = self.quantised or quantization_config  # the base's own
        if kwargs.get("gguf_file"):
            base_model.check_gguf(self.base_name, {"quantization_config": self.quantised})

        def load() -> Any:
            with base_model.without_report():
                super(BayesLoRA, self)._create_model(pretrained, dtype=dtype, quantization_config=config, **kwargs)
            return self.model

        plain = {name: kwargs.get(name) for name in ("gguf_file", "num_labels")}
        plain |= {"revision": "main", "offload_folder": "./offload"}
        special = config or any(value and value != plain.get(name) for name, value in kwargs.items())
        key = (pretrained, kwargs.get("gguf_file"), len(self.classes), str(dtype), str(self.device))
        with base_model.load_errors(self.base_name, kwargs.get("gguf_file")):
            base = base_model.shared(None if special else key, load)
        if kwargs.get("gguf_file"):
            base_model.forget_gguf(base)
        base_model.exact_on_cpu(base)
        base_model.fit_vocabulary(base, len(self.tokenizer))
        self._model = adapter_io.attach(base, self.folder, self.base_name)

    def set_samples(self, samples: int | str) -> None:
        """Set the number of draws to average; the first draws stay the same."""
        self.samples, self.tolerance = draws_asked(samples, self._tolerance, self.sampling)
        self.engine = self._engine()

    def _engine(self) -> Engine:
        how = {"auto": self.tolerance, "pairs": self.sampling == "antithetic", "autocast": self.mixed_precision_dtype}
        return self.predictive.engine(self.model, self.samples, self.seed, mean=self.mean, **how)

    def _tell(self) -> None:
        name = (self.record or {}).get("method", {}).get("name", "plain PEFT LoRA")
        used = self.engine.samples
        note = f" ({self.samples} asked for; the posterior has no more)" if used < self.samples else ""
        log.info("bayeslora: %s, %d draws%s, seed %d, base %s", name, used, note, self.seed, self.base_name)
        if tied := base_model.tied_head_note(self.model):
            log.info("bayeslora: %s", tied)
        run, here = (self.record or {}).get("run", {}), str(base_model.quantised_as(self.quantised) or "")[:4]
        trained = next((bits for bits in ("4bit", "8bit") if run.get(f"load_in_{bits}")), "")
        if self.record and trained != here:
            log.warning("trained on a base in %s, evaluated on one in %s", trained or "full", here or "full")

    # ------------------------------------------------------------------ likelihoods

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.forms.check(requests)
        self.leaks.check(requests)
        self.protocols.check(requests)
        return self.answer(requests, disable_tqdm)

    def answer(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Answer requests like `loglikelihood`, without checks of a task, for prompts that belong to none."""
        self._questions = [(request.task_name, request.doc_id) for request in requests]
        self._ours = {request.task_name for request in requests if hasattr(request, "uq_task")}
        for request in requests:
            if bool(getattr(request, "uq_pair", ())) != bool(self.classes):
                self._refuse_kind(str(request.task_name))
        if not self.classes:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return self._loglikelihood_tokens(self._as_classes(requests), disable_tqdm)

    def _as_classes(self, requests: list[Instance]) -> list[tuple[tuple[str, str], list[int], list[int]]]:
        """Return requests as HFLM's tokenised ones, whose "continuation" is the number of a class."""
        choices: dict[str | None, dict[int, str]] = {}
        for request in requests:
            choices.setdefault(request.task_name, {})[request.idx] = str(request.args[1]).strip()
        readers = {}
        for task, pair in {request.task_name: request.uq_pair for request in requests}.items():
            names = [choices[task][idx] for idx in sorted(choices[task])]
            known = list(self.classes) if self.record else names  # a plain PEFT adapter has no names
            if len(names) != len(self.classes) or set(names) != set(known):
                raise InputError(
                    f"task {task} has the classes {', '.join(names)}, and the head of adapter {self.adapter} has "
                    f"{', '.join(self.classes)}: give a task of the same classes, or an adapter that was trained on it"
                )
            readers[task] = PairReader(self.tokenizer, pair, known, self.max_length)
        tokenised = []
        for request in requests:
            ((context, number),) = readers[request.task_name]([request])
            self.truncated += tuple(context) in readers[request.task_name].cut
            tokenised.append((request.args[:2], list(context), list(number)))
        return tokenised

    def _refuse_kind(self, task: str) -> NoReturn:
        if self.classes:
            raise InputError(
                f"adapter {self.adapter} is a sequence classifier ({', '.join(self.classes)}), and {task or 'this'} is "
                "asked by a prompt: give a task of sentence pairs (rte_uq, mrpc_uq), or the adapter of a causal model"
            )
        raise InputError(
            f"task {task} is answered by a sequence classifier, and adapter {self.adapter} is one of a causal language "
            "model: give an adapter that was trained on an encoder, or another task"
        )

    @contextmanager
    def _open_form(self) -> Iterator[None]:
        """Answer with the predictive's open form inside this context, for requests without choices."""
        before = self.predictive, self.engine
        if self._whole_questions:
            log.info("bayeslora: no answer choices here: %s answers by draws of its weights", self.predictive.kind)
            self.predictive = self.predictive.open_form()
            self.engine = self._engine()
        try:
            yield
        finally:
            self.predictive, self.engine = before

    @property
    def _whole_questions(self) -> bool:
        """Return whether an answer needs all choices of a question at once; that of the mean alone does not."""
        return self.predictive.whole_questions and self.engine.samples > 0

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        # lm-eval repeats a request to fill a rank: a question's continuations are those that differ.
        keys = [(question, tuple(c), tuple(x)) for question, (_, c, x) in zip(self._questions, requests, strict=True)]
        sizes = Counter(question for question, _, _ in set(keys))
        self._check_letters(requests)
        # A combined answer is about all choices of a question at once; where there are none, draws answer.
        whole = [key for key in dict.fromkeys(keys) if not self._whole_questions or sizes[key[0]] > 1]
        answers = self._answers(whole, disable_tqdm)
        if rest := [key for key in dict.fromkeys(keys) if key not in answers]:
            with self._open_form():
                answers |= self._answers(rest, disable_tqdm)
        for key, (strings, _, _) in zip(keys, requests, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, answers[key])
        return [answers[key] for key in keys]

    def _check_letters(self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]]) -> None:
        """Refuse tokenizers that split answer letters unequally in `_uq` tasks."""
        by_question: dict[Question, dict[str, Pair]] = {}
        for question, (strings, context, continuation) in zip(self._questions, requests, strict=True):
            if question[0] in self._ours:
                by_question.setdefault(question, {})[strings[1]] = (context, continuation)
        for (task, doc), pairs in by_question.items():
            check_letters(list(pairs.values()), list(pairs), f"{task}, item {doc}")

    def _answers(self, keys: Sequence[Asked], disable_tqdm: bool) -> dict[Asked, tuple[float, bool]]:
        """Return one answer for each distinct (question, context, continuation)."""
        if not keys:
            return {}
        scores = self._score([key[1:] for key in keys], disable_tqdm, [key[0] for key in keys])
        averages = [self._average(scores.draws[:, k], scores.mean, k, int(n)) for k, n in enumerate(scores.taken)]
        return dict(zip(keys, zip(averages, map(bool, scores.greedy), strict=True), strict=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the joint log-likelihood: log-mean-exp over draws of the whole document's log-likelihood."""
        if self.classes:
            self._refuse_kind(str(requests[0].task_name))
        windows: list[Pair] = []
        owner: list[int] = []
        for i, (text,) in enumerate(request.args for request in requests):
            sizes = {"max_seq_len": self.max_length, "context_len": 1}
            rolling = utils.get_rolling_token_windows(self.tok_encode(text), prefix_token=self.prefix_token_id, **sizes)
            for context, continuation in map(utils.make_disjoint_window, rolling):
                windows.append((list(context), list(continuation)))
                owner.append(i)
        with self._open_form():
            # No window is a choice of a question, even where two have the same input.
            scores = self._score(windows, disable_tqdm, [(None, n) for n in range(len(windows))])
            total = torch.zeros(len(scores.draws), len(requests), dtype=torch.float64)  # [S, documents]
            index = torch.tensor(owner, dtype=torch.long)
            draws = total.index_add(1, index, scores.draws)
            mean = None if scores.mean is None else total.new_zeros(len(requests)).index_add(0, index, scores.mean)
            answers = [self._average(draws[:, i], mean, i) for i in range(len(requests))]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return list(answers)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        if self.classes:
            self._refuse_kind(str(requests[0].task_name))
        with self._open_form():
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _average(self, draws: Tensor, mean: Tensor | None, k: int, taken: int | None = None) -> BMALogProb:
        """Return log 1/S Σ_s exp(draws_s) together with its draws; the mean's own value if S = 0."""
        at_mean, drawn = None if mean is None else float(mean[k]), draws[:taken]
        value = float(drawn.logsumexp(0) - torch.tensor(len(drawn)).double().log()) if len(drawn) else at_mean
        assert value is not None
        terms = [*drawn.tolist(), *[None] * (len(draws) - len(drawn))]
        return BMALogProb(value, terms, mean=at_mean, combine=self.predictive.rule)

    def _score(self, pairs: Sequence[Pair], disable_tqdm: bool, questions: Sequence[Question]) -> Scores:
        """Return scores of all pairs, in order; pairs of a question share a row or a prefix (`logits_cache`).

        A batch is `batch_size` such groups (questions, where answers are about whole ones).
        """
        branch = self.logits_cache and may_branch(self.model, self.max_length)
        whole = self._whole_questions or self.engine.auto or branch
        groups: dict[tuple[object, ...], list[int]] = {}
        for k, (context, continuation) in enumerate(pairs):
            ids = model_input(context, continuation, self.max_length)
            self.truncated += len(ids) < len(context) + len(continuation) - 1
            groups.setdefault(questions[k] if whole else ids if self.logits_cache else (-1 - k,), []).append(k)
        # Longest first, as in HFLM: what does not fit in memory fails at once.
        rows = sorted(groups.values(), key=lambda ks: (-max(len(pairs[k][0]) + len(pairs[k][1]) for k in ks), ks))
        size = self._rows_per_batch(pairs, rows)
        draws = torch.empty(self.predictive.rows(self.samples), len(pairs), dtype=torch.float64)
        mean = torch.empty(len(pairs), dtype=torch.float64)
        greedy, taken = torch.empty(len(pairs), dtype=torch.bool), torch.empty(len(pairs), dtype=torch.long)
        bar = tqdm(total=len(pairs), desc="Running loglikelihood requests", disable=disable_tqdm or self.rank != 0)
        has_mean = True
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            index = torch.tensor([k for members in part for k in members])
            batch = make_rows([[pairs[k] for k in members] for members in part], self.max_length, branch=branch)
            scores = self.engine.score(batch)
            draws[:, index], greedy[index], taken[index] = scores.draws, scores.greedy, scores.taken
            has_mean = scores.mean is not None
            mean[index] = scores.mean if scores.mean is not None else torch.nan
            bar.update(len(index))
        bar.close()
        return Scores(draws, mean if has_mean else None, greedy, taken)

    def _rows_per_batch(self, pairs: Sequence[Pair], rows: list[list[int]]) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        if "auto" not in self.batch_sizes and rows:
            answers = [token for k in rows[0] for token in pairs[k][1]]  # they may all be in one row
            self.batch_sizes["auto"] = self._detect_batch_size([(None, list(pairs[rows[0][0]][0]), answers)])
        return int(self.batch_sizes.get("auto", 1))

    # ------------------------------------------------------------------ generation

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        settings, sampling = split_settings(generation_kwargs)
        draws = max(1, self.engine.samples)
        if draws > 1 and self.engine.one_by_one:
            raise InputError(f"{self.engine.one_by_one}: {draws} draws cannot generate in step: use samples=0")
        mask = settings.pop("attention_mask", None)
        sampler = Sampler(self.seed, unpadded(context, mask), sampling) if sampling["do_sample"] else None
        if mask is not None:
            settings["attention_mask"] = mask.repeat(draws, 1)
        first = int(self.engine.separate_mean)
        with self.engine.using(first, first + draws):
            text = super()._model_generate(
                context.repeat(draws, 1),
                max_length,
                stop,
                do_sample=False,
                logits_processor=[Mixture(draws, sampler)],
                **settings,
            )
        return text[: len(context)]

    # ------------------------------------------------------------------ chats

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template's text by the name in `--apply_chat_template`, for lm-eval's results file."""
        if not chat_template:
            return None
        name = chat_template if isinstance(chat_template, str) else None
        self._template = ChatTemplate.of(self.tokenizer, self.chat_template_args, name, self.base_name)
        return self._template.text

    @property
    def template(self) -> ChatTemplate:
        """Return the tokenizer's template, or the one that `--apply_chat_template` names."""
        self._template = self._template or ChatTemplate.of(self.tokenizer, self.chat_template_args, base=self.base_name)
        return self._template

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> ChatText:
        """Render the prompt as training does."""
        return self.template(chat_history, add_generation_prompt)

    # ------------------------------------------------------------------ bookkeeping

    @property
    def fingerprint(self) -> str:
        """Return a hash of everything that a cached answer depends on."""
        parts = [adapter_io.content_hash(self.folder), self.base_name, self.engine.samples, self.seed]
        return json.dumps([*parts, self.engine.separate_mean, str(self.model.dtype), self.tolerance, self.sampling])

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Stamp the file of --use_cache with the model's fingerprint; refuse the file of another model."""
        stamp = "uqharness: made by"
        if cache_hook.dbdict is not None:
            if self._whole_questions:
                raise InputError("--use_cache can split a question, whose choices are answered together: remove it")
            maker = cache_hook.dbdict.get(stamp)
            if maker is None and len(cache_hook.dbdict):
                maker = "another model"
            if maker not in (None, self.fingerprint):
                raise InputError(
                    f"--use_cache {cache_hook.dbdict.filename} holds answers of {maker}, this run is "
                    f"{self.fingerprint}: give another cache file or delete it"
                )
            cache_hook.dbdict[stamp] = self.fingerprint
        super().set_cache_hook(cache_hook)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
        model = super().create_from_arg_obj(arg_dict, additional_config)
        # lm-eval names the output folder after `peft`, `pretrained`, … and at random if none of them is there.
        arg_dict.setdefault("peft", str(arg_dict["adapter"]).rstrip("/"))
        return model

    def get_model_info(self) -> dict[str, Any]:
        info = super().get_model_info()
        info["uqharness"] = {
            "adapter": self.adapter,
            "adapter_hash": adapter_io.content_hash(self.folder),
            "adapter_revision": hub.commit_of(self.folder),
            "base": self.base_name,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantisation": base_model.quantised_as(self.quantised),
            "samples_asked": "auto" if self.tolerance else self.samples,
            "tolerance": self.tolerance,
            "sampling": self.sampling,
            "samples": self.engine.samples,
            "functions": self.engine.count,
            "combine": self.predictive.rule,
            "mean_is_member": self.predictive.mean_is_member,
            "seed": self.seed,
            "truncated": self.truncated,
            "leaks": self.leaks.found,
            "other_protocol": self.protocols.found,
            "record": self.record,
        }
        return info
