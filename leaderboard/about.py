"""Describe methods and how to reproduce runs: sections of docs/methods.md, records, commands. Pure functions.

The leaderboard imports no method: its descriptions come from the adapter's record and the documentation.
Commands are written to be pasted into a shell, so every value from a results file is quoted.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from uqharness.loose_json import nest, value_of
from uqharness.results.reading import content_of, parse
from uqharness.results.runs import RunSummary, plain_text
from uqharness.settings import UNRECORDED, Run, fields_of, parse_model_args

FEWSHOT_SEED = 1234  # lm-eval's own
NAME = re.compile(r"[A-Za-z][\w-]*")
RUN = frozenset(spec.name for spec in fields(Run))
# model_args that a command may repeat from a file of others: numbers and switches. Not what loads or contacts anything.
# `draws` is the former name of `sampling`.
ARGUMENTS = "samples seed mean tolerance sampling draws dtype max_length add_bos_token truncation".split()
ARGUMENTS += "load_in_4bit load_in_8bit softmax_dtype".split()
NEVER = ("trust_remote_code", "pretrained")


@dataclass(frozen=True)
class Page:
    """One method of docs/methods.md."""

    title: str
    equation: str
    text: str  # Markdown: what it is, its settings and limits


@lru_cache(maxsize=1)
def pages() -> dict[str, Page]:
    """Return {method name: its section}; empty if the documentation is not installed."""
    shipped = files("uqharness.leaderboard").joinpath("methods.md")
    beside = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
    if shipped.is_file():
        text = shipped.read_text(encoding="utf-8")
    elif beside.is_file():
        text = beside.read_text(encoding="utf-8")
    else:
        return {}
    by_name = {}
    for section in re.split(r'\n<a id="(?=[\w-]+"></a>)', text)[1:]:
        name, _, rest = section.partition('"></a>\n')
        title, _, body = rest.partition("\n")
        equation, words = _split(body.split("\n## ")[0])
        by_name[name] = Page(title.removeprefix("## ").partition(": ")[2], equation, words)
    return by_name


def _split(body: str) -> tuple[str, str]:
    """Return the first block of code, and the rest without it and without comments."""
    match = re.search(r"```\n(.*?)\n```\n", body, re.DOTALL)
    words = body if match is None else body[: match.start()] + body[match.end() :]
    words = re.sub(r"<!--.*?-->", "", words, flags=re.DOTALL)
    words = re.sub(r"\]\((?!https?://)[^)]*\)", "]", words).replace("[`", "`").replace("`]", "`")
    return (match[1] if match else ""), words.strip()


def record_of(run: RunSummary) -> dict[str, Any]:
    """Return the adapter's record without the losses of every step; empty for a model without one."""
    return nest(run.adapter_record)


def method_name(run: RunSummary) -> str:
    return str(value_of(run.adapter_record.get("method.name", '""')) or "")


def paper(run: RunSummary) -> str:
    return str(value_of(run.adapter_record.get("method.paper", '""')) or "")


def reproduce(run: RunSummary) -> list[str]:
    """Return commands that reproduce this run, one block per step."""
    record = record_of(run)
    adapter = f"adapters/{method_name(run) or 'adapter'}-seed{run.seed or 0}"
    steps = _train(record, adapter) if record.get("method") else []
    return [*steps, _evaluate(run, adapter if steps else None), "uqharness table results"]


def _train(record: Mapping[str, Any], out: str) -> list[str]:
    """Return the training commands, first that of the adapter it was built on, if any."""
    source = record.get("source")
    source = source if isinstance(source, Mapping) and source.get("method") else None
    inner = f"{out}-source"
    steps = _train(source, inner) if source and (source.get("run") or source.get("recipe")) else []
    method, given = record["method"], record.get("run") or record.get("recipe") or {}
    name = str(method.get("name"))
    own = {k: v for k, v in (method.get("settings") or {}).items() if NAME.fullmatch(k) and k not in NEVER}
    free = {*fields_of("io"), "device", "seed", *own}  # a name that both have is the method's (MAP's weight decay)
    settings = {k: v for k, v in {**UNRECORDED, **given}.items() if k not in free and k in RUN}
    if settings.get("base") != "toyworld":
        settings |= {"base": "BASE"} if "base" in settings else {}
    if source:
        settings = {k: v for k, v in settings.items() if k in ("task", "max_length", "dtype")}
    lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
    lines += ["settings:", *(f"  {key}: {json.dumps(value)}" for key, value in own.items())] if own else []
    file = shlex.quote(f"{out.rsplit('/', 1)[-1]}.yaml")
    built_on = f" --adapter {shlex.quote(inner if steps else 'ADAPTER')}" if source else ""
    seed = given.get("seed")
    seed_text = f" --seed {shlex.quote(str(seed))}" if seed is not None else ""
    command = f"uqharness train {shlex.quote(name)} --config {file}{built_on}{seed_text} --out {shlex.quote(out)}"
    return [*steps, "\n".join([f"cat > {file} <<'END'", *lines, "END", command])]


