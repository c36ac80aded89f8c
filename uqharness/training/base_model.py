"""Base model + LoRA, W = W0 + (α / r) B A  (LoRA, arXiv:2106.09685, Sec. 4.1): load, inject, initialise.

PEFT initialises from the global generator; we draw A again from a keyed one, so a seed means the same adapter
whatever ran before. B = 0: training starts at the base model. Training and evaluation share all of this file, so
that both see the same base: its vocabulary, its tied head, its quantisation.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import logging
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn

from uqharness.engine.lora import HEADS, is_classifier
from uqharness.errors import InputError, did_you_mean
from uqharness.posterior import keyed_generator
from uqharness.settings import Run, chosen_layers
from uqharness.training.prompts import template_text
from uqharness.training.targets import fresh_modules, head_targets, peft_targets

log = logging.getLogger("uqharness.training.base_model")
MOST_LAYERS, MOST_ROWS = 4096, 2**24


def build_model(run: Run) -> tuple[PeftModel, Any]:
    """Return the base with a new adapter, and its tokenizer."""
    base, tokenizer = load_base(run)
    return inject(base, run), tokenizer


def load_base(run: Run, classes: int = 0) -> tuple[nn.Module, Any]:
    """Load the base on the run's device and in its precision, and its tokenizer.

    classes: of the task, where a sequence classifier answers it; 0: a causal language model does.
    """
    if not run.base:
        raise InputError("no base model: give --base with a folder, a hub id or toyworld")
    (where, file), device = base_location(run.base), pick_device(run.device)
    options = _loading(run, device)
    if file:
        check_gguf(run.base, options)
    gguf = {"gguf_file": file} if file else {}
    with load_errors(run.base, file):
        if file is None:
            check_size(where)
            config = transformers.AutoConfig.from_pretrained(where)
            check_kind(config, run.base, classes)
            if run.layers != "all":  # before the weights are read
                chosen_layers(run.layers, config.get_text_config().num_hidden_layers)
        elif classes:
            raise InputError(f"base model {run.base}: a GGUF file has no sequence classifier: give an encoder's folder")
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **gguf)
        if run.apply_chat_template:
            template_text(tokenizer, base=run.base)  # before the weights
        quantised = run.load_in_4bit or run.load_in_8bit  # prepared for training in place
        key = (where, file, classes, str(training_dtype(run)), str(device))
        base = shared(
            None if quantised else key,
            lambda: (
                load_classifier(where, classes, **options)
                if classes
                else transformers.AutoModelForCausalLM.from_pretrained(where, **gguf, **options)
            ),
        )
        if classes and run.max_length > (most := most_tokens(base)):
            raise InputError(f"max_length is {run.max_length}: base model {run.base} takes {most} tokens; give that")
    if file:
        forget_gguf(base)
    fit_vocabulary(base, len(tokenizer))
    if quantised:
        exact_on_cpu(base)
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    else:
        base = base.to(device)
    return base, tokenizer


def base_location(name: str) -> tuple[str, str | None]:
    """Return the location of a base model for transformers, and its GGUF file, if any.

    `toyworld` is the base that comes with this package; GGUF files are named `FOLDER/x.gguf` or `user/name/x.gguf`.
    """
    if name == "toyworld":
        from uqharness import toyworld

        return str(toyworld.base_path()), None
    path = Path(name).expanduser()
    # No library takes an absolute path for a hub id, and looks that up.
    if path.is_dir():
        return os.path.abspath(path), None
    if not name.lower().endswith(".gguf"):
        return name, None
    if path.is_file():
        return os.path.abspath(path.parent), path.name
    user, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if name.startswith((".", "/", "~")) or not file:
        raise InputError(f"base model {name}: no such GGUF file; give its path, or user/name/FILE.gguf on the hub")
    return f"{user}/{repository}", file


_kept: dict[Any, nn.Module] | None = None  # the base that the cells of a suite share, once it is asked for


def keep_base() -> None:
    """Cache the last base of this process from now on, so that the next adapter on it need not load it."""
    global _kept
    _kept = {} if _kept is None else _kept


def shared(key: tuple[Any, ...] | None, load: Callable[[], nn.Module]) -> Any:
    """Return the result of `load`; if cached, new modules around the weights of the last one with this key."""
    if _kept is None or key is None:
        return load()
    if key not in _kept:
        _kept.clear()
        _kept[key] = load().to(torch.device(key[-1]))
    base = _kept[key]
    weights = [*base.parameters(), *base.buffers()]
    return copy.deepcopy(base, {id(tensor): tensor for tensor in weights})


# -------------------------------------------------------------------- encoders and their classification heads


def is_encoder(config: Any) -> bool:
    """Return whether a configuration is that of an encoder (RoBERTa, BERT, DeBERTa, ModernBERT), which classifies."""
    kinds = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, transformers.MODEL_FOR_MASKED_LM_MAPPING
    other = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False)
    return not other and all(type(config) in kind for kind in kinds)


def check_kind(config: Any, name: str, classes: int) -> None:
    """Refuse an encoder where a causal model answers and the reverse, and a head of another number of classes."""
    kind = config.model_type
    if classes and not is_encoder(config):
        raise InputError(
            f"base model {name} is no encoder ({kind}), and the task is answered by a sequence classifier: give "
            "RoBERTa, BERT, DeBERTa-v3 or ModernBERT, or another task"
        )
    if not classes and is_encoder(config):
        raise InputError(
            f"base model {name} is an encoder ({kind}), and the task is answered by a causal language model: give "
            "one, or a task of sentence pairs (rte_uq, mrpc_uq; see `uqharness tasks`)"
        )
    trained = any(each.endswith("ForSequenceClassification") for each in config.architectures or ())
    if classes and trained and config.num_labels != classes:
        raise InputError(
            f"base model {name} has a classification head of {config.num_labels} classes and the task has {classes}: "
            "give the encoder without a head, or a task of as many classes"
        )


def load_classifier(where: str, classes: int, **options: Any) -> nn.Module:
    """Load a sequence classifier; `uq_fresh` names parameters that the checkpoint lacks, with arbitrary values."""
    with torch.random.fork_rng(), without_report():
        torch.manual_seed(0)
        base, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            where, num_labels=classes, output_loading_info=True, **options
        )
    base.uq_fresh = tuple(sorted(report["missing_keys"]))
    if base.uq_fresh:
        log.info("not in the checkpoint, so drawn from the seed: %s", ", ".join(base.uq_fresh))
    return base


@contextmanager
def without_report() -> Iterator[None]:
    """Suppress transformers' table of missing and unexpected weights inside this context."""
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)


