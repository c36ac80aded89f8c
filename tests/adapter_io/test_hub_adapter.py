"""Adapters of the hub, from a tiny local stand-in: `hub:user/name`, pushed there and back, and the cards they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests import made_results
from tests.fake_hub import TOKEN, FakeHub, serve
from tests.tiny_adapter import lines_of, save
from tests.tiny_task import make_task
from uqharness.adapter_io import folder as adapter_io
from uqharness.adapter_io import model_card
from uqharness.cli import main
from uqharness.errors import InputError
from uqharness.results.reading import read_results
from uqharness.results.runs import read_runs

OURS = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "posterior.safetensors",
    "uq_config.json",
    "uq_splits.json",
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The hub of this process; its cache is empty, and `someone` is logged in."""
    with serve() as server:
        for name, value in {
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no_token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def front_matter(server: FakeHub, name: str, branch: str = "main") -> dict[str, Any]:
    content = server.commits[server.repositories[name][branch]]["README.md"].decode()
    return dict(yaml.safe_load(content.split("---\n")[1]))


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------- there and back

CODE = """
import json, sys
from tests.tiny_adapter import REQUESTS, instances
from uqharness import adapter_io
from uqharness.harness.model import BayesLoRA
found = []
for adapter in sys.argv[1:]:
    model = BayesLoRA(adapter=adapter, samples=3, device="cpu")
    answers = [[float(logp), greedy] for logp, greedy in model.loglikelihood(instances("loglikelihood", REQUESTS))]
    info = model.get_model_info()["uqharness"]
    found.append([answers, info["adapter_hash"], info["adapter_revision"], info["adapter"]])
print("FOUND", json.dumps(found))
"""


def test_a_pushed_adapter_answers_as_the_folder_does(hub: FakeHub, blob: Path, tmp_path: Path) -> None:
    """The first commit by its hash, although the branch has moved on to another adapter."""
    assert main(["push", str(blob), "someone/blob"]) == 0
    commit = hub.repositories["someone/blob"]["main"]
    other = save(tmp_path / "other", Path(adapter_io.read_record(blob)["base"]["name"]), std=0.4)  # type: ignore[index]
    assert main(["push", str(other), "hub:someone/blob"]) == 0
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(blob), f"hub:someone/blob@{commit}", "hub:someone/blob"],
        env=hub.environment(tmp_path / "home"),
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    here, cached, newest = json.loads(re.search("FOUND (.*)", done.stdout)[1])  # type: ignore[index]
    assert cached[:2] == here[:2] and here[2] is None
    assert cached[2:] == [commit, f"hub:someone/blob@{commit}"]
    assert newest[2] == hub.repositories["someone/blob"]["main"] != commit and newest[0] != here[0]


def test_the_results_file_names_the_commit_and_fills_the_card(
    hub: FakeHub, blob: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(blob), "someone/blob"]) == 0
    commit = hub.repositories["someone/blob"]["main"]
    make_task(tmp_path / "tasks")
    argv = ["eval", f"hub:someone/blob@{commit}", "--model_args", "samples=2", "--tasks", "tiny_uq"]
    argv += ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "results")]
    assert main(argv) == 0
    (run,) = read_results(tmp_path / "results")
    info = run.config["uqharness"]
    assert (info["adapter_revision"], info["adapter_hash"]) == (commit, adapter_io.content_hash(blob))

    assert main(["push", str(blob), "someone/blob", "--results", str(tmp_path / "results")]) == 0
    data = front_matter(hub, "someone/blob")
    ((index,), values) = data["model-index"], run.metrics()
    assert index["name"] == "blob"
    (result,) = index["results"]
    assert result["dataset"]["split"] == "validation"
    metrics = {each["type"]: each for each in result["metrics"]}
    wanted = {"accuracy": values["acc"], "ece": values["ece"], "nll": values["nll"]}
    assert {kind: each["value"] for kind, each in metrics.items()} == pytest.approx(wanted, abs=1e-6)
    assert metrics["nll"]["args"] == {"draws": 2, "items": 12, "protocol_hash": run.protocol_hash}
    text = hub.commits[hub.repositories["someone/blob"]["main"]]["README.md"].decode()
    assert f"| tiny_uq | 2 | 12 | {100 * values['acc']:.2f} %" in text and text.count("## Evaluation") == 1


