"""An adapter folder is whole or refused: its tensors are those of its record, and its JSON is what it should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from uqharness.adapter_io import folder as adapter_io
from uqharness.adapter_io.folder import MEAN, PEFT_CONFIG, POSTERIOR, RECORD, SPLITS, load_predictive, read_splits
from uqharness.adapters.mcd import Dropped
from uqharness.adapters.melora import CorePosterior
from uqharness.adapters.scalabl import Subspace
from uqharness.adapters.swag import LowRank
from uqharness.curvature.laplace import Block, Diag, Full, Kron
from uqharness.curvature.linearised import LaplacePosterior, Linearised
from uqharness.engine.predictive import Predictive, Tempered, as_predictive
from uqharness.errors import InputError
from uqharness.posterior import Gaussian, Members, Point, Posterior, keyed_generator

GOLDEN = Path(__file__).parents[1] / "golden" / "adapter_schema_1"
R, WIDTH = 2, 4
SEEN = [{"purpose": "fit", "split": "train", "fingerprints": ["0" * 16]}]


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=keyed_generator("folders", shape)) + 0.1


def mean() -> dict[str, Tensor]:
    tensors = {}
    for layer in (0, 1):
        for module in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_"
            tensors |= {f"{name}A.weight": rand(R, WIDTH), f"{name}B.weight": rand(WIDTH, R)}
    return tensors


MEANS = mean()
A = {name: tensor for name, tensor in MEANS.items() if ".lora_A." in name}
ONES = dict.fromkeys(A, 1.0)


def kron(name: str) -> Block:
    return Block(rand(R, R), rand(WIDTH, 3), rand(R, 3))


def core() -> dict[str, Tensor]:
    parts = {"inner": (R, WIDTH), "core_mean": (R, R), "core_std": (R, R)}
    return {f"{name}.{part}": rand(*shape) for name in A for part, shape in parts.items()}


MADE: dict[str, Callable[[], Posterior | Predictive]] = {
    "blob": lambda: Gaussian(MEANS, {name: rand(*t.shape) for name, t in A.items()}, 3),
    "swag": lambda: LowRank(MEANS, MEANS, {name: rand(3, *t.shape) for name, t in MEANS.items()}, 3),
    "melora": lambda: CorePosterior(MEANS, 3, core()),
    "scalabl": lambda: Subspace(MEANS, {name: rand(R) for name in A}, 3),
    "ens": lambda: Members([MEANS, {name: t + 1 for name, t in MEANS.items()}], 3),
    "laplace": lambda: Linearised(LaplacePosterior(MEANS, Kron({name: kron(name) for name in A}), ONES, 3)),
    "laplace diag": lambda: LaplacePosterior(MEANS, Diag({n: rand(*t.shape) for n, t in A.items()}), ONES, 3),
    "laplace full": lambda: LaplacePosterior(
        MEANS, Full(Block(rand(4 * R * WIDTH, 5), torch.ones(1, 1), rand(5, 1))), ONES, 3
    ),
    "tempscale": lambda: Tempered(as_predictive(MADE["blob"]()), 1.5),
    "mcd": lambda: Dropped(MEANS, 3, 0.1),
    "mle": lambda: Point(MEANS, 3),
}


def save(out: Path, kind: str, schema: int = 2) -> Path:
    config = LoraConfig(r=R, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    record = {"method": {"name": kind.split()[0], "settings": {}}, "base": {"name": "tiny"}}
    adapter_io.save_folder(out, config, MADE[kind](), record, SEEN)
    if schema == 1:  # the same, without the list
        edit(out / RECORD, schema=1, files=...)
    return out


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; an Ellipsis takes one out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def assert_refused(folder: Path, message: str, read: Callable[[Path], Any] = load_predictive) -> None:
    with pytest.raises(InputError) as error:
        read(folder)
    text = str(error.value)
    assert message in text and "\n" not in text and len(text) < 700, text


# ---------------------------------------------------------------- whole


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("kind", MADE)
def test_every_kind_of_posterior_comes_back_as_it_was(tmp_path: Path, kind: str, schema: int) -> None:
    predictive, record = load_predictive(save(tmp_path / "a", kind, schema))
    wanted = as_predictive(MADE[kind]())
    posterior, expected = predictive.posterior, wanted.posterior
    assert predictive.record() == wanted.record()
    assert record is not None and "files" not in record  # results hold the record, and need no list of tensors
    for left, right in ((posterior.mean, expected.mean), (posterior.state(), expected.state())):
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_folder_of_schema_1_gives_the_draws_that_it_gave() -> None:
    predictive, record = load_predictive(GOLDEN)
    posterior = predictive.posterior
    assert record is not None and record["schema"] == 1 and read_splits(GOLDEN)[0]["fingerprints"][1] == "2" * 16
    draws = posterior.draws(0, 2, 3)
    first = draws["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].flatten()
    assert first[:3].tolist() == [-0.27376729249954224, -0.1773015558719635, 0.2354833334684372]
    assert sum(float(tensor.double().sum()) for tensor in draws.values()) == pytest.approx(-3.719993752427399, abs=1e-6)


@pytest.mark.parametrize(
    "name, kind, answers",
    [
        ("blob", "gaussian", {"kind": "draws", "rule": "probs"}),
        ("ens", "members", {"kind": "draws", "rule": "probs"}),
        ("ens-logits", "members", {"kind": "draws", "rule": "logits"}),
        ("mcd", "dropout", {"kind": "draws", "rule": "probs"}),
        ("mcd-token", "dropout", {"kind": "token masks", "rule": "probs"}),
        ("laplace-weights", "laplace", {"kind": "draws", "rule": "probs"}),
        *(
            (f"laplace-{form}", "laplace", {"kind": "linearised", "integral": form, "mc_samples": 256})
            for form in ("joint", "indep", "probit", "bridge")
        ),
        ("tempscale", "gaussian", {"kind": "tempered", "inner": {"kind": "draws", "rule": "probs"}, "samples": 3}),
    ],
)
def test_a_record_without_a_predictive_says_it_in_its_posterior(name: str, kind: str, answers: dict[str, Any]) -> None:
    """The golden folders of schema 2, made before the two were told apart."""
    folder = GOLDEN.parent / "adapters" / name
    assert "predictive" not in json.loads((folder / RECORD).read_text())
    predictive, _ = load_predictive(folder)
    assert predictive.posterior.kind == kind and predictive.record().items() >= answers.items()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"combine": "given"}, 'rule: expected "probs" or "logits", got "given"'),
        ({"source": []}, "source: expected an object"),
        ({"source": {"kind": "gaussian"}}, "'train_seed' is missing"),
        ({"temperature": -1.0}, "temperature, samples and seed"),
        ({"predictive": "psychic"}, "integral: expected"),
        ({"mask": "none"}, "mask: expected"),
    ],
)
def test_what_is_wrong_in_such_a_record_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    name = {"combine": "blob", "predictive": "laplace-joint", "mask": "mcd"}.get(next(iter(change)), "tempscale")
    shutil.copytree(GOLDEN.parent / "adapters" / name, tmp_path / "a")
    changed(tmp_path / "a", "posterior", **change)
    assert_refused(tmp_path / "a", message)


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("kind", [kind for kind in MADE if kind not in ("mle", "mcd")])
def test_a_missing_or_partial_posterior_is_refused(tmp_path: Path, kind: str, schema: int) -> None:
    folder = save(tmp_path / "a", kind, schema)
    whole = load_file(folder / POSTERIOR)
    for name in whole:
        save_file({other: t for other, t in whole.items() if other != name}, folder / POSTERIOR)
        assert_refused(folder, "missing" if schema == 2 else str(folder))
    (folder / POSTERIOR).unlink()
    assert_refused(folder, "missing" if schema == 2 else str(folder))


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("kind", MADE)
def test_a_tensor_too_many_is_refused(tmp_path: Path, kind: str, schema: int) -> None:
    folder = save(tmp_path / "a", kind, schema)
    more = load_file(folder / POSTERIOR) if (folder / POSTERIOR).exists() else {}
    save_file({**more, "more.weight": torch.ones(1)}, folder / POSTERIOR)
    assert_refused(folder, POSTERIOR if schema == 2 else str(folder))


def test_the_record_names_what_differs(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", "blob")
    state, means = load_file(folder / POSTERIOR), load_file(folder / MEAN)
    some, first = next(iter(state)), next(iter(means))
    for tensors, file, message in (
        ({**state, some: state[some].half()}, POSTERIOR, "1 of its 4 tensors is of another shape or type"),
        ({**state, some: state[some][:1].contiguous()}, POSTERIOR, "of another shape or type"),
        ({**state, some: state[some] * 2}, POSTERIOR, "not the file that the record lists: SHA-256"),
        ({**means, first: means[first] * 2}, MEAN, "not the file that the record lists: SHA-256"),
        ({**means, "x.lora_A.weight": means[first].clone()}, MEAN, "1 of its 8 tensors is not listed in the record"),
    ):
        before = (folder / file).read_bytes()
        save_file(tensors, folder / file, {"format": "pt"})
        assert_refused(folder, message)
        (folder / file).write_bytes(before)
    load_predictive(folder)
    edit(folder / RECORD, files=...)
    assert_refused(folder, "'files' is missing")
    (folder / RECORD).unlink()
    assert_refused(folder, "posterior.safetensors without uq_config.json: the adapter is incomplete")


def test_blob_of_both_matrices_needs_both_in_schema_1(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", "blob", schema=1)
    edit(folder / RECORD, method={"name": "blob", "settings": {"asymmetric": False}})
    assert_refused(folder, "nothing says how base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight varies")


def test_a_mean_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", "mle", schema=1)
    means = load_file(folder / MEAN)
    save_file({**means, next(iter(means)): torch.full((R, WIDTH), torch.nan)}, folder / MEAN)
    assert_refused(folder, "holds NaN or infinity")


# ---------------------------------------------------------------- JSON


DEEP = "[" * 200_000 + "]" * 200_000
TEXTS = {
    "empty": ("", "it is empty"),
    "list": ("[]", "expected an object, got a list of 0"),
    "deep": (DEEP, "nested too deeply"),
    "deep value": (f'{{"r": {DEEP}}}', "nested too deeply"),
    "integer": ('{"r": ' + "9" * 6000 + "}", "an integer of 6,000 digits"),
    "cut": ('{"r": ', "not valid JSON"),
}


@pytest.mark.parametrize("file", [PEFT_CONFIG, RECORD, SPLITS])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_that_is_no_json_of_ours_is_one_line(tmp_path: Path, file: str, kind: str) -> None:
    folder = save(tmp_path / "a", "blob")
    (folder / file).write_text(TEXTS[kind][0])
    assert_refused(folder, TEXTS[kind][1], read_splits if file == SPLITS else load_predictive)


def test_a_binary_file_is_one_line(tmp_path: Path) -> None:
    for file in (PEFT_CONFIG, RECORD, SPLITS):
        folder = save(tmp_path / file, "blob")
        (folder / file).write_bytes(b"\x80\x04\x95\xff\xfe")
        assert_refused(folder, "not Unicode", read_splits if file == SPLITS else load_predictive)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"r": -1}, "r: expected at least 1, got -1"),
        ({"r": 0}, "r: expected at least 1, got 0"),
        ({"r": None}, "r: expected an integer, got null"),
        ({"r": "8"}, 'r: expected an integer, got "8"'),
        ({"r": ...}, "'r' is missing"),
        ({"r": 10**8}, "is 100000000, its tensors have 2"),
        ({"lora_alpha": "16"}, "lora_alpha: expected a finite number"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a finite number"),
        ({"lora_dropout": 2.0}, "lora_dropout: expected a probability"),
        ({"peft_type": "IA3"}, "only LoRA adapters can be read"),
        ({"peft_type": ...}, "'peft_type' is missing"),
        ({"peft_type": ["LORA"]}, "peft_type: expected a string"),
        ({"target_modules": 3}, "target_modules: expected a list or a string or null, got 3"),
        ({"target_modules": [["q"]]}, "target_modules[0]: expected a string"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern: q_proj: expected an integer"),
        ({"task_type": "NOTHING"}, "PEFT refuses it"),
        ({"base_model_name_or_path": {}}, "base_model_name_or_path: expected a string or null"),
        ({"init_lora_weights": "corda"}, "changes the base's own weights"),
        ({"megatron_config": {"a": 1}}, "megatron_config is set"),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication: expected pairs of layers"),
    ],
)
def test_a_wrong_value_in_pefts_configuration_is_one_line(tmp_path: Path, change: Any, message: str) -> None:
    folder = save(tmp_path / "a", "blob")
    edit(folder / PEFT_CONFIG, **change)
    assert_refused(folder, message)


def changed(folder: Path, part: str, **changes: Any) -> None:
    record = json.loads((folder / RECORD).read_text())
    edit(folder / RECORD, **{part: {key: v for key, v in {**record[part], **changes}.items() if v is not ...}})


@pytest.mark.parametrize(
    "kind, part, change, message",
    [
        ("blob", "method", {"name": 3}, "method: name: expected a string, got 3"),
        ("blob", "method", {"name": ["blob"]}, "method: name: expected a string, got a list of 1"),
        ("blob", "method", {"name": ...}, "method: 'name' is missing"),
        ("blob", "method", {"name": "blub"}, "did you mean blob?"),
        ("blob", "method", {"settings": [1]}, "method: settings: expected an object"),
        ("blob", "base", {"name": 1}, "base: name: expected a string or null"),
        ("blob", "posterior", {"kind": None}, "posterior: kind: expected a string, got null"),
        ("blob", "posterior", {"kind": "members"}, 'the record says "members"'),
        ("blob", "predictive", {"kind": "oracle"}, 'blob answers by draws; the record says "oracle"'),
        ("blob", "predictive", {"kind": ["draws"]}, "predictive: kind: expected a string"),
        ("blob", "predictive", {"rule": "given"}, 'rule: expected "probs" or "logits", got "given"'),
        ("blob", "posterior", {"train_seed": "0"}, 'posterior: train_seed: expected an integer, got "0"'),
        ("ens", "posterior", {"members": "2"}, 'members: expected an integer, got "2"'),
        ("ens", "posterior", {"members": 10**9}, "the record says 1000000000 ensemble members"),
        ("ens", "predictive", {"rule": 1}, 'rule: expected "probs" or "logits", got 1'),
        ("laplace", "posterior", {"structure": "cube"}, 'structure: expected "kron" or "diag" or "full"'),
        ("laplace", "posterior", {"structure": "diag"}, "posterior and record do not match"),
        ("laplace", "posterior", {"precision": ["1.0"] * 4}, 'precision[0]: expected a finite number, got "1.0"'),
        ("laplace", "posterior", {"precision": [-1.0] * 4}, "precision: expected positive numbers"),
        ("laplace", "posterior", {"precision": [1.0]}, "4 layers, 1 precisions"),
        ("laplace", "posterior", {"layers": ["a", "b", "c", "d"]}, 'layers: "a" is not a tensor of the adapter'),
        ("laplace", "predictive", {"mc_samples": "4096"}, "mc_samples: expected an integer"),
        ("laplace", "predictive", {"mc_samples": -4}, "mc_samples: expected a positive number"),
        ("laplace", "predictive", {"integral": "psychic"}, "integral: expected"),
        ("laplace", "posterior", {"laplace": ...}, "'laplace' is missing"),
        ("mcd", "posterior", {"p": "0.1"}, "p: expected a finite number"),
        ("mcd", "posterior", {"p": 1.0}, "p: expected a number from 0 to below 1"),
        ("mcd", "predictive", {"rule": "median"}, "rule: expected"),
        ("tempscale", "predictive", {"temperature": 0.0}, "temperature, samples and seed"),
        ("tempscale", "predictive", {"samples": "10"}, "samples: expected an integer"),
        ("tempscale", "predictive", {"inner": []}, "predictive: inner: expected an object"),
        ("tempscale", "predictive", {"inner": {"rule": "probs"}}, "'kind' is missing"),
        ("tempscale", "posterior", {"restored_by": "blub"}, "did you mean blob?"),
    ],
)
def test_a_wrong_value_in_the_record_is_one_line(
    tmp_path: Path, kind: str, part: str, change: Mapping[str, Any], message: str
) -> None:
    folder = save(tmp_path / "a", kind)
    changed(folder, part, **change)
    assert_refused(folder, message)


@pytest.mark.parametrize(
    "splits",
    [
        3,
        {"a": 1},
        [3],
        [{**SEEN[0], "purpose": 1}],
        [{**SEEN[0], "fingerprints": "abc"}],
        [{**SEEN[0], "fingerprints": [1]}],
        [{}],
        None,
    ],
)
def test_splits_of_a_wrong_type_are_one_line(tmp_path: Path, splits: Any) -> None:
    folder = save(tmp_path / "a", "blob")
    edit(folder / SPLITS, splits=splits)
    assert_refused(folder, "splits", read_splits)


@pytest.mark.parametrize("kind", [kind for kind in MADE if kind not in ("mle", "mcd")])
def test_tensors_of_a_wrong_shape_or_value_are_one_line(tmp_path: Path, kind: str) -> None:
    """In schema 1, whose record does not list them: what would end in a stack, a KeyError or NaN answers."""
    folder = save(tmp_path / "a", kind, schema=1)
    whole = load_file(folder / POSTERIOR)
    for name, tensor in whole.items():
        for wrong in (torch.ones(5, 7), torch.ones(()), torch.full_like(tensor, torch.nan)):
            save_file({**whole, name: wrong}, folder / POSTERIOR)
            assert_refused(folder, str(folder))


def test_a_copied_folder_reads_where_it_lies(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path / "a", "blob"), tmp_path / "b" / "c")
    assert load_predictive(tmp_path / "b" / "c")[0].posterior.kind == "gaussian"


def test_the_configuration_is_written_in_an_order_of_its_own(tmp_path: Path) -> None:
    """PEFT keeps the targets in a set, whose order differs from process to process; the content hash sees the file."""
    names = [f"layer{k}" for k in range(40)]
    adapter_io.save_peft(tmp_path, LoraConfig(target_modules=names), {"a": torch.zeros(1)})
    assert json.loads((tmp_path / PEFT_CONFIG).read_text())["target_modules"] == sorted(names)