def most_tokens(base: nn.Module) -> int:
    """Return how many tokens an encoder's position embeddings allow, without those that RoBERTa's count from."""
    sizes = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in base.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    return min(sizes, default=int(base.config.max_position_embeddings))  # type: ignore[union-attr,arg-type]


def trained_whole(base: nn.Module, targets: Sequence[str]) -> tuple[str | None, list[str] | None]:
    """Return PEFT's task type and `modules_to_save` for these target modules.

    For SEQ_CLS PEFT trains the whole head. Where layers of the head get a LoRA, only the others are trained in full.
    """
    if not is_classifier(base):
        return "CAUSAL_LM", None
    if not (low_rank := head_targets(base, targets)):
        return "SEQ_CLS", fresh_modules(base) or None
    owners = {name.rpartition(".")[0] for name, _ in base.named_parameters() if name.startswith(HEADS)}
    return None, [*fresh_modules(base), *sorted(owners - {*low_rank})] or None


@torch.no_grad()
def init_head(model: PeftModel, seed: int) -> None:
    """Start what is trained in full: as the checkpoint has it, or where it lacks it from `seed`.

    Drawn weights are N(0, initializer_range²), biases 0, scales 1, also those below a LoRA in the head.
    """
    base: Any = model.get_base_model()
    std, fresh = float(getattr(base.config, "initializer_range", 0.02)), set(getattr(base, "uq_fresh", ()))
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        whole = ".modules_to_save.default." in name
        own = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
        own = own.replace(".base_layer.", ".")
        if own not in fresh:
            if whole:
                parameter.copy_(parameters[name.replace(".modules_to_save.default.", ".original_module.")])
        elif whole or ".base_layer." in name:
            if parameter.ndim > 1:
                parameter.copy_(std * torch.randn(parameter.shape, generator=keyed_generator("head", seed, own)))
            else:
                parameter.fill_(0.0 if own.endswith("bias") else 1.0)


