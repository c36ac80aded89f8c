from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from tiny import make_base
from transformers import AutoTokenizer

from uqharness.errors import InputError
from uqharness.method import Method
from uqharness.results.leakage import fingerprint
from uqharness.settings import Run, digest, recipe_hash
from uqharness.training.data import ChoiceData, hold_out, prepare
from uqharness.training.questions import PairEncoder, load_task, read_questions

LETTERS = ["A", "B", "C"]


def rows(count: int, first: int = 0, **extra: Any) -> list[dict]:
    # 31 is prime to the 40 words: items differ.
    return [
        {"text": f"w{n % 40} w{n * 7 % 40} w{n // 40}", "choices": LETTERS, "label": n % 3, **extra}
        for n in range(first, first + count)
    ]


def make_task(splits: dict[str, list[dict]], **config: Any) -> ConfigurableTask:
    if splits.keys() == {"train"}:  # lm-eval wants something to evaluate
        splits = {**splits, "validation": splits["train"][:1]}
    names = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
    settings = {
        "task": "tiny_mc",
        "custom_dataset": lambda **_: {name: Dataset.from_list(items) for name, items in splits.items()},
        "output_type": "multiple_choice",
        "doc_to_text": "Choices: {{text}} Answer:",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        **{names[name]: name for name in splits},
        **config,
    }
    return ConfigurableTask(config=settings)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def encoder(base):
    return PairEncoder(AutoTokenizer.from_pretrained(base))


def data_of(task: Any, encoder: PairEncoder, **options: Any) -> ChoiceData:
    return ChoiceData.from_task(task, encoder, 32, **options)


@pytest.mark.parametrize(
    "path, recorded", [("allenai/ai2_arc", "allenai/ai2_arc"), ("/home/me/secret", None), (None, None)]
)
def test_the_record_names_the_data_set_but_no_folder_of_this_machine(encoder, path, recorded):
    config = {"dataset_path": path, "dataset_name": "ARC-Easy"} if path else {}
    record = data_of(make_task({"train": rows(6), "test": rows(6)}, **config), encoder).record
    assert (record["dataset"], record["subset"]) == (recorded, "ARC-Easy" if path else None)


def test_questions_are_the_requests_of_the_evaluation(encoder):
    """Oracle: lm-eval's own build_all_requests on the same documents."""
    items = rows(7)
    task = make_task({"train": items, "test": items}, gen_prefix="w3", description="w1 w2 ")
    data = data_of(task, encoder)
    task.build_all_requests(rank=0, world_size=1)
    requests: dict[int, list[Instance]] = {}
    for instance in task.instances:
        requests.setdefault(instance.doc_id, []).append(instance)
    assert len(data.train) == len(requests) == 7
    for index, question in enumerate(data.train):
        assert question.pairs == encoder(requests[index])
        assert question.gold == items[index]["label"]
        assert question.fingerprint == fingerprint([request.args for request in requests[index]])


