"""Chat prompts and shots: training asks what lm-eval asks, and an adapter is asked in the form it was trained in."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from datetime import datetime
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from tests.tiny import make_base
from tests.tiny_adapter import lines_of, save
from tests.tiny_task import make_task
from tests.training.test_data import make_task as text_task
from uqharness.adapter_io import folder as adapter_io
from uqharness.cli import main
from uqharness.errors import InputError
from uqharness.harness.task import UQTask
from uqharness.results.reading import RECORD
from uqharness.results.record import unpack
from uqharness.settings import Run, recipe_hash
from uqharness.training import prompts
from uqharness.training.data import ChoiceData
from uqharness.training.prompts import PLAIN, ChatTemplate, ChatText, Prompting, difference
from uqharness.training.questions import PairEncoder

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = f"{{% for m in messages %}}{TURN}{{% endfor %}}{ASK}"
TEMPLATES = {
    "chatml": CHATML,
    "bos": "{{ bos_token }}" + CHATML.replace("assistant\n", "assistant:"),
    "thinking": CHATML + "{% if not enable_thinking | default(true) %}{{ '<think></think>\n\n' }}{% endif %}",
    "no system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML,
}
DATED = "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML


def byte_tokenizer(template: Any = None) -> PreTrainedTokenizerFast:
    """One token for each byte and for letters after a space; `<s>` is added, as Llama's is."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in "ABCDE"]
    vocabulary = [*SPECIAL, *symbols, *("".join(pair) for pair in merges)]
    made = Tokenizer(BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    extra = {"additional_special_tokens": SPECIAL[2:]}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>", **extra)
    fast.chat_template = template
    return fast


def chat_base(folder: Path, template: str | None) -> Path:
    make_base(folder, vocab_size=300, max_position_embeddings=1024)
    byte_tokenizer(template).save_pretrained(folder)
    return folder


def hf(tokenizer: Any, **kwargs: Any) -> HFLM:
    """lm-eval's own model, whose weights do not matter here."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    return HFLM(pretrained=model, tokenizer=tokenizer, **kwargs)


def asked_by_lm_eval(task: ConfigurableTask, lm: HFLM, **how: Any) -> tuple[list[str], list[Any]]:
    """Prompts and token pairs of `lm_eval --apply_chat_template`."""
    pairs: list[Any] = []
    lm._loglikelihood_tokens = lambda requests, **_: pairs.extend((c, a) for _, c, a in requests)  # type: ignore
    task.set_fewshot_seed(1234)
    render = {"chat_template": lm.apply_chat_template, "tokenizer_name": "x"}
    task.build_all_requests(rank=0, world_size=1, apply_chat_template=True, **render, **how)
    lm.loglikelihood(task.instances, disable_tqdm=True)
    return [instance.args[0] for instance in task.instances], pairs


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"w{n} is", "choices": ["A", "B", "C"], "label": n % 3} for n in range(first, first + count)]


def check_equal_prompts(tokenizer: Any, **changes: Any) -> None:
    """Training on some items and lm-eval's evaluation of the same items: every prompt, every token."""
    lm = hf(tokenizer, enable_thinking=False)
    encode, splits = PairEncoder(tokenizer), {"train": rows(3), "test": rows(3), "validation": rows(5, 100)}
    for shots in (0, 2):
        config = {"num_fewshot": shots or None, "fewshot_split": "validation", **changes}
        for system, multiturn in ((None, True), ("Be brief.", True), ("Be brief.", False)):
            prompting = Prompting(ChatTemplate.of(tokenizer), system, shots, multiturn)
            task = text_task(splits, **config)
            how = {"system_instruction": system, "fewshot_as_multiturn": multiturn}
            texts, wanted = asked_by_lm_eval(task, lm, **how)
            data = ChoiceData.from_task(text_task(splits, **config), encode, 4096, prompting=prompting)
            assert [pair for question in data.train for pair in question.pairs] == wanted and len(wanted) == 9
            again = text_task(splits, **config)
            again.set_fewshot_seed(1234)
            contexts = [prompting.context(again, doc) for doc in again.training_docs()]
            assert [text for text in contexts for _ in range(3)] == texts
            assert (system is None or system in texts[0]) and texts[0].count("w10") == shots


@pytest.mark.parametrize("name", ["chatml", "bos", "thinking"])
@pytest.mark.parametrize("prefix", [None, "Answer:"])
def test_training_asks_what_lm_eval_asks(name: str, prefix: str | None) -> None:
    tokenizer = byte_tokenizer(TEMPLATES[name])
    check_equal_prompts(tokenizer, gen_prefix=prefix, doc_to_text="{{text}}", description="Choose. ")
    text = ChatTemplate.of(tokenizer)([{"role": "user", "content": "hi"}])
    assert ("<think></think>" in text) == (name == "thinking")
    (context, answer), *_ = PairEncoder(tokenizer)([Instance("loglikelihood", {}, (text, "A"), 0)])
    assert (context + answer).count(0) == 1 and tokenizer.decode(answer).strip() == "A"  # BOS once


def test_training_asks_what_lm_eval_asks_of_smollm2(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    check_equal_prompts(tokenizer, doc_to_text="{{text}}")
    text = ChatTemplate.of(tokenizer)([{"role": "user", "content": "hi"}])
    (context, answer), *_ = PairEncoder(tokenizer)([Instance("loglikelihood", {}, (text, "A"), 0)])
    assert tokenizer.decode(context).endswith("<|im_start|>assistant") and tokenizer.decode(answer) == "\nA"
    assert len(answer) == 2  # the line break, which all choices share, and the letter


def test_a_template_without_system_messages_gets_none_as_in_lm_eval() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["no system"])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    with lines_of("lm_eval.uqharness") as lines:
        prompts._say_no_system.cache_clear()
        text = ChatTemplate.of(tokenizer)(messages)
    assert text == hf(tokenizer).apply_chat_template(messages) and "brief" not in text
    assert lines == ["the chat template has no system message: it is omitted, as in lm-eval"]


def test_the_date_in_a_prompt_is_fixed_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, days, ours, theirs = byte_tokenizer(DATED), [(2025, 1, 2), (2026, 11, 29)], set(), set()
    for day in days:
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, tz=None, day=day: datetime(*day))})
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        message = [{"role": "user", "content": "hi"}]
        ours.add(ChatTemplate.of(tokenizer)(message))
        theirs.add(hf(tokenizer).apply_chat_template(message))
        assert chat_template_utils.datetime is clock
    assert len(theirs) == 2 and len(ours) == 1 and ours.pop().startswith("Today Date: 26 Jul 2024\n")
    assert ChatTemplate.of(tokenizer).entry["chat_arguments"] == {"strftime_now": "26 Jul 2024"}
    assert ChatTemplate.of(byte_tokenizer(CHATML)).entry["chat_arguments"] == {}