def skeleton(name: str, classes: int = 0) -> nn.Module:
    """Return the base without its weights, built from its configuration."""
    where, file = base_location(name)
    if file:
        check_gguf(name, {})
    with load_errors(name, file), torch.device("meta"):
        if file is None:
            check_size(where)
        config = transformers.AutoConfig.from_pretrained(where, **({"gguf_file": file} if file else {}))
        check_kind(config, name, classes)
        if classes:
            config.num_labels = classes
            return transformers.AutoModelForSequenceClassification.from_config(config)
        return transformers.AutoModelForCausalLM.from_config(config)


@contextmanager
def load_errors(name: str, file: str | None) -> Iterator[None]:
    """Turn errors of loading a base into a one-line InputError."""
    try:
        with gguf_errors(name, file):
            yield
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if other := re.match(r"Unrecognized configuration class <class '(?:\w+\.)*(\w+)'>", reason):
            raise InputError(
                f"base model {name} is not a causal language model of transformers {transformers.__version__} "
                f"({other[1]}): give a base that is a language model alone"
            ) from error
        hint = did_you_mean(name, ["toyworld"])
        raise InputError(f"base model {name} cannot be loaded{hint}: {reason}") from error


def check_size(where: str, **options: Any) -> None:
    """Refuse a base whose config.json asks for more layers or rows than any model has, before they are made."""
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(where, **options)
    except (RecursionError, MemoryError) as error:
        raise InputError(f"base model {where}: config.json is nested too deeply; give another base") from error
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name, value in part.items():
            most = MOST_LAYERS if re.search("layers?$", name) else MOST_ROWS if name.endswith("size") else None
            if most and type(value) is int and value > most:
                shown = f"{value:,}" if value < 10**18 else f"{value.bit_length()} bits long"
                raise InputError(f"base model {where}: its {name} is {shown}; at most {most:,} are loaded")


def inject(base: nn.Module, run: Run) -> PeftModel:
    """Inject a LoRA on the run's target modules, initialised from the run's seed."""
    # The head of a tied base gets a LoRA of its own; one that the embedding shares would be another model.
    untied = {"ensure_weight_tying": False} if "ensure_weight_tying" in inspect.signature(LoraConfig).parameters else {}
    kind, whole = trained_whole(base, run.target_modules)
    config = LoraConfig(
        task_type=kind,  # type: ignore[arg-type,unused-ignore]
        r=run.lora_r,
        lora_alpha=run.lora_alpha,  # type: ignore[arg-type,unused-ignore]
        lora_dropout=run.lora_dropout,
        target_modules=peft_targets(base, run.target_modules, run.layers),
        modules_to_save=whole,
        **untied,
    )
    with torch.random.fork_rng(), known_warnings():  # PEFT draws A too; ours replaces it
        model = get_peft_model(base, config)  # type: ignore[arg-type,unused-ignore]
    config.base_model_name_or_path = run.base  # get_peft_model writes the folder that the base was read from
    init_adapter(model, run.seed)
    init_head(model, run.seed)
    settle_tying(model)
    return model


# -------------------------------------------------------------------- tied heads and padded vocabularies


def is_tied(base: nn.Module) -> bool:
    """Return whether the output head's weight is the embedding's."""
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()  # type: ignore[operator]
    return head is not None and head.weight is embedding.weight