def test_encoding_is_that_of_hflm(base, encoder):
    """Oracle: a real HFLM, asked for the tokens it would score."""
    lm = HFLM(pretrained=str(base), device="cpu")
    captured = {}
    lm._loglikelihood_tokens = lambda requests, **_: captured.update(pairs=[(c, a) for _, c, a in requests])
    pairs = [("w1 w2 Answer:", " A"), ("w1 w2 ", "B C"), ("", " w3 w4"), ("<s> w1", " A"), ("w1  ", " C")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    lm.loglikelihood(requests, disable_tqdm=True)
    assert encoder(requests) == captured["pairs"]


def test_several_inputs_as_in_winogrande(encoder):
    items = [{"options": [f"w{n} w1", f"w{n} w2"], "label": n % 2, "end": " w9 w8"} for n in range(6)]
    task = make_task({"train": items}, doc_to_text="label", doc_to_choice="options", doc_to_target="end")
    data = data_of(task, encoder)
    for index, question in enumerate(data.train):
        (first, a), (second, b) = question.pairs
        assert a == b and first != second and question.gold == index % 2


def test_string_labels_are_looked_up(encoder):
    items = [{"text": f"w{n}", "choices": LETTERS, "label": LETTERS[n % 3]} for n in range(5)]
    data = data_of(make_task({"train": items}), encoder)
    assert [q.gold for q in data.train] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    "items, config, words",
    [
        (rows(3) + rows(1, 3, label=7), {}, ["train item 3", "label 7", "3 choices"]),
        (rows(3) + rows(1, 3, label=-1), {}, ["train item 3", "label -1"]),
        (
            rows(2) + rows(1, 2, choices=["A", "", "C"]),
            {"target_delimiter": ""},
            ["tokenises to nothing"],
        ),
        (rows(2) + rows(1, 2, choices=["A", "B", "A"]), {}, ["train item 2", "same tokens"]),
        (rows(2) + rows(1, 2, choices=["A", "unheard", "of"]), {}, ["same tokens", "unheard", "of"]),
    ],
)
def test_bad_items_are_named(encoder, items, config, words):
    with pytest.raises(InputError) as caught:
        data_of(make_task({"train": items, "test": rows(2)}, **config), encoder)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_tasks_that_cannot_be_trained_on_say_why(encoder):
    with pytest.raises(InputError, match="no training split"):
        data_of(make_task({"test": rows(3)}), encoder)
    with pytest.raises(InputError, match="generate_until"):
        data_of(make_task({"train": rows(3)}, output_type="generate_until", doc_to_choice=None), encoder)


def prints(questions: list) -> set[str]:
    return {q.fingerprint for q in questions}


def test_tune_is_the_spare_validation_split(encoder):
    splits = {"train": rows(20), "validation": rows(6, 20), "test": rows(6, 30)}
    data = data_of(make_task(splits), encoder, tune=True)
    expected = read_questions(make_task(splits), "validation", rows(6, 20), encoder)
    assert prints(data.tune) == prints(expected) and len(data.train) == 20
    assert [(s["purpose"], s["split"], s["items"]) for s in data.record["splits"]] == [
        ("fit", "train", 20),
        ("tune", "validation", 6),
    ]


def test_the_recipe_is_hashed_by_the_prompts_of_the_items(encoder):
    """Adapters from before there were hashes of documents keep their recipe's hash, and their held-out items."""
    record = data_of(make_task({"train": rows(20), "validation": rows(4, 30)}), encoder).record
    prompts = [q.fingerprint for q in read_questions(make_task({"train": rows(20)}), "train", rows(20), encoder)]
    older = {"splits": [{"purpose": "fit", "fingerprints": prompts}]}
    assert recipe_hash(Run(), record) == recipe_hash(Run(), older)
    assert record["splits"][0]["hash"] == digest(prompts) and record["splits"][0]["fingerprints"] != prompts


@pytest.mark.parametrize("held", ["validation", "test"])
def test_tune_is_never_the_evaluated_split(encoder, held):
    splits = {"train": rows(40), held: rows(8, 50)}
    data = data_of(make_task(splits), encoder, tune=True)
    evaluated = prints(read_questions(make_task(splits), held, rows(8, 50), encoder))
    assert len(data.tune) == 4 and len(data.train) == 36
    assert not prints(data.tune) & evaluated and not prints(data.tune) & prints(data.train)


def test_nothing_is_held_out_that_nobody_uses(encoder):
    data = data_of(make_task({"train": rows(20), "validation": rows(4, 30)}), encoder)
    assert len(data.train) == 20 and not data.tune and not data.select
    assert [s["purpose"] for s in data.record["splits"]] == ["fit"]


def test_selection_is_a_part_of_train(encoder):
    task = make_task({"train": rows(40), "validation": rows(4, 50)})
    data = data_of(task, encoder, select_split="train[-20%]", tune=True)
    parts = [prints(data.train), prints(data.tune), prints(data.select)]
    assert [len(p) for p in parts] == [29, 4, 7] and len(set.union(*parts)) == 40
    prompts = {s["purpose"]: set(s["prompts"]) for s in data.record["splits"]}
    assert prompts == {"fit": parts[0], "tune": parts[1], "select": parts[2]}
    again = data_of(make_task({"train": rows(40)[::-1]}), encoder, select_split="train[-20%]", tune=True)
    assert prints(again.select) == parts[2]  # whatever the order of the items
    other = data_of(task, encoder, select_split="train[-20%]", tune=True, seed=1)
    assert prints(other.select) != parts[2]