# ---------------------------------------------------------------- loading


def test_without_hub_only_the_cache_is_read(
    hub: FakeHub, blob: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commit = hub.create("someone/blob", blob)
    with pytest.raises(InputError, match="and not in the hub's cache; .* give hub:someone/blob"):
        adapter_io.fetch("someone/blob")
    with pytest.raises(InputError, match="no such folder"):
        adapter_io.fetch("some--one/blob")  # a path like any other; no repository can have this name
    assert hub.asked == []
    monkeypatch.delenv("HF_TOKEN")
    folder = adapter_io.fetch("hub:someone/blob@main")
    assert adapter_io.fetch("someone/blob") == folder and folder.name == commit


@pytest.mark.parametrize(
    "name, code, message",
    [
        ("hub:someone/else", 2, "hub:someone/else: no such repository on the hub"),
        ("hub:someone/blob@v9", 2, "someone/blob has no revision 'v9'; give a branch, tag or commit"),
        ("hub:a/b/c", 2, "hub:a/b/c: no such repository on the hub (Repo id must be in the form"),
        ("hub:", 2, "no such repository on the hub"),
    ],
)
def test_what_the_hub_has_not_is_one_line(
    hub: FakeHub, blob: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, message: str
) -> None:
    hub.create("someone/blob", blob)
    assert main(["export", name, "never", "--samples", "1"]) == code
    assert message in last_line(capsys)


def test_no_file_but_an_adapters_is_downloaded(hub: FakeHub, blob: Path) -> None:
    files = {path.name: path.read_bytes() for path in blob.iterdir()}
    hub.create("someone/blob", {**files, "model.safetensors": b"large", "evil.json": b"{}"})
    folder = adapter_io.fetch("hub:someone/blob")
    assert sorted(path.name for path in folder.iterdir()) == OURS


# ---------------------------------------------------------------- pushing


def test_one_commit_with_our_files_and_no_others(
    hub: FakeHub, blob: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(blob, tmp_path / "blob")
    (folder / "notes.txt").write_text("private")
    (folder / "optimizer.pt").write_bytes(b"x")
    assert main(["push", str(folder), "someone/blob", "--message", "First"]) == 0
    commit = hub.repositories["someone/blob"]["main"]
    assert sorted(hub.commits[commit]) == [".gitattributes", *OURS] and hub.messages == ["initial commit", "First"]
    assert all(hub.commits[commit][n] == (folder / n).read_bytes() for n in OURS if n != "README.md")
    assert f"adapter=hub:someone/blob@{commit}" in capsys.readouterr().out
    # Its own card is a whole one, and nothing in it is a path of this machine.
    card = hub.commits[commit]["README.md"].decode()
    assert "adapter=hub:someone/blob,samples=10" in card and str(blob.parent) not in card
    assert ModelCard(card).data.to_dict() == {
        "library_name": "peft",
        "tags": ["uqharness", "bayesian-lora", "blob", "lora"],
    }


def test_files_of_an_earlier_adapter_go_and_others_stay(hub: FakeHub, blob: Path, base: Path, tmp_path: Path) -> None:
    """A plain PEFT LoRA over ours: a posterior that stays behind would make the repository unreadable."""
    hub.create("someone/blob", blob)
    hub.commit("someone/blob", "main", {**hub.commits[hub.repositories["someone/blob"]["main"]], "plot.png": b"1"}, "p")
    plain = save(tmp_path / "plain", base, std=None)
    assert main(["push", str(plain), "someone/blob"]) == 0
    names = sorted(hub.commits[hub.repositories["someone/blob"]["main"]])
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "plot.png"]
    assert "base_model" not in front_matter(hub, "someone/blob")  # PEFT wrote a path, which the hub refuses
    posterior, record = adapter_io.load_predictive(adapter_io.fetch("hub:someone/blob"))
    assert record is None and posterior.finite == 1


def test_branch_privacy_and_nothing_to_do(hub: FakeHub, blob: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(blob), "someone/blob", "--private", "--revision", "v1"]) == 0
    branches = hub.repositories["someone/blob"]
    assert "someone/blob" in hub.private and sorted(hub.commits[branches["main"]]) == [".gitattributes"]
    assert sorted(hub.commits[branches["v1"]])[1:] == OURS
    hub.create("someone/open")
    capsys.readouterr()
    assert main(["push", str(blob), "someone/open", "--private"]) == 2
    assert "it exists and is public: make it private" in last_line(capsys)
    assert sorted(hub.commits[hub.repositories["someone/open"]["main"]]) == [".gitattributes"]


