from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from uqharness.errors import InputError
from uqharness.settings import (
    Run,
    add_flags,
    as_json,
    build,
    chosen_layers,
    convert,
    from_flags,
    option,
    parse_set,
    read_file,
    recipe_hash,
    resolve_run,
)


@dataclass(frozen=True)
class Settings:
    rate: float = option(0.1, "a rate", low=0)
    count: int = option(3, "a count", low=1)
    kind: Literal["one", "two"] = option("one", "a kind")
    deep: bool = option(False, "a switch")
    names: tuple[str, ...] = option(("a",), "names")
    spare: int | None = option(None, "may be missing")


def flags(line: str, cls: type = Run) -> dict:
    parser = argparse.ArgumentParser()
    add_flags(parser, cls)
    return from_flags(parser.parse_args(line.split()), cls)


def test_flags_hold_only_what_was_given_and_convert():
    given_flags = flags("--steps 7 --lr 1e-3 --target-modules q_proj k_proj --resume --out x --batch_size 2")
    assert set(given_flags) == {"steps", "lr", "target_modules", "resume", "out", "batch_size"}
    run = build(Run, given_flags)
    assert (run.steps, run.lr, run.target_modules, run.resume) == (7, 1e-3, ("q_proj", "k_proj"), True)
    assert run.batch_size == 2 and run.warmup == Run().warmup
    assert flags("--no-resume")["resume"] is False


def test_every_field_has_help():
    assert all(spec.metadata.get("help") for spec in dataclasses.fields(Run))


@given(
    st.builds(
        Settings,
        rate=st.floats(0, 1e6),
        count=st.integers(1, 10**9),
        kind=st.sampled_from(["one", "two"]),
        deep=st.booleans(),
        names=st.lists(st.text("abc_.", min_size=1), min_size=1).map(tuple),
        spare=st.none() | st.integers(0, 9),
    )
)
def test_settings_survive_json_yaml_and_set(settings: Settings):
    assert build(Settings, json.loads(json.dumps(as_json(settings)))) == settings
    assert build(Settings, yaml.safe_load(yaml.safe_dump(as_json(settings)))) == settings
    words = [f"{k}={','.join(v) if isinstance(v, list) else v}" for k, v in as_json(settings).items()]
    assert build(Settings, parse_set(words)) == settings


@pytest.mark.parametrize(
    "values, words",
    [
        ({"stepz": 3}, ["stepz", "did you mean steps"]),
        ({"steps": "many"}, ["steps", "many", "int"]),
        ({"steps": 2.5}, ["steps", "2.5"]),
        ({"steps": 0}, ["steps is 0", "at least 1"]),
        ({"lr": "nan"}, ["lr is nan"]),
        ({"schedule": "linaer"}, ["did you mean linear", "constant"]),
        ({"resume": "maybe"}, ["resume", "true or false"]),
        ({"select": "best:nll"}, ["eval_every"]),
        ({"save_every": 5}, ["--out"]),
        ({"load_in_4bit": True, "load_in_8bit": True}, ["choose one"]),
        ({"target_modules": ""}, ["target_modules is empty"]),
        ({"target_modules": None}, ["target_modules is None", "a list"]),
        ({"report_to": 5}, ["report_to is 5", "a list"]),
    ],
)
def test_bad_values_say_what_was_found_in_one_line(values: dict, words: list[str]):
    with pytest.raises(InputError) as caught:
        build(Run, values)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_convert_optional_and_whole_floats():
    assert convert(int | None, "none", "x") is None and convert(int | None, "4", "x") == 4
    with pytest.raises(InputError):
        convert(int, "4.0", "x")


