"""README.md of an adapter: metadata for the hub (base, data set, metrics, `model-index`) and text for people.

Only known facts are stated: a base or data set without a hub id and the licence of either are omitted.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from uqharness.adapter_io import hub
from uqharness.errors import InputError
from uqharness.results.metadata import METRICS, model_index
from uqharness.results.runs import RunSummary
from uqharness.training.prompts import flags

_RESULTS = re.compile(r"\n*<!-- uqharness results -->.*?<!-- /uqharness results -->\n*", re.DOTALL)


def make(record: Mapping[str, Any]) -> ModelCard:
    """Return the card of an adapter that is being saved."""
    data = ModelCardData(**facts(record))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{_text(record)}")


def complete(text: str | None, record: Mapping[str, Any] | None, base: str | None, name: str) -> ModelCard:
    """Return the card to push: the folder's own text, or a new one, with known facts added to its metadata.

    base: of an adapter without a record. name: the repository.
    """
    known = record or {"base": {"name": base}}
    if text is None:
        text = _text(known) if record else f"# {name}\n\nA LoRA adapter for PEFT{f', of {base}' if base else ''}.\n"
    if not text.lstrip().startswith("---"):
        text = f"---\n{{}}\n---\n{text}"
    try:
        card = ModelCard(text)
    except Exception as error:  # YAML's own errors, and what the hub's classes make of odd values
        raise InputError(f"README.md: its metadata cannot be read ({' '.join(str(error).split())[:200]})") from error
    card.text = card.text.replace("adapter=THIS_FOLDER", f"adapter=hub:{name}")
    data: Any = card.data  # whose fields huggingface_hub does not declare
    fields, own = facts(known), data.to_dict()
    local = [entry for entry in _names(own.get("base_model")) if not hub.is_id(entry) and "/" in entry]
    if local:  # PEFT writes the path of a local base, which the hub refuses
        data.base_model = fields.get("base_model")
    for key, value in fields.items():
        if not own.get(key):
            setattr(data, key, value)
    tags = [tag for tag in _names(own.get("tags")) if not any(tag.endswith(f":{path}") for path in local)]
    data.tags = list(dict.fromkeys([*tags, *fields["tags"]]))
    return card


def add_results(card: ModelCard, name: str, runs: Sequence[RunSummary]) -> None:
    """Add evaluation results as the hub's `model-index` and as a table; replace those of an earlier call."""
    data: Any = card.data
    data.metrics = [kind for kind, _ in METRICS.values()]
    data.model_name, data.eval_results = model_index_to_eval_results([model_index(name, runs)])
    header = "| task | draws averaged | questions | accuracy | ECE | NLL | protocol |\n|---|---|---|---|---|---|---|"
    rows = [
        f"| {run.task} | {run.draws or 'the mean'} | {run.items:,} | {100 * run.number('acc', run.draws):.2f} % | "
        f"{100 * run.number('ece', run.draws):.2f} % | {run.number('nll', run.draws):.3f} | `{run.protocol_hash}` |"
        for run in runs
    ]
    table = "\n".join([header, *rows])
    note = "Computed by uqharness from the recorded answers of every draw; ECE has 15 bins. Numbers are comparable "
    note += "only if the protocol is the same."
    section = f"<!-- uqharness results -->\n## Evaluation\n\n{table}\n\n{note}\n<!-- /uqharness results -->\n"
    card.text = f"{_RESULTS.sub(chr(10), card.text).rstrip()}\n\n{section}"


def facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that a record supports, by the names of the hub."""
    base, method, data = record.get("base") or {}, record.get("method") or {}, record.get("data") or {}
    card: dict[str, Any] = {"library_name": "peft"}
    if name := _hub_id(str(base.get("name") or ""), base.get("revision")):
        card["base_model"] = name
    if hub.is_id(data.get("dataset")):
        card["datasets"] = [data["dataset"]]
    ours = ["uqharness", "bayesian-lora", str(method["name"])] if method else []
    card["tags"] = [*ours, "lora"]
    return card


def _text(record: Mapping[str, Any]) -> str:
    method, base, name = record["method"], record["base"], str(record["base"].get("name"))
    if not _hub_id(name, base.get("revision")):
        name = os.path.basename(name.rstrip("/"))  # the rest of a path says something of this machine alone
    data, costs = record.get("data") or {}, record.get("costs") or {}
    settings = ", ".join(f"{k}={v}" for k, v in sorted(method.get("settings", {}).items())) or "defaults"
    words = "".join(f" {shlex.quote(word)}" for word in flags(record.get("run") or {}))
    imported, task = record.get("imported"), data.get("task")
    origin = f"Trained with {imported['tool']}, imported by" if imported else "Trained with"
    on = f" on `{task}`" if task else ""
    paper = f" ({method['paper']})" if method.get("paper") else ""
    steps = f", {costs['steps']:,} steps" if costs.get("steps") else ""
    plain = (record.get("predictive") or {}).get("mean_is_plain", True)
    loads = "the posterior's mean" if plain else "the LoRA without the posterior mean's transforms of layer inputs"
    revision = f"\n\nThe base is `{name}` at revision `{base['revision']}`." if base.get("revision") else ""
    return f"""# {method.get("label", method["name"])} adapter of {name}

{origin} [uqharness]({record.get("homepage", "https://pypi.org/project/uqharness/")}){on}: method \
`{method["name"]}`{paper}, {settings}; seed {record["posterior"]["train_seed"]}{steps}. \
PEFT loads {loads}; the draws are averaged by

    lm_eval --model bayeslora --model_args adapter=THIS_FOLDER,samples=10 --tasks {task or "TASK"}{words}{revision}

`uq_config.json` contains everything that is needed to reproduce it.
"""


def _hub_id(base: str, revision: object) -> str | None:
    """The hub's id of a base: `owner/name`, that of `owner/name/file.gguf`, or a bare name that came from the hub."""
    name = "/".join(base.split("/")[:2]) if base.endswith(".gguf") and not os.path.exists(base) else base
    return name if hub.is_id(name) or (revision and re.fullmatch(r"[\w.-]+", name)) else None


def _names(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [each for each in value or [] if isinstance(each, str)]  # type: ignore[attr-defined]
