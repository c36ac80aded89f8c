"""Wheel, sdist, editable install and a checkout that was never installed; the import rule's own test."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from overlay import ROOT, Overlay, build

MAPPED = ("adapters", "leaderboard", "tasks")
WHERE = "import uqharness, uqharness.tasks, uqharness.adapters as a, uqharness.leaderboard as l; "
WHERE += "print(uqharness.__version__, uqharness.tasks.__path__[0], list(a.__path__)[0], list(l.__path__)[0])"


def sources() -> set[str]:
    """Path in the wheel of every file of the package that git knows or would know."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "uqharness", *MAPPED]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: no list of what belongs to the package")
    present = {name for name in listed.stdout.split("\n") if name and (ROOT / name).is_file()}
    return {name if name.startswith("uqharness/") else f"uqharness/{name}" for name in present}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", folder)) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def checkout(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, to be edited or used as it is."""
    return Path(shutil.copytree(sdist, tmp_path_factory.mktemp("checkout") / "tree"))


def members(wheel: Path) -> dict[str, int]:
    """Every file of a wheel with its checksum, apart from the metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist() if ".dist-info/" not in info.filename}


def test_wheel_holds_the_package_and_the_two_start_files(wheel: Path) -> None:
    # docs/methods.md goes along: the leaderboard shows a method's equation and paper from it.
    assert set(members(wheel)) == sources() | {"uqharness.pth", "uqharness.start", "uqharness/leaderboard/methods.md"}
    assert "uqharness/py.typed" in members(wheel)
    assert not {"uqharness/adapters/__init__.py", "uqharness/leaderboard/__init__.py"} & set(members(wheel))


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = [name for name in archive.namelist() if ".dist-info/" in name]
        read = {Path(name).name: archive.read(name).decode() for name in info}
    entries = configparser.ConfigParser()
    entries.read_string(read["entry_points.txt"])
    assert entries["console_scripts"]["uqharness"] == "uqharness.cli:main"
    oracle = {"toyworld_oracle": "uqharness.toyworld.oracle:Oracle"}
    assert dict(entries["lm_eval.models"]) == {"bayeslora": "uqharness.harness.model:BayesLoRA", **oracle}
    assert dict(entries["lm_eval.tasks"]) == {"uqharness": "uqharness.tasks"}
    assert "Version: 0.1.0\n" in read["METADATA"] and "Requires-Python: >=3.10\n" in read["METADATA"]
    assert "License-Expression: Apache-2.0" in read["METADATA"] and "Apache License" in read["LICENSE"]


def test_every_entry_point_names_something_in_the_wheel(wheel: Path) -> None:
    """Read, not imported: an adapter with a typo in its class name must fail here and not at the user's."""
    with zipfile.ZipFile(wheel) as archive:
        text = next(archive.read(n).decode() for n in archive.namelist() if n.endswith("entry_points.txt"))
        entries = configparser.ConfigParser()
        entries.optionxform = str  # type: ignore[assignment,method-assign]
        entries.read_string(text)
        values = [value for section in entries.sections() for value in entries[section].values()]
        assert len(values) >= 6
        for value in values:
            module, _, attr = value.partition(":")
            path = module.replace(".", "/") + ("/__init__.py" if not attr else ".py")
            body = ast.parse(archive.read(path)).body
            names = {getattr(node, "name", None) for node in body}
            names |= {target.id for node in body for target in getattr(node, "targets", ()) if hasattr(target, "id")}
            assert not attr or attr in names, f"{value}: {path} defines no {attr}"


