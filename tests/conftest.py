"""One thread, no network; real data from the offline hub where `UQHARNESS_OFFLINE_HUB` names its script.

The hub must run before `datasets` is imported, which reads the environment once, so it starts here, and the
workers of pytest-xdist use the controller's.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from overlay import Overlay, build

HUB = os.environ.get("UQHARNESS_OFFLINE_HUB", "")
SETTINGS = "UQHARNESS_TEST_HUB_SETTINGS"
NO_HUB = "UQHARNESS_OFFLINE_HUB does not name offline_hub.py: real data cannot be had"
REAL_MODELS = os.environ.get("UQHARNESS_REAL_MODELS") or str(Path(__file__).parents[1] / "real_models")
NO_REAL_MODELS = (
    "no real weights: python tools/real_models.py makes them, UQHARNESS_REAL_MODELS says where they are, "
    "and UQHARNESS_REAL_MODELS=hub takes those of the Hugging Face hub"
)
HUB_IDS = {
    "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2",
}

# Before anything imports torch; subprocesses inherit it.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile("gate")


def start_hub(script: str) -> dict[str, str]:
    """Serve until this process ends; returns the environment that points Hugging Face libraries there."""
    home = tempfile.mkdtemp(prefix="uqharness-hub-")
    command = [sys.executable, script, "--cache", home, "--serve"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    atexit.register(server.kill)
    settings: dict[str, str] = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    assert server.stdout is not None
    for line in server.stdout:
        match = re.fullmatch(r"export (\w+)='(.*)'\n", line)
        settings |= {match[1]: match[2]} if match else {}
        if line.startswith("export RES_OPTIONS"):  # the last one; the server prints no more
            return settings
    raise RuntimeError(f"{script} --serve printed no settings and ended with exit code {server.wait()}")


def hub_environment() -> dict[str, str]:
    """{} without a hub. Called once per process, on import."""
    if not os.path.isfile(HUB):
        if REAL_MODELS == "hub":
            return {}
        offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        os.environ.update({name: "1" for name in offline})
        return {}
    if SETTINGS not in os.environ:
        os.environ[SETTINGS] = json.dumps(start_hub(HUB))
    settings: dict[str, str] = json.loads(os.environ[SETTINGS])
    for name in list(os.environ):
        if re.fullmatch(r"(HF_HUB|HF_DATASETS|TRANSFORMERS)_(OFFLINE|CACHE)|HF_TOKEN", name):
            del os.environ[name]
    os.environ.update(settings)
    return settings


HUB_ENVIRONMENT = hub_environment()


@pytest.fixture(autouse=True)
def open_log_streams() -> None:
    """Point handlers of other libraries away from streams that pytest captured for an earlier test and has closed.

    transformers and lm-eval make a handler once per process, with the stderr of that moment; writing to it later
    prints a traceback into the output of whatever test comes then.
    """
    loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
            handler.stream = sys.__stderr__  # setStream would flush the closed one


def pytest_collection_finish() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def offline_hub() -> dict[str, str]:
    """Environment for subprocesses that read real data; this process has it already."""
    if not HUB_ENVIRONMENT:
        pytest.skip(NO_HUB)
    return dict(HUB_ENVIRONMENT)


@pytest.fixture(scope="session")
def tiny_real_model() -> Path:
    """A Llama of 260 thousand weights, trained on stories, with its tokenizer."""
    folder = Path(HUB).parent / "models" / "stories260K"
    if not HUB or not folder.is_dir():
        pytest.skip(NO_HUB)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a folder or a hub id: real pretrained weights, tied embeddings, a chat template."""
    return real_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def smollm2_folder(smollm2: Path) -> Path:
    """What tools/real_models.py made of it: dequantised Q4_1."""
    return folder_of(smollm2)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, a folder or a hub id: a real BERT encoder of 6 layers with its tokenizer."""
    return real_model("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def minilm_folder(minilm: Path) -> Path:
    return folder_of(minilm)


def real_model(name: str) -> Path:
    if REAL_MODELS == "hub":
        return Path(HUB_IDS[name])
    if not Path(REAL_MODELS, name, "provenance.json").is_file():
        pytest.skip(NO_REAL_MODELS)
    return Path(REAL_MODELS, name).absolute()


def folder_of(model: Path) -> Path:
    if not model.is_dir():
        pytest.skip("about folders of tools/real_models.py, not about models of the hub")
    return model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama. Imports are inside: most of the tests need no torch."""
    from tests.tiny import make_base

    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def blob(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gaussian adapter of `base`."""
    from tests.tiny_adapter import save

    return save(tmp_path_factory.mktemp("adapters") / "blob", base)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Overlay:
    """Only the standard library and us."""
    return Overlay(tmp_path_factory.mktemp("bare"), wheel)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Overlay:
    """Us as installed from the wheel, and every package of the environment that runs the tests."""
    return Overlay(tmp_path_factory.mktemp("full"), wheel, packages=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long, or needs Slurm or Ray, is left to `.ci/full`."""
    if os.environ.get("UQHARNESS_FULL"):
        return
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="takes long, or needs Slurm or Ray: `.ci/full` runs it"))