def untie(base: nn.Module) -> None:
    """Give the output head its own weight, which is needed only to merge an adapter into a tied head."""
    if is_tied(base):
        head: Any = base.get_output_embeddings()  # type: ignore[operator]
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    base.config.tie_word_embeddings = False  # type: ignore[union-attr]


def tied_head_note(model: PeftModel) -> str | None:
    """Return a note if the adapter has a LoRA on a head that its base ties to the embedding."""
    base: Any = model.get_base_model()
    if is_tied(base) and any("lora_" in name for name, _ in base.get_output_embeddings().named_parameters()):
        return "the base ties its output head to its embedding: the head's LoRA acts on the head only"
    return None


def settle_tying(model: PeftModel) -> None:
    """Keep tied tensors tied; tying them again by name, as HFLM does, fails if PEFT wraps the head."""
    base: Any = model.get_base_model()
    if is_tied(base):
        base.tie_weights = lambda *_, **__: None


@contextmanager
def known_warnings() -> Iterator[None]:
    """Suppress PEFT's warnings on tied heads, which we report in one line, and on Conv1D."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
        yield


@torch.no_grad()
def fit_vocabulary(base: nn.Module, tokens: int) -> None:
    """Grow the embeddings if the tokenizer has more tokens than rows; never shrink them.

    Many checkpoints are padded to a round number of rows, which stay. New rows are the mean of the others, in
    training and in evaluation.
    """
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()  # type: ignore[operator]
    rows = embedding.weight.shape[0]
    if tokens <= rows:
        return
    log.info("the tokenizer has %d tokens and the embedding %d rows: the mean row fills the rest", tokens, rows)
    means = [layer.weight[:rows].float().mean(0) for layer in (embedding, head) if layer is not None]
    base.resize_token_embeddings(tokens, mean_resizing=False)  # type: ignore[operator]
    layers = (base.get_input_embeddings(), base.get_output_embeddings())  # type: ignore[operator]
    for layer, mean in zip((layer for layer in layers if layer is not None), means, strict=True):
        layer.weight[rows:] = mean.to(layer.weight.dtype)


# -------------------------------------------------------------------- initialisation


@torch.no_grad()
def init_adapter(model: PeftModel, seed: int) -> None:
    """A ~ U(±sqrt(1/n)), n its inputs (PEFT's default), from `seed` alone; B = 0."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.copy_(uniform(parameter, 1.0, "init", seed, name))
        elif ".lora_B." in name:
            parameter.zero_()


def uniform(like: Tensor, scale: float, *key: object) -> Tensor:
    """U(±sqrt(scale / n)) in the shape of A `[r, n]`, keyed."""
    bound = math.sqrt(scale / like.shape[1])
    return torch.empty(like.shape).uniform_(-bound, bound, generator=keyed_generator(*key))


def pick_device(device: str) -> torch.device:
    """Return the device; auto: a GPU if there is one. Each process of an `accelerate launch` has a GPU of its own."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch sees no GPU: use --device cpu")
    rank = os.environ.get("LOCAL_RANK")
    return torch.device(device, int(rank)) if device == "cuda" and rank else torch.device(device)


# -------------------------------------------------------------------- precision and quantisation


def training_dtype(run: Run) -> torch.dtype:
    """Return the precision of the base in training."""
    device = pick_device(run.device)
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    dtype: torch.dtype = getattr(torch, ("bfloat16" if half else "float32") if run.dtype == "auto" else run.dtype)
    return dtype


def evaluation_dtype(device: torch.device, record: Mapping[str, Any] | None) -> str:
    """Return the precision of the base in evaluation if none is given; "auto" is the checkpoint's.

    float32 on a CPU, where bfloat16 takes many times as long; elsewhere what the adapter was trained in.
    """
    if device.type == "cpu":
        return "float32"
    record = record or {}
    recorded = record.get("base", {}).get("dtype") or record.get("run", {}).get("dtype") or "auto"
    return str(recorded)


def named_dtype(name: object) -> torch.dtype | str:
    """Return torch's type of this name; "auto" is unchanged."""
    dtype: Any = name if name == "auto" else getattr(torch, str(name).removeprefix("torch."), None)
    if not (dtype == "auto" or isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype={name}: no precision of weights: give float32, bfloat16, float16 or auto")
    return dtype


def quantisation(options: MutableMapping[str, Any], dtype: torch.dtype | None) -> Any:
    """Take `load_in_4bit=True` and its kind out of `options`: transformers' configuration of it, or None.

    4 bit is NormalFloat (QLoRA, arXiv:2305.14314), computed in `dtype`, unless the options say otherwise.
    """
    ours = {name: options.pop(name) for name in [*options] if name.startswith(("load_in_", "bnb_4bit_", "llm_int8_"))}
    four, eight = bool(ours.pop("load_in_4bit", False)), bool(ours.pop("load_in_8bit", False))
    if not (four or eight):
        if ours:
            raise InputError(f"{', '.join(ours)} without load_in_4bit or load_in_8bit: add one, or remove it")
        return None
    if four and eight:
        raise InputError("load_in_4bit and load_in_8bit are both on: choose one")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("4- and 8-bit bases need bitsandbytes, which is missing: pip install uqharness[quantized]")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for every 8-bit product
    defaults = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype} if four else {}
    try:
        return transformers.BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=eight, **{**defaults, **ours})
    except (TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"quantisation settings {ours}: {reason}: see transformers' BitsAndBytesConfig") from error