def test_a_rendered_prompt_survives_copies() -> None:
    text = ChatTemplate.of(byte_tokenizer(CHATML))([{"role": "user", "content": "hi"}])
    for twin in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert twin == text and isinstance(twin, ChatText) and twin.entry == text.entry


# ---------------------------------------------------------------- shots


def shown(task: Any, prompting: Prompting, docs: Any) -> list[str]:
    task.set_fewshot_seed(1234)
    return [str(prompting.context(task, doc)) for doc in docs]


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_an_item_is_never_its_own_shot_in_training(sampler: str) -> None:
    """4 items, each of them twice: 3 shots of 6 others, where lm-eval's own draw takes the item itself."""
    items = [{**row, "uq_id": n} for n, row in enumerate([*rows(4), *rows(4)])]
    task = text_task({"train": items}, doc_to_text="{{text}}", fewshot_config={"sampler": sampler})
    contexts = shown(task, Prompting(num_fewshot=3), items)
    assert [text.count(item["text"]) for text, item in zip(contexts, items, strict=True)] == [1] * 8
    assert contexts == shown(task, Prompting(num_fewshot=3), items)  # by the seed alone
    task.set_fewshot_seed(1234)
    stock = [str(task.fewshot_context(item, num_fewshot=3)) for item in items]
    assert max(text.count(item["text"]) for text, item in zip(stock, items, strict=True)) > 1


def test_an_item_is_never_its_own_shot_in_evaluation() -> None:
    """Where the split of shots is the validation split that is evaluated, lm-eval looks away."""
    splits = {"validation": Dataset.from_list(rows(5)), "train": Dataset.from_list(rows(3, 50))}
    config = {
        "task": "own_uq",
        "custom_dataset": lambda **_: splits,
        "dataset_path": "x",
        "output_type": "multiple_choice",
        "training_split": "train",
        "validation_split": "validation",
        "fewshot_split": "validation",
        "num_fewshot": 3,
        "doc_to_text": "text",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [],
        "metadata": {"version": 1},
    }
    task = UQTask(config)
    task.set_fewshot_seed(1234)
    task.build_all_requests(rank=0, world_size=1)
    assert [i.args[0].count(i.doc["text"]) for i in task.instances] == [1] * 15
    assert all(i.uq_form == {**PLAIN, "num_fewshot": 3} for i in task.instances)