def test_sdist_is_complete(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    assert members(build("wheel", tmp_path, source=sdist)) == members(wheel)
    for name in ("README.md", "LICENSE", "Makefile", "pyproject.toml", "tests/conftest.py", ".ci/run"):
        assert (sdist / name).is_file(), name


def test_wheel_is_imported_from_site_packages(bare: Overlay) -> None:
    package = bare.site / "uqharness"
    expected = f"0.1.0 {package / 'tasks'} {package / 'adapters'} {package / 'leaderboard'}\n"
    assert bare.code(WHERE).out == expected


def test_checkout_that_was_never_installed(checkout: Path, tmp_path: Path) -> None:
    done = Overlay(tmp_path).code(WHERE, path=checkout)
    expected = f"0.1.0 {checkout / 'tasks'} {checkout / 'adapters'} {checkout / 'leaderboard'}\n"
    assert done.out == expected, done


def test_editable_install_reads_the_checkout(checkout: Path, tmp_path: Path) -> None:
    code = "import sys, hatchling.build as b; b.build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=checkout, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    assert set(members(wheel)) == {"_editable_impl_uqharness.pth", "uqharness.pth", "uqharness.start"}
    env = Overlay(tmp_path / "env", wheel)
    assert str(checkout / "adapters") in env.code(WHERE).out
    (checkout / "adapters" / "brand_new.py").write_text("answer = 42\n")
    assert env.code("from uqharness.adapters.brand_new import answer; print(answer)").out == "42\n"
    hook = env.code("import sys; print(type(sys.meta_path[0]).__module__)")
    assert hook.out == "uqharness.harness.hook\n" and hook.err == "", hook


def test_a_package_called_adapters_is_not_shadowed(checkout: Path, tmp_path: Path) -> None:
    """AdapterHub's package of that name, later on the path than our checkout, is still the one found."""
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "__init__.py").write_text("name = 'AdapterHub'\n")
    paths = [str(checkout), str(tmp_path)]
    code = f"import sys; sys.path += {paths}; import adapters; print(adapters.name)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout == "AdapterHub\n", done.stderr


def rule() -> ModuleType:
    spec = importlib.util.spec_from_file_location("import_rule", ROOT / ".ci" / "import_rule.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BREAKS = [
    ("uqharness/training/loop.py", "from uqharness.adapters.blob import BLoB"),
    ("uqharness/training/loop.py", "import uqharness.adapters.blob"),
    ("uqharness/deep/down.py", "def f():\n    from ..adapters import blob"),
    ("uqharness/training/data.py", "import importlib\nimportlib.import_module('uqharness.adapters.mle')"),
    ("tasks/docs.py", "from uqharness.adapters import mle"),
    ("leaderboard/views.py", "from uqharness.adapter_io.folder import read_record"),
    ("leaderboard/app.py", "from uqharness import model"),
    ("adapters/mle.py", "from uqharness import cli"),
    ("uqharness/suite.py", "from .cli import main"),
]
KEEPS = [
    ("uqharness/registry.py", "from uqharness.adapters import mle"),
    ("adapters/laplace.py", "from uqharness.adapters.mle import MLE\nfrom uqharness.engine.lora import LoraStack"),
    (
        "leaderboard/views.py",
        "from uqharness.metrics.registry import ece\nfrom uqharness.results.record import unpack",
    ),
    ("leaderboard/app.py", "from uqharness.leaderboard import views\nfrom uqharness import __version__"),
    ("uqharness/harness/model.py", "from .adapters_of_another_kind import x\nimport adapters.blob"),
    ("uqharness/__main__.py", "from uqharness.cli import main"),
]


@pytest.mark.parametrize("path, code", BREAKS)
def test_import_rule_is_broken(tmp_path: Path, path: str, code: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(code)
    violations = rule().violations(tmp_path)
    line = len(code.splitlines())
    assert len(violations) == 1 and violations[0].startswith(f"{path}:{line}: imports uqharness."), violations


@pytest.mark.parametrize("path, code", KEEPS)
def test_import_rule_is_kept(tmp_path: Path, path: str, code: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(code)
    assert rule().violations(tmp_path) == []


def test_import_rule_in_this_tree() -> None:
    assert rule().violations(ROOT) == []
