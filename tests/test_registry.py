from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from uqharness import plugins, registry
from uqharness.errors import InputError
from uqharness.method import Method

ROOT = Path(registry.__file__).resolve().parent.parent


def install(folder: Path, lines: str, code: str) -> None:
    """A third party's distribution: its metadata and one module."""
    info = folder / "sgld-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: uqharness-sgld\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.METHODS}]\n{lines}\n")
    (folder / "third_party_sgld.py").write_text(code)


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    names = {"sgld": "SGLD", "broken": "Nothing", "number": "NUMBER", "mle": "SGLD"}
    code = "from uqharness.adapters.mle import MLE\nclass SGLD(MLE): name = 'sgld'\nNUMBER = 3\n"
    install(tmp_path, "\n".join(f"{name} = third_party_sgld:{value}" for name, value in names.items()), code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("third_party_sgld", None)


def test_built_ins_are_there_and_are_methods():
    for name in ("mle", "ens", "blob"):
        cls = registry.get_method(name)
        assert issubclass(cls, Method) and cls.name == name


def test_the_checkout_reads_the_same_list_as_an_install(monkeypatch):
    tomllib = pytest.importorskip("tomllib")
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a checkout")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][plugins.METHODS]
    monkeypatch.setattr(plugins, "entry_points", lambda group: ())  # as if it were not installed
    assert {name: point.value for name, point in registry.methods().items()} == declared
    assert registry.get_method("mle").name == "mle"


def test_third_parties_use_the_same_door_and_do_not_hide_built_ins(third_party, caplog):
    assert registry.get_method("sgld").name == "sgld"
    assert plugins.distribution(registry.methods()["sgld"]) == "uqharness-sgld"
    assert registry.get_method("mle").name == "mle"
    assert "mle" in caplog.text and "hidden" in caplog.text


def test_nothing_is_imported_before_it_is_asked_for(third_party):
    assert "broken" in registry.methods() and "third_party_sgld" not in sys.modules


@pytest.mark.parametrize(
    "name, package, words",
    [
        ("bolb", None, ["unknown method 'bolb'", "did you mean blob?", "ens", "mle"]),
        ("sgld2", "uqharness-sgld", ["pip install uqharness-sgld"]),
        ("broken", None, ["cannot be imported", "uqharness-sgld"]),
        ("number", None, ["is not a uqharness.method.Method"]),
    ],
)
def test_errors_name_the_way_out(third_party, name, package, words):
    with pytest.raises(InputError) as caught:
        registry.get_method(name, package)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_lap_is_laplace(monkeypatch):
    points = (EntryPoint("laplace", "uqharness.adapters.mle:MLE", plugins.METHODS),)
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    assert registry.get_method("lap") is registry.get_method("laplace")