def test_the_same_items_are_held_out_however_they_are_asked() -> None:
    task = text_task({"train": rows(20)}, doc_to_text="{{text}}")
    tokenizer = byte_tokenizer(CHATML)
    fingerprints = []
    for prompting in (Prompting(), Prompting(ChatTemplate.of(tokenizer), "Be brief.", 2)):
        data = ChoiceData.from_task(task, PairEncoder(tokenizer), 4096, tune=True, prompting=prompting)
        fingerprints.append([[q.fingerprint for q in part] for part in (data.train, data.tune)])
        assert data.record["form"] == prompting.form and data.record["multi_token_choices"] == 0
    assert fingerprints[0] == fingerprints[1] and len(fingerprints[0][1]) == 2


def test_the_number_of_shots_is_the_tasks_own_unless_another_is_asked_for() -> None:
    tokenizer = byte_tokenizer()
    own = text_task({"train": rows(20)}, num_fewshot=2)
    assert Prompting.of(own, tokenizer, Run()).num_fewshot == 2
    assert Prompting.of(own, tokenizer, Run(num_fewshot=0)).num_fewshot == 0
    assert Prompting.of(text_task({"train": rows(20)}), tokenizer, Run()).form == PLAIN
    with pytest.raises(InputError, match="zero-shot in its YAML"):
        Prompting.of(text_task({"train": rows(20)}, num_fewshot=0), tokenizer, Run(num_fewshot=2))
    with pytest.raises(InputError, match="20 items to take shots from: 20 are too many"):
        Prompting.of(text_task({"train": rows(20)}), tokenizer, Run(num_fewshot=20))


# ---------------------------------------------------------------- letters


def test_letters_that_the_tokenizer_splits_are_refused() -> None:
    tokenizer = byte_tokenizer(CHATML)
    items = [{**row, "choices": ["A", "B", "é"]} for row in rows(2)]
    with pytest.raises(InputError, match="train item 0: the tokenizer splits the answer letter 'é' into 3 tokens"):
        ChoiceData.from_task(text_task({"train": items}), PairEncoder(tokenizer), 99)
    items = [{**row, "choices": ["A", "F", "G"]} for row in rows(2)]  # ' A' is one token, ' F' are two
    with pytest.raises(InputError, match="'F' into 2 tokens: take a task with answers as text"):
        ChoiceData.from_task(text_task({"train": items}), PairEncoder(tokenizer), 99)
    items = [{**row, "choices": ["F", "G", "H"]} for row in rows(2)]  # the space is common to all
    assert ChoiceData.from_task(text_task({"train": items}), PairEncoder(tokenizer), 99).train
    for answers in (["yes", "no", "perhaps"], ["1", "A", "²"], ["3", "7", "٣"]):  # words; a digit is no letter
        items = [{**row, "choices": answers} for row in rows(2)]
        assert ChoiceData.from_task(text_task({"train": items}), PairEncoder(tokenizer), 99).train


# ---------------------------------------------------------------- the form


CHAT = {"chat_template": "1a", "chat_arguments": {}}


@pytest.mark.parametrize(
    "trained, evaluated, words",
    [
        ({}, CHAT, "trained without a chat template: remove --apply_chat_template"),
        (CHAT, {}, "trained with a chat template: add --apply_chat_template"),
        (CHAT, {**CHAT, "chat_template": "2b"}, "trained with the chat template 1a (this tokenizer's is 2b): give the"),
        ({**CHAT, "chat_arguments": {"enable_thinking": False}}, CHAT, 'chat_template_args {"enable_thinking": false}'),
        ({"system_instruction": "3c"}, {}, "add --system_instruction 'Be brief.'"),
        ({}, {"system_instruction": "3c"}, "without a system instruction: remove --system_instruction"),
        ({"num_fewshot": 2}, {}, "trained with 2 shots: add --num_fewshot 2"),
        ({}, {"num_fewshot": 2}, "trained zero-shot: add --num_fewshot 0"),
        (
            {**CHAT, "num_fewshot": 2, "multiturn": False},
            {**CHAT, "num_fewshot": 2, "multiturn": True},
            "trained with its shots in one message: add --fewshot_as_multiturn false",
        ),
        ({**CHAT, "num_fewshot": 1}, {}, "add --apply_chat_template, add --num_fewshot 1"),
    ],
)
def test_the_flag_to_add_or_to_remove_is_said(trained: dict[str, Any], evaluated: dict[str, Any], words: str) -> None:
    run = {"system_instruction": "Be brief."}
    assert words in str(difference({**PLAIN, **trained}, {**PLAIN, **evaluated}, run))
    assert difference({**PLAIN, **trained}, {**PLAIN, **trained}, run) is None