def _evaluate(run: RunSummary, adapter: str | None) -> str:
    results = evaluation(run)
    config = results.get("config") or {}
    given = parse_model_args(config.get("model_args"))
    arguments = {k: v for k, v in given.items() if repeated(k, v)}
    if adapter:
        held = run.finite if run.finite is not None else 1 if run.combine == "given" else None
        if run.draws != held:  # else all that there are
            arguments.setdefault("samples", run.draws)
        words = ["uqharness", "eval", adapter]
    else:
        arguments = {**({"pretrained": "MODEL"} if "pretrained" in given else {}), **arguments}
        words = ["uqharness", "eval", "--model", run.model]
    words += ["--tasks", run.task]
    if arguments:
        words += ["--model_args", ",".join(f"{k}={v}" for k, v in arguments.items())]
    words += _flags({key: value_of(text) for key, text in run.protocol.items()}, results)
    limit = run.items if "trimmed" in run.remarks else None  # where the file does not say it
    for flag, value in (("batch_size", config.get("batch_size")), ("limit", config.get("limit") or limit)):
        if value is not None:
            words += [f"--{flag}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join([*words, "--output_path", "results"])


def repeated(name: str, value: object) -> bool:
    """Return whether a command may repeat this model argument; a comma in a value would add further arguments."""
    return name in ARGUMENTS and re.fullmatch(r"[\w.+-]{1,40}", str(value)) is not None


def withheld(run: RunSummary) -> list[tuple[str, str]]:
    """Return (name, value) of arguments that no command repeats: models, code and addresses of strangers."""
    record = record_of(run)
    given = parse_model_args((evaluation(run).get("config") or {}).get("model_args"))
    replaced = ("adapter", "peft", "pretrained") if record.get("method") else ("adapter",)
    named = {key: value for key, value in given.items() if key not in replaced and not repeated(key, value)}
    recipe = record.get("run") or record.get("recipe") or {}
    if isinstance(recipe, Mapping) and recipe.get("base") not in (None, "", "toyworld"):
        named = {"base": recipe["base"], **named}
    return [(plain_text(str(key)), plain_text(str(value))) for key, value in named.items()]


def withheld_text(run: RunSummary) -> str:
    """Return one line about `withheld`; empty if nothing is withheld."""
    named = ", ".join(f"{key} = {value}" for key, value in withheld(run))
    return f"The file also says: {named}. No command repeats this: check it before you use it." if named else ""


def _flags(protocol: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """Flags for what stood around the question: examples, a chat template, an instruction."""
    words, fewshot = [], protocol.get("fewshot")
    if isinstance(fewshot, Mapping):
        words += ["--num_fewshot", str(fewshot.get("number"))]
        if fewshot.get("seed") not in (None, FEWSHOT_SEED):
            words += ["--seed", f"0,1234,1234,{fewshot['seed']}"]
    if protocol.get("chat_template"):
        words += ["--apply_chat_template"]
        words += ["--fewshot_as_multiturn", str(bool(fewshot.get("multiturn")))] if isinstance(fewshot, Mapping) else []
    if protocol.get("system_instruction"):  # a hash: the words are in the file alone
        words += ["--system_instruction", str(results.get("system_instruction") or "INSTRUCTION")]
    return words


def evaluation(run: RunSummary) -> Mapping[str, Any]:
    """Return lm-eval's data on the run in its file; empty if the file cannot be read any more."""
    try:
        data = parse(content_of(run.file), run.file)
        return data if isinstance(data.get("config"), Mapping) else {}
    except Exception:  # whatever has become of the file: the page shows the rest
        return {}
