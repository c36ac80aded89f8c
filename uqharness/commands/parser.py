"""An argument parser that reports mistakes as one-line errors with a suggestion. All commands use it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from uqharness.errors import InputError, did_you_mean


def explain(parser: argparse.ArgumentParser, message: str) -> str:
    """Return argparse's message on one line, with the nearest flag for an unknown one."""
    flags = list(parser._option_string_actions)
    unknown = re.match(r"unrecognized arguments: (.*)", message)
    if unknown:
        words = unknown[1].split()
        wrong = next((word for word in words if word.startswith("-")), words[0])
        message = f"unknown argument {wrong}{did_you_mean(wrong.partition('=')[0], flags)}"
    required = re.match(r"the following arguments are required: (\w+)$", message)
    lists = [action.option_strings[0] for action in parser._actions if action.option_strings and action.nargs == "+"]
    if required and lists and any(a.metavar == required[1] and a.nargs == "+" for a in parser._actions):
        message += f"; write {required[1]} before {' and '.join(lists)}, which take all words that follow"
    message = re.sub(r"invalid functools\.partial\(.*\) value", "invalid value", message)  # of lm-eval's --seed
    return f"{' '.join(message.split())}; see `{parser.prog} --help`"


def check_choice(flag: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is not one of `known`."""
    if value not in known:
        raise InputError(f"{flag} {value!r}{did_you_mean(value, known)}: use one of {', '.join(known)}")


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations: `--step` is an error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(explain(self, message))