def test_recipe_hashes_are_as_they_were_and_hold_the_form() -> None:
    data: dict[str, Any] = {"splits": [{"purpose": "fit", "fingerprints": ["a", "b"]}]}
    run = Run(base="b", task="t", target_modules=("q_proj", "v_proj", "lm_head"))
    before = "v2-086d46eebdfd4028"  # as of the commit before
    assert recipe_hash(run, data) == recipe_hash(run, {**data, "form": PLAIN}) == before
    assert recipe_hash(dataclasses.replace(run, num_fewshot=0), {**data, "form": PLAIN}) == before
    forms = [CHAT, {**CHAT, "chat_template": "2b"}, {"num_fewshot": 2}, {"system_instruction": "3c"}]
    assert len({recipe_hash(run, {**data, "form": {**PLAIN, **form}}) for form in forms} - {before}) == len(forms)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a template, a `_uq` task, and a stock task of the same questions."""
    folder = tmp_path_factory.mktemp("chat")
    chat_base(folder / "base", TEMPLATES["thinking"])
    make_task(folder / "tasks")
    make_task(folder / "tasks", "tiny_stock", uq=False)
    return folder


def train(world: Path, out: Path, *words: str, base: str = "base") -> int:
    fixed = ["--base", str(world / base), "--task", "tiny_uq", "--include-path", str(world / "tasks"), "--lr", "1e-2"]
    small = ["--steps", "2", "--lora-r", "2", "--target-modules", "q_proj", "--device", "cpu", "--max-length", "512"]
    return main(["train", "mle", *fixed, *small, "--out", str(out), *words])


@pytest.fixture(scope="module")
def adapters(world: Path) -> dict[str, str]:
    assert train(world, world / "chat", "--apply-chat-template", "--system-instruction", "Be brief.") == 0
    assert train(world, world / "shots", "--num-fewshot", "2") == 0
    save(world / "before", world / "base", target_modules=["q_proj"])  # a record that says nothing of prompts
    save(world / "plain", world / "base", std=None, target_modules=["q_proj"])
    return {name: str(world / name) for name in ("chat", "shots", "before", "plain")}


SYSTEM = {"system_instruction": "Be brief."}


def evaluate(world: Path, adapter: str, task: str = "tiny_uq", **how: Any) -> dict[str, Any]:
    manager = TaskManager(include_defaults=False, include_path=str(world / "tasks"))
    model = {"adapter": adapter, "samples": 0}
    done: dict[str, Any] = lm_eval.simple_evaluate(
        "bayeslora", model, tasks=[task], task_manager=manager, limit=3, bootstrap_iters=0, device="cpu", **how
    )
    return done


@pytest.mark.parametrize(
    "adapter, task, how, words",
    [
        ("chat", "tiny_uq", {"apply_chat_template": True, **SYSTEM}, None),
        ("chat", "tiny_uq", SYSTEM, "task tiny_uq has another prompt format .* add --apply_chat_template$"),
        ("chat", "tiny_uq", {"apply_chat_template": True}, "add --system_instruction 'Be brief.'$"),
        ("chat", "tiny_stock", {"apply_chat_template": True, **SYSTEM}, None),
        ("chat", "tiny_stock", {}, "task tiny_stock has another prompt format .* add --apply_chat_template$"),
        ("shots", "tiny_uq", {"num_fewshot": 2}, None),
        ("shots", "tiny_uq", {}, "trained with 2 shots: add --num_fewshot 2$"),
        ("before", "tiny_uq", {}, None),
        ("before", "tiny_uq", {"apply_chat_template": True}, "remove --apply_chat_template$"),
        ("before", "tiny_stock", {"apply_chat_template": True}, "remove --apply_chat_template$"),
        ("plain", "tiny_uq", {"apply_chat_template": True}, None),
    ],
)
def test_an_adapter_is_asked_in_the_form_that_it_was_trained_in(
    world: Path,
    adapters: dict[str, str],
    adapter: str,
    task: str,
    how: dict[str, Any],
    words: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    with lines_of("lm_eval.uqharness") as lines:
        if words:
            with pytest.raises(InputError, match=words):
                evaluate(world, adapters[adapter], task, **how)
            return
        results = evaluate(world, adapters[adapter], task, **how)
    said = [line for line in lines if "prompts" in line]
    if task == "tiny_stock":
        assert said == [
            "bayeslora: of tiny_stock's prompts only the chat template is compared with the adapter's training"
        ]
    elif adapter == "plain":
        assert said == ["bayeslora: the adapter does not record its prompt format: no prompts are refused"]
    else:
        assert not said
    if task == "tiny_uq" and "apply_chat_template" in how:
        protocol = unpack(results["results"]["tiny_uq"][f"{RECORD},none"]).protocol
        entry = ChatTemplate.of(byte_tokenizer(TEMPLATES["thinking"])).entry
        assert (protocol["chat_template"], protocol["chat_arguments"]) == tuple(entry.values())
        assert entry["chat_arguments"] == {"enable_thinking": False}


@pytest.mark.parametrize("uq", [True, False])
def test_split_letters_are_refused_in_our_tasks_and_summed_in_stock_ones(
    world: Path, adapters: dict[str, str], uq: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    name = f"split_{uq}"
    make_task(world / "tasks", name, uq=uq, doc_to_choice=["A", "F", "G"])
    if uq:
        with pytest.raises(InputError, match="split_True, item 0: the tokenizer splits the answer letter 'F' into 2"):
            evaluate(world, adapters["before"], name)
    else:
        assert "acc,none" in evaluate(world, adapters["before"], name)["results"][name]


def test_training_records_and_prints_the_form(
    world: Path, adapters: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is built on the adapter asks as it was asked."""
    record = adapter_io.read_record(Path(adapters["chat"]))
    assert record is not None
    entry = ChatTemplate.of(byte_tokenizer(TEMPLATES["thinking"])).entry
    assert record["data"]["form"] == {**PLAIN, **entry, "system_instruction": prompts.digest("Be brief.")}
    assert record["recipe_hash"] != json.loads((Path(adapters["shots"]) / "uq_config.json").read_text())["recipe_hash"]
    assert (
        "--tasks tiny_uq --apply_chat_template --system_instruction 'Be brief.'"
        in (Path(adapters["chat"]) / "README.md").read_text()
    )
    lap = ["train", "laplace", "--adapter", adapters["chat"], "--include-path", str(world / "tasks"), "--device", "cpu"]
    assert main([*lap, "--out", str(tmp_path / "lap")]) == 0
    assert "tiny_uq --apply_chat_template --system_instruction 'Be brief.'" in capsys.readouterr().out
    built = adapter_io.read_record(tmp_path / "lap")
    assert built is not None and built["data"]["form"] == record["data"]["form"]
    assert main([*lap, "--out", str(tmp_path / "other"), "--no-apply-chat-template"]) == 2
    assert "has other prompts than this command" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_tokenizer_without_a_template_is_refused(
    world: Path, adapters: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In training before the weights are read: there are none."""
    chat_base(tmp_path / "bare", None)
    for weights in (tmp_path / "bare").glob("*.safetensors"):
        weights.unlink()
    assert train(world, tmp_path / "out", "--apply-chat-template", base=str(tmp_path / "bare")) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uqharness: ")]
    assert len(err) == 1 and "has no chat template: remove --apply_chat_template" in err[0]
    task, lm = UQTask({**base_config(), "num_fewshot": 0}), hf(byte_tokenizer())
    with pytest.raises(InputError, match="no chat template"):
        asked_by_lm_eval(task, lm)


def base_config() -> dict[str, Any]:
    splits = {"validation": Dataset.from_list(rows(5)), "train": Dataset.from_list(rows(3, 50))}
    return {
        "task": "some_uq",
        "custom_dataset": lambda **_: splits,
        "dataset_path": "x",
        "output_type": "multiple_choice",
        "training_split": "train",
        "validation_split": "validation",
        "doc_to_text": "text",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [],
        "metadata": {"version": 1},
    }


def test_the_hash_is_of_the_text_also_where_there_are_several_templates() -> None:
    """lm-eval renders with the default one, whatever name its flag was given; `bayeslora` with the one named."""
    tokenizer = byte_tokenizer({"default": CHATML, "other": TEMPLATES["bos"]})
    lm = hf(tokenizer)
    wanted = prompts.digest(CHATML)
    assert prompts.described(lm.apply_chat_template, "any name") == {"chat_template": wanted, "chat_arguments": {}}
    assert ChatTemplate.of(tokenizer).entry["chat_template"] == wanted
    assert ChatTemplate.of(tokenizer, name="other").entry["chat_template"] == prompts.digest(TEMPLATES["bos"])
    assert ChatTemplate.of(tokenizer, name="other")([{"role": "user", "content": "hi"}]).startswith("<s>")
    with pytest.raises(InputError, match="no chat template 'third': the tokenizer has default, other"):
        ChatTemplate.of(tokenizer, name="third")