def test_select_on_tune_and_counts(encoder):
    task = make_task({"train": rows(40), "validation": rows(4, 50)})
    data = data_of(task, encoder, select_split="tune")
    assert data.select == data.tune and len(data.select) == 4
    assert [s["purpose"] for s in data.record["splits"]] == ["fit", "select"]
    assert len(data_of(task, encoder, select_split="train[-5]").select) == 5
    for bad in ("validation", "train[-0%]", "train[-40]", "train[20%]"):
        with pytest.raises(InputError, match="select_split"):
            data_of(task, encoder, select_split=bad)


def test_equal_items_stay_on_one_side(encoder):
    twins = read_questions(make_task({"train": rows(9) * 3}), "train", rows(9) * 3, encoder)
    rest, held = hold_out(twins, 5, "key")
    assert len(held) == 6 and len(rest) == 21 and not prints(rest) & prints(held)


def test_long_prompts_are_counted_not_dropped(encoder, caplog):
    long = {"text": " ".join(["w1"] * 60), "choices": LETTERS, "label": 0}
    data = data_of(make_task({"train": rows(4) + [long]}), encoder)
    assert len(data.train) == 5 and data.record["truncated"] == {"fit": 1} and "lose tokens" in caplog.text


def test_dropped_items_of_the_task_are_recorded(encoder):
    task = make_task({"train": rows(4)})
    task.train_dropped = {"3": 2, "5": 1}
    assert data_of(task, encoder).record["dropped"] == {"3": 2, "5": 1}


def test_prepare_asks_for_what_run_and_method_need(encoder):
    class Tuned(Method):
        uses_tune = True

    task = make_task({"train": rows(40)})
    data = prepare(task, encoder.tokenizer, Run(max_length=9, tune_fraction=0.25, eval_every=2), Tuned.uses_tune)
    assert (len(data.tune), len(data.select), data.max_length) == (10, 6, 9)
    assert not prepare(task, encoder.tokenizer, Run(), Method.uses_tune).select


def test_load_task_by_file_and_its_errors(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "w1", "choices": ["A", "B"], "label": 0}\n' * 3)
    (tmp_path / "mine.yaml").write_text(
        f"task: mine_mc\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    train: {tmp_path}/d.jsonl\n"
        "output_type: multiple_choice\ntraining_split: train\nvalidation_split: train\n"
        "doc_to_text: text\ndoc_to_choice: choices\n"
        "doc_to_target: label\n"
    )
    for name, path in ((str(tmp_path / "mine.yaml"), None), ("mine_mc", tmp_path)):
        assert len(load_task(name, include_path=path).training_docs()) == 3
    (tmp_path / "broken.yaml").write_text(
        f"task: broken_mc\ndataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path}/none.jsonl\n"
        "output_type: multiple_choice\ntraining_split: train\nvalidation_split: train\n"
        "doc_to_text: text\n"
    )
    with pytest.raises(InputError, match="broken_mc cannot be loaded"):
        load_task("broken_mc", include_path=tmp_path)


def test_our_tasks_load_without_indexing_lm_evals(monkeypatch):
    import lm_eval.tasks

    requests = []
    original = lm_eval.tasks.TaskManager.__init__

    def watch(self, *args, **kwargs):
        requests.append(kwargs.get("include_defaults", True))
        original(self, *args, **kwargs)

    monkeypatch.setattr(lm_eval.tasks.TaskManager, "__init__", watch)
    with pytest.raises(InputError, match="uq_ood_small is a group"):
        load_task("uq_ood_small")
    assert requests == [False]


@pytest.mark.slow
def test_unknown_tasks_are_told_the_closest_name():
    with pytest.raises(InputError, match="did you mean arc_easy_uq"):
        load_task("arc_eazy_uq")
