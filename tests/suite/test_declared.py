"""A method's settings read from its source are those of its class, and reading them imports nothing heavy."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from uqharness import registry
from uqharness import settings as config


@pytest.mark.parametrize("name", registry.methods())
def test_the_declared_settings_are_those_of_the_class(name: str) -> None:
    cls, declared = registry.get_method(name), registry.declared(name)
    assert declared is not cls
    assert config.field_types(declared) == config.field_types(cls)
    for one, other in zip(dataclasses.fields(declared), dataclasses.fields(cls), strict=True):
        assert (one.name, one.default, dict(one.metadata)) == (other.name, other.default, dict(other.metadata))
    assert dict(declared.suggests) == dict(cls.suggests) and declared.uses_source == cls.uses_source


def test_they_are_read_without_torch() -> None:
    script = """if True:
        import sys
        from uqharness import registry
        assert all(registry.declared(name) for name in registry.methods())
        print([name for name in ("torch", "peft", "lm_eval") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
