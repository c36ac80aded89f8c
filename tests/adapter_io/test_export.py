"""`uqharness export`: N plain PEFT adapters that answer as our draws do."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.tiny import make_base, make_lora
from uqharness.adapter_io import folder as adapter_io
from uqharness.adapters.mcd import Dropped, TokenMasks
from uqharness.cli import main
from uqharness.commands import serving
from uqharness.engine.engine import Engine
from uqharness.engine.lora import LoraStack
from uqharness.engine.rows import make_rows
from uqharness.metrics.averaging import combine_draws
from uqharness.posterior import Gaussian

PAIRS = [([1, 12, 13, 14, 4], [6]), ([1, 12, 13, 14, 4], [7, 9]), ([1, 20, 4], [8])]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a BLoB adapter with a std on every A."""
    root = tmp_path_factory.mktemp("world")
    make_base(root / "base")
    model = make_lora(root / "base", use_rslora=True)
    mean = LoraStack(model).mean()
    std = {name: torch.full_like(t, 0.1) for name, t in mean.items() if ".lora_A." in name}
    save(root / "blob", model, Gaussian(mean, std, train_seed=5), "blob", root / "base")
    return root


def save(folder: Path, model: PeftModel, posterior: object, method: str, base: Path) -> None:
    record = {"method": {"name": method}, "base": {"name": str(base)}}
    adapter_io.save_adapter(folder, model, posterior, record)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 3])
def test_every_draw_answers_as_ours(world: Path, tmp_path: Path, seed: int) -> None:
    """Our engine folds all draws into one forward of one model; PEFT loads each by itself."""
    command = ["export", str(world / "blob"), str(tmp_path / "draws"), "--samples", "3", "--seed", str(seed)]
    assert main(command) == 0 and sorted(os.listdir(tmp_path / "draws")) == ["README.md", "draw0", "draw1", "draw2"]
    posterior = adapter_io.load_predictive(world / "blob")[0].posterior
    base = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(world / "blob")).eval()
    ours = Engine(model, posterior, samples=3, seed=seed).score(make_rows([PAIRS], 32)).draws  # [S, K]
    different = set()
    for i in range(3):
        plain = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / "draws" / f"draw{i}")).eval()
        for k, (context, answer) in enumerate(PAIRS):
            tokens = [*context, *answer]
            with torch.no_grad():
                logp = theirs(input_ids=torch.tensor([tokens])).logits.double().log_softmax(-1)[0]
            value = sum(float(logp[n - 1, tokens[n]]) for n in range(len(context), len(tokens)))
            assert value == pytest.approx(float(ours[i, k]), abs=1e-6 * len(answer) + 1e-6)
            different.add(round(value, 4))
    assert len(different) == 9


def test_the_first_of_many_are_the_few_and_the_rest_is_the_mean(world: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        assert main(["export", str(world / "blob"), str(tmp_path / f"n{count}"), "--samples", str(count)]) == 0
    one, two = (load_file(tmp_path / name / "draw0" / adapter_io.MEAN) for name in ("n1", "n2"))
    mean = load_file(world / "blob" / adapter_io.MEAN)
    assert one.keys() == mean.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(one[name], mean[name]) == (".lora_B." in name) for name in one)


def test_what_no_weights_can_hold_is_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_lora(world / "base")
    mean = LoraStack(model).mean()
    column = Dropped(mean, 0, 0.5)
    token = TokenMasks(column)
    save(tmp_path / "in", model, token, "mcd", world / "base")
    assert main(["export", str(tmp_path / "in"), str(tmp_path / "out"), "--samples", "2"]) == 2
    assert "noise on inputs, which no weights can hold" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in"]
    save(tmp_path / "in", model, column, "mcd", world / "base")
    assert main(["export", str(tmp_path / "in"), str(tmp_path / "out"), "--samples", "2"]) == 0
    drawn = load_file(tmp_path / "out" / "draw1" / adapter_io.MEAN)
    assert any(bool((t == 0).all(0).any()) for name, t in drawn.items() if ".lora_A." in name)