def quantised_as(config: Any) -> str | None:
    """Return how a base is quantised, in a word for records."""
    if config is None:
        return None
    config = config if isinstance(config, Mapping) else config.to_dict()
    if config.get("load_in_4bit"):
        return f"4bit {config.get('bnb_4bit_quant_type')}"
    return "8bit" if config.get("load_in_8bit") else str(config.get("quant_method") or "yes")


def exact_on_cpu(base: nn.Module) -> None:
    """Prevent bitsandbytes' 4-bit layers from repacking themselves in evaluation mode on a CPU.

    The packed form rounds the scales to bfloat16, serves no layer narrower than 64 and no backward pass, so that an
    answer would depend on the mode and on the processor.
    """
    module: Any
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_gguf(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a base in a GGUF file does not support."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"base model {name}: GGUF files need the gguf package, which is missing: pip install gguf")
    if options.get("quantization_config") is not None:
        raise InputError(
            f"base model {name}: a GGUF file is dequantised when it is read: remove load_in_4bit and load_in_8bit"
        )


@contextmanager
def gguf_errors(name: str, file: str | None) -> Iterator[None]:
    """Turn errors of reading a GGUF file (unknown architecture, not GGUF) into an InputError."""
    try:
        yield
    except (ImportError, ValueError, LookupError, RuntimeError, TypeError, struct.error) as error:
        if file is None or isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"base model {name} cannot be read by transformers {transformers.__version__}: {reason} "
            "Give the same model as safetensors"
        ) from error


def forget_gguf(base: nn.Module) -> None:
    """Mark weights of a GGUF file as not quantised: they are dequantised on loading, which transformers ignores.

    It would refuse to save them, and to move or train them in some releases.
    """
    model: Any = base
    model.hf_quantizer, model.is_quantized = None, False
    for name in ("quantization_config", "_is_quantized"):
        if hasattr(model.config, name):
            delattr(model.config, name)


def _loading(run: Run, device: torch.device) -> dict[str, Any]:
    """Return arguments of `from_pretrained`: precision and quantisation."""
    dtype = training_dtype(run)
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    options: dict[str, Any] = {"dtype" if version >= (4, 56) else "torch_dtype": dtype}
    config = quantisation({"load_in_4bit": run.load_in_4bit, "load_in_8bit": run.load_in_8bit}, dtype)
    if config is not None:
        options |= {"quantization_config": config, "device_map": {"": device}}
    return options