def test_a_dry_run_asks_the_hub_for_nothing(
    hub: FakeHub, blob: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with lines_of("uqharness.push") as lines:
        assert main(["push", str(blob), "someone/blob", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in OURS) and "library_name: peft" in said
    assert "which is not on the hub: users of this adapter have to give base=MODEL" in lines[0]
    assert hub.asked == [] and not hub.repositories


@pytest.mark.parametrize(
    "where, token, code, message",
    [
        ("someone/blob", None, 2, "no token for the hub: run `hf auth login`, or set HF_TOKEN"),
        ("someone/blob", "hf_wrong", 2, "push to someone/blob: the hub refuses it (401 Invalid username or password.)"),
        ("other/new", TOKEN, 2, "push to other/new: the hub refuses it (403 You don't have the rights"),
        ("other/there", TOKEN, 2, "push to other/there: the hub refuses it (403 you must use a write token"),
        ("blob", TOKEN, 2, "'blob': not a repository name; give user/name, for example me/blob"),
        ("a/b/c", TOKEN, 2, "'a/b/c': not a repository name (Repo id must be"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub: FakeHub,
    blob: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    token: str | None,
    code: int,
    message: str,
) -> None:
    hub.create("other/there", blob)
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    before = dict(hub.commits)
    assert main(["push", str(blob), where]) == code
    assert message in last_line(capsys) and hub.commits == before


def test_no_network_is_one_line_and_code_1(
    hub: FakeHub, blob: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(blob), "someone/blob"]) == 1
    assert "push to someone/blob: the hub cannot be reached" in last_line(capsys)
    assert main(["export", "hub:someone/blob", "never", "--samples", "1"]) == 1
    assert "adapter=hub:someone/blob: the hub cannot be reached" in last_line(capsys)


def test_what_is_no_whole_adapter_is_not_pushed(
    hub: FakeHub, blob: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(blob, tmp_path / "blob")
    (folder / "posterior.safetensors").unlink()
    unread = shutil.copytree(blob, tmp_path / "unread")
    (unread / "README.md").write_text("---\ntags: [a\n---\nbody\n")
    for place, message in {
        str(tmp_path / "nowhere"): "no such folder",
        str(blob / "README.md"): "a file; give an adapter folder",
        str(base): "no adapter_config.json: this is not an adapter folder",
        str(folder): "posterior.safetensors is missing",
        str(unread): "README.md: its metadata cannot be read",
    }.items():
        assert main(["push", place, "someone/blob"]) == 2
        assert message in last_line(capsys)
    assert hub.asked == []


# ---------------------------------------------------------------- the card


def result_of(folder: Path, path: Path, **changes: Any) -> Path:
    """A results file of the adapter in `folder`."""
    file = made_results.result(path, **changes)
    data = json.loads(file.read_text())
    data["config"]["uqharness"]["adapter_hash"] = adapter_io.content_hash(folder)
    file.write_text(json.dumps(data))
    return file


def test_only_whole_results_of_this_very_adapter_count(
    hub: FakeHub, blob: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "others").mkdir()
    made_results.result(tmp_path / "others")
    command = ["push", str(blob), "someone/blob", "--results"]
    assert main([*command, str(tmp_path / "others")]) == 2
    assert "none count for this adapter" in (line := last_line(capsys)) and "they are of BLoB0" in line
    own = tmp_path / "own"
    own.mkdir()
    leaks = {"arc_easy_uq": {"leaked": 3, "natural": 0, "items": 40}}
    result_of(blob, own, leaks=leaks)
    result_of(blob, own, task="openbookqa_uq", protocol={"rows": [0, 500]})
    with lines_of("uqharness.results") as lines:
        assert main([*command, str(own)]) == 2 and not hub.repositories
    assert lines[0].endswith("arc_easy_uq: skipped: fitted, tuned or selected on these questions")
    assert lines[1].endswith("openbookqa_uq: skipped: 40 of 500 questions")
    dataset = {"dataset": "allenai/ai2_arc", "subset": "ARC-Easy", "split": "validation"}
    result_of(blob, own, protocol={**dataset, "rows": [0, 40]}, draws=3)
    result_of(blob, own, protocol={**dataset, "rows": [0, 40]}, draws=4)
    cloze = {"task": "arc_easy_cloze_uq", "protocol": {**dataset, "name": "uq-cloze-v1"}}
    result_of(blob, own, **cloze)
    assert main([*command, str(own), str(tmp_path / "others")]) == 0
    (index,) = front_matter(hub, "someone/blob")["model-index"]
    (result,) = index["results"]  # one data set; its metrics say which task
    assert result["dataset"] == {
        "name": "allenai/ai2_arc (ARC-Easy)",
        "type": "allenai/ai2_arc",
        "config": "ARC-Easy",
        "split": "validation",
    }
    names = [metric["name"] for metric in result["metrics"]]
    assert names[0] == "Accuracy, arc_easy_cloze_uq, 4 draws" and names[5] == "NLL (nats), arc_easy_uq, 4 draws"
    assert len(names) == len(set(names)) == 6


@pytest.mark.parametrize(
    "base, revision, name",
    [
        ("gpt2", "f" * 40, "gpt2"),
        ("gpt2", None, None),
        ("me/llama/q4.gguf", None, "me/llama"),
        ("/models/llama", "f" * 40, None),
        ("toyworld", None, None),
        (None, None, None),
    ],
)
def test_only_a_base_of_the_hub_is_named(base: str | None, revision: str | None, name: str | None) -> None:
    assert model_card.facts({"base": {"name": base, "revision": revision}}).get("base_model") == name


def test_a_card_says_what_is_known_and_keeps_what_people_wrote(tmp_path: Path) -> None:
    record = {
        "method": {"name": "blob", "label": "BLoB", "settings": {}},
        "base": {"name": "meta-llama/Llama-3.2-1B", "revision": "f" * 40},
        "posterior": {"train_seed": 1},
        "data": {"task": "arc_easy_uq", "dataset": "allenai/ai2_arc"},
    }
    made = model_card.make(record)
    assert made.data.to_dict() == {
        "base_model": "meta-llama/Llama-3.2-1B",
        "datasets": ["allenai/ai2_arc"],
        "library_name": "peft",
        "tags": ["uqharness", "bayesian-lora", "blob", "lora"],
    }
    edited = str(made).replace("library_name: peft", "library_name: peft\nlicense: llama3.2")
    edited = edited.replace("blob\n", "mine\n")
    card = model_card.complete(f"{edited}\nMy own words.\n", record, None, "me/blob")
    assert card.data.license == "llama3.2" and card.text.rstrip().endswith("My own words.")
    assert card.data.tags == ["uqharness", "bayesian-lora", "mine", "lora", "blob"]
    (run,) = read_runs([made_results.result(tmp_path, draws=0)])
    for _ in range(2):
        model_card.add_results(card, "blob", [run])
    values = f"{100 * run.number('acc', 0):.2f} % | {100 * run.number('ece', 0):.2f} % | {run.number('nll', 0):.3f} |"
    assert card.text.count("## Evaluation") == 1 and f"| arc_easy_uq | the mean | 40 | {values}" in card.text
    again = ModelCard(str(card))
    assert [each.metric_name for each in again.data.eval_results or []][0] == "Accuracy, arc_easy_uq, posterior mean"
    local = {**record, "base": {"name": "/home/me/secret/llama", "revision": None}}
    assert "secret" not in str(model_card.make(local)) and "base_model" not in model_card.make(local).data.to_dict()
