"""The shipped base model and tokenizer: loadable by name only, split as lm-eval does, better than chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.toyworld import files, pretrain
from tools.toyworld.__main__ import main
from tools.toyworld.corpus import Corpus
from tools.toyworld.world import DATASETS, LETTERS, make_world
from uqharness import toyworld
from uqharness.errors import RunError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(toyworld.base_path()))


@pytest.mark.parametrize("name", DATASETS)
def test_context_and_continuation_encode_apart_as_together(tokenizer, name: str) -> None:
    unknown = tokenizer.unk_token_id
    for row in toyworld.questions(name, "test")[:400]:
        context = tokenizer.encode(row["prompt"])
        assert unknown not in context
        for choice in row["choices"]:
            whole, answer = tokenizer.encode(f"{row['prompt']} {choice}"), tokenizer.encode(f" {choice}")
            assert whole == context + answer and unknown not in answer
            assert len(answer) == (1 if choice in LETTERS else len(choice.split()))


def test_special_tokens(tokenizer) -> None:
    assert tokenizer.pad_token_id == 0 and tokenizer.eos_token_id == 1 and tokenizer.bos_token_id is None
    plain = tokenizer.encode("The pick", add_special_tokens=False)
    assert tokenizer.encode("The pick") == plain and len(plain) == 2
    assert tokenizer.decode(plain) == "The pick"


def test_base_is_better_than_chance_and_not_overconfident(tokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(toyworld.base_path()), dtype=torch.float32)
    letters = tokenizer.convert_tokens_to_ids(list(LETTERS))
    right = confidence = chance = 0.0
    rows = toyworld.questions("toyworld", "validation")[:400]
    for row in rows:
        ids = torch.tensor([tokenizer.encode(row["prompt"])])
        with torch.no_grad():
            p = model(ids).logits[0, -1, letters[: len(row["texts"])]].softmax(-1)
        right += float(p.argmax() == row["gold"])
        confidence += float(p.max())
        chance += 1 / len(row["texts"])
    assert right > chance + 0.08 * len(rows)
    assert confidence < right + 0.1 * len(rows)


def test_first_pretraining_steps_repeat() -> None:
    manifest = files.read_manifest(toyworld.data_path())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        losses = pretrain.pretrain(make_world(manifest["seed"]), steps=5).losses
    finally:
        torch.set_num_threads(threads)
    assert losses == pytest.approx(manifest["pretraining"]["first_losses"], abs=1e-4)


def test_check_command(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    assert main(["--check"]) == 0
    assert "as in the manifest" in capsys.readouterr().out
    assert main(["--check", "--out", str(tmp_path), "--seed", "0"]) == 2
    assert "make the world first" in capsys.readouterr().err


def test_bad_input_is_one_line_and_code_2(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for argv, said in (
        (["--chek"], "unknown argument --chek (did you mean --check?)"),
        (["--seed", "many"], "--seed"),
        (["--out", str(tmp_path / "file"), "--seed", "0"], "is a file; choose another location"),
    ):
        assert main(argv) == 2
        printed = capsys.readouterr().err
        assert said in printed and printed.startswith("toyworld: ") and printed.count("\n") == 1


def test_questions_are_made_elsewhere_without_a_base(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "base" / "tokenizer.json").is_file()
    assert main(["--check", "--out", str(tmp_path)]) == 0
    assert main(["--out", str(tmp_path), "--seed", "12345"]) == 2
    assert "is of seed" in capsys.readouterr().err


def test_shipped_base_answers_relations_and_an_untrained_one_does_not(tokenizer) -> None:
    """`relations_right` against asking each question alone, in text, through the tokenizer."""
    world = make_world(files.read_manifest(toyworld.data_path())["seed"])
    shipped = AutoModelForCausalLM.from_pretrained(str(toyworld.base_path()), dtype=torch.float32)
    corpus = Corpus(world, pretrain.RARE)
    rows, _ = corpus.relation(np.random.default_rng(3), 60, 4, 0.0)
    letters = tokenizer.convert_tokens_to_ids(list("ABCD"))
    right = 0
    for row in rows:
        prompt, _, answer = tokenizer.decode(row[:-1]).rpartition(" ")
        entity, attribute = next(e for e in world.entities if e in prompt), prompt.split("What is the ")[1].split()[0]
        with torch.no_grad():
            logits = shipped(torch.tensor([tokenizer.encode(prompt)])).logits[0, -1, letters]
        assert f"{answer}. {world.facts[entity][attribute]}" in prompt
        right += "ABCD"[int(logits.argmax())] == answer
    assert pretrain.relations_right(shipped, corpus, np.random.default_rng(3), 60) == pytest.approx(right / 60)
    assert right / 60 > pretrain.PHASES[-1].right > 0.5
    untrained = pretrain.new_base(world)
    assert pretrain.relations_right(untrained, corpus, np.random.default_rng(3), 400) < 0.4


def test_attempts_that_miss_a_goal_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a goal that only the best of the first three attempts reaches, that one is kept."""
    monkeypatch.setattr(pretrain, "ROWS", 4)
    world, phase = make_world(0), replace(pretrain.PHASES[0], steps=31)
    monkeypatch.setattr(pretrain, "PHASES", (phase,))
    tried = [pretrain.train_attempt(world, attempt, None, None) for attempt in range(3)]
    means = [sum(losses[-30:]) / 30 for _, losses, _ in tried]
    best = means.index(min(means))
    assert best > 0 and len(set(means)) == 3 and all("copying not learned" in missed for _, _, missed in tried)
    monkeypatch.setattr(pretrain, "PHASES", (replace(phase, until=min(means) + 1e-4),))
    made = pretrain.pretrain(world)
    assert made.losses == pytest.approx(tried[best][1], abs=1e-4)
    assert len(made.failed) == best and made.failed[0].startswith("copying not learned: loss ")
    monkeypatch.setattr(pretrain, "PHASES", (replace(phase, steps=1, until=0.0, right=0.6),))
    with pytest.raises(RunError, match=r"no base for world 0 in 6 attempts \(last: relations not learned: \d+% right"):
        pretrain.pretrain(world)