@pytest.mark.parametrize(
    "flags, said",
    [(["--samples", "0"], "give 1 to"), (["--samples", "many"], "many"), ([], "--samples")],
)
def test_bad_input_is_code_2_and_no_output(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["export", str(world / "blob"), str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err and not os.listdir(tmp_path)
    assert main(["export", str(world / "base"), str(tmp_path / "out"), "--samples", "1"]) == 2
    assert not os.listdir(tmp_path)
    assert main(["export", str(world / "blob"), str(world / "base"), "--samples", "1"]) == 2
    assert "exists already" in capsys.readouterr().err


# ---------------------------------------------------------------- README.md


def serving_command(readme: str) -> list[str]:
    """The words of the vLLM command."""
    (command,) = re.findall(r"^    (vllm serve (?:.*\\\n)*.*)$", readme, flags=re.MULTILINE)
    return shlex.split(command)


def flag(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_the_readme_serves_each_draw_by_its_name(world: Path, tmp_path: Path) -> None:
    assert main(["export", str(world / "blob"), str(tmp_path / "draws"), "--samples", "3", "--seed", "4"]) == 0
    readme = (tmp_path / "draws" / "README.md").read_text()
    words = serving_command(readme)
    assert words[:4] == ["vllm", "serve", str(world / "base"), "--enable-lora"]
    assert words[words.index("--lora-modules") + 1 :] == [f"draw{i}=./draw{i}" for i in range(3)]
    # r is 4; the smallest rank that vLLM takes and that holds it is 8
    assert (flag(words, "--max-lora-rank"), flag(words, "--max-loras")) == ("8", "3")
    assert "samples=3,seed=4" in readme and "mean of the draws' probabilities" in readme


def test_many_draws_are_named_by_the_shell(world: Path) -> None:
    posterior = adapter_io.load_predictive(world / "blob")[0].posterior
    readme = serving.readme("a", "b/c", adapter_io.read_config(world / "blob"), posterior, "probs", 200, 0)
    ((_, loop),) = re.findall(r"(--lora-modules) (.*)$", readme, flags=re.MULTILINE)
    words = subprocess.run(["bash", "-c", f"echo {loop}"], capture_output=True, text=True).stdout.split()
    assert words == [f"draw{i}=./draw{i}" for i in range(200)]
    assert "--max-loras 32 --max-cpu-loras 200 " in readme


@pytest.mark.parametrize("targets, trap", [(["q_proj", "lm_head"], True), (["q_proj"], False)])
def test_the_trap_is_said_where_the_head_has_a_lora(
    world: Path, tmp_path: Path, targets: list[str], trap: bool
) -> None:
    model = make_lora(world / "base", target_modules=targets)
    mean = LoraStack(model).mean()
    std = {name: torch.full_like(t, 0.1) for name, t in mean.items() if ".lora_A." in name}
    save(tmp_path / "in", model, Gaussian(mean, std, train_seed=5), "blob", world / "base")
    assert main(["export", str(tmp_path / "in"), str(tmp_path / "out"), "--samples", "1"]) == 0
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "https://github.com/vllm-project/vllm/issues/51594" in readme
    assert ("Do not score answers by `prompt_logprobs`" in readme) == trap
    assert ("These draws have no LoRA on the output head" in readme) != trap


def test_what_vllm_does_not_take_is_said(world: Path) -> None:
    posterior = adapter_io.load_predictive(world / "blob")[0].posterior
    config = adapter_io.read_config(world / "blob")
    config.use_dora, config.modules_to_save = True, ["lm_head"]
    said = serving.readme("a", "b", config, posterior, "probs", 1, 0)
    assert "**vLLM refuses this adapter**: it is a DoRA adapter; it holds whole modules (lm_head)." in said


class Completions(BaseHTTPRequestHandler):
    """Answers as vLLM's /v1/completions does, each draw by its own table."""

    tops = {"draw0": {" A": -0.1, " B": -3.0, " x": -4.0}, "draw1": {" A": -2.5, " B": -0.2, " x": -6.0}}

    def log_message(self, *args: object) -> None:
        return None

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/completions" and wanted["max_tokens"] == 1 and "echo" not in wanted
        answer = {"choices": [{"logprobs": {"top_logprobs": [self.tops[wanted["model"]]]}}]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize("rule", ["probs", "logits"])
def test_the_readmes_client_averages_as_the_posterior_does(
    world: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against `scores.combine_draws`, which is what our own records are computed by."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    posterior = adapter_io.load_predictive(world / "blob")[0].posterior
    readme = serving.readme("a", "b/c", adapter_io.read_config(world / "blob"), posterior, rule, 2, 0)
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        ask = partial(names["probabilities"], "question", url=f"http://127.0.0.1:{server.server_port}")
        answers = ask([" A", " B"])
        with pytest.raises(LookupError, match="C.*not among the 3 most probable"):
            ask([" A", " C"])
    finally:
        server.shutdown()
        server.server_close()
    logp = np.array([[[top[" A"], top[" B"]]] for top in Completions.tops.values()])  # [S, D, C]
    assert answers == pytest.approx(combine_draws(logp, rule)[0])