def test_files_and_their_errors(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 2.0e-4\ntarget_modules: [q_proj]\n")
    (tmp_path / "b.json").write_text('{"steps": 9}')
    (tmp_path / "c.yaml").write_text("- 1\n")
    (tmp_path / "d.yaml").write_text("a: [1\n")
    assert build(Run, read_file(tmp_path / "a.yaml")).lr == 2e-4
    assert read_file(tmp_path / "b.json") == {"steps": 9}
    for name, word in (("c.yaml", "list"), ("d.yaml", "not valid YAML"), ("e.yaml", "cannot read")):
        with pytest.raises(InputError, match=word):
            read_file(tmp_path / name)
    with pytest.raises(InputError, match="not key=value"):
        parse_set(["lr"])


def test_what_the_user_overrode_is_told():
    run, overridden = resolve_run({"lr": 5e-5, "lora_dropout": 0.1}, {"lr": "1e-4", "steps": 10})
    assert (run.lr, run.lora_dropout, run.steps) == (1e-4, 0.1, 10)
    assert overridden == {"lr": {"suggested": 5e-5, "used": 1e-4}}
    assert resolve_run({"lr": 5e-5}, {"lr": 5e-5})[1] == {}


def test_recipe_hash_sees_the_recipe_and_nothing_else():
    data = {"splits": [{"purpose": "fit", "fingerprints": ["a", "b"]}]}
    run = Run(base="b", task="t")
    same = [{"seed": 5}, {"out": "x"}, {"save_every": 3, "out": "y"}, {"report_to": ("wandb",)}]
    same.append({"batch_size": 2, "grad_accumulation": 2})  # the same optimiser batch
    for change in same:
        assert recipe_hash(dataclasses.replace(run, **change), data) == recipe_hash(run, data), change
    other = [{"lr": 1e-3}, {"lora_r": 4}, {"steps": 9}, {"dtype": "float32"}, {"target_modules": ("q_proj",)}]
    other += [{"base": "c"}, {"lora_dropout": 0.1}, {"schedule": "constant"}, {"max_length": 9}]
    other += [{"weight_decay": 0.5}, {"adam_eps": 1e-8}, {"group_by_length": True}, {"layers": "last:2"}]
    hashes = {recipe_hash(dataclasses.replace(run, **change), data) for change in other}
    hashes.add(recipe_hash(run, {"splits": [{"purpose": "fit", "fingerprints": ["a"]}]}))
    assert len(hashes) == len(other) + 1 and recipe_hash(run, data) not in hashes
    assert all(text.startswith("v2-") and len(text) == 19 for text in hashes)


def test_every_setting_of_the_recipe_is_in_its_hash():
    """By its role: a setting that is added later cannot be forgotten."""
    data = {"splits": [{"purpose": "fit", "fingerprints": ["a"]}]}
    best = Run(
        base="b", task="t", eval_every=5, select="best:nll", out="x", target_modules=("q_proj",), cache_prefix=1.0
    )
    other = {
        int: lambda v: v + 1,
        float: lambda v: v / 2 + 0.25,
        bool: lambda v: not v,
        str: lambda v: v + "x",
        tuple: lambda v: (*v, "x"),
    }
    named = {"dtype": "float32", "schedule": "constant", "select": "best:acc", "num_fewshot": 2, "layers": "last:2"}
    for spec in dataclasses.fields(Run):
        run = dataclasses.replace(best, select="last") if spec.name == "stop_at" else best
        value = getattr(run, spec.name)
        changed_to = named[spec.name] if spec.name in named else other[type(value)](value)
        change = {spec.name: changed_to} if spec.name != "device" else {}
        before = dataclasses.replace(run, select="last") if spec.name == "stop_at" else run  # it excludes the others
        changed = recipe_hash(dataclasses.replace(before, **change), data) != recipe_hash(before, data)
        assert changed == (spec.metadata["role"] == "recipe" or spec.name == "task"), spec.name


def test_recipes_from_before_layers_could_be_chosen_keep_their_hash():
    data = {"splits": [{"purpose": "fit", "fingerprints": ["a", "b"]}]}
    run = Run(base="b", task="t", target_modules=("q_proj", "v_proj", "lm_head"))
    assert recipe_hash(run, data) == "v2-086d46eebdfd4028"


def test_layers_by_their_numbers():
    assert chosen_layers("all", 4) is None
    assert chosen_layers("last:2", 4) == [2, 3] == chosen_layers("2-3", 4) == chosen_layers("3, 2-3", 4)
    assert chosen_layers("0,2-3", 4) == [0, 2, 3] and chosen_layers("last:4", 4) == [0, 1, 2, 3]
    for text in ("last:5", "4", "0-4", "last:40"):
        with pytest.raises(InputError, match="the base has 4 layers, numbered 0 to 3"):
            chosen_layers(text, 4)
    wrong = ["", "last", "last:", "last:0", "last:-1", "last:x", "last:²", "first:2"]
    for text in (*wrong, "3-2", "1-2-3", "-1", "a", "1,,2", "9" * 99):
        with pytest.raises(InputError, match="give all, last:K, or numbers from 0"):
            Run(layers=text)
    assert Run(layers="last:40").layers == "last:40"  # how many there are the base says
