"""What the documentation says against what the code does: defaults, links, commands, the tree."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from uqharness import cli, registry
from uqharness import settings as config
from uqharness.errors import InputError
from uqharness.method import Method
from uqharness.settings import Run
from uqharness.suite import schema

ROOT = Path(registry.__file__).resolve().parent.parent
METHODS = ROOT / "docs" / "methods.md"
if not METHODS.exists():
    pytest.skip("documentation is in a checkout only", allow_module_level=True)

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BUILT_IN = [name for name, point in registry.methods().items() if point.value.startswith("uqharness.")]
# Method names that stand for the reader's own.
PLACEHOLDERS = {"METHOD", "my-method", "sgld-noise"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---------------------------------------------------------------- docs/methods.md


def sections(text: str) -> dict[str, str]:
    """{method: its section}: from "## `name`: …" to the next heading of that level."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    by_name = {re.match(r"`([\w-]+)`: ", part): part for part in parts}
    return {match[1]: part for match, part in by_name.items() if match}


def table(text: str, first: str) -> list[list[str]]:
    """Cells of the rows of the table whose header starts with the column `first`."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        inside = line.startswith("|") and (inside or line.startswith(f"| {first} |"))
        if inside:
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows[2:]


def check_settings(cls: type[Method], section: str) -> None:
    """Every field once, with its default, and nothing else."""
    rows = table(section, "setting")
    said = {row[0].strip("`"): row[1].strip("`") for row in rows}
    assert len(said) == len(rows), f"{cls.name}: a setting stands twice in its table"
    fields = {spec.name: spec.default for spec in dataclasses.fields(cls)}
    assert set(said) == set(fields), f"{cls.name}: table and dataclass differ by {set(said) ^ set(fields)}"
    kinds = config.field_types(cls)
    for name, default in fields.items():
        check_value(f"{cls.name}.{name}", config.convert(kinds[name], said[name], name), default)
    assert all(len(row) == 4 and row[3] for row in rows), f"{cls.name}: a default without its origin"


def check_value(name: str, said: Any, default: Any) -> None:
    if isinstance(default, float):
        assert isinstance(said, float) and math.isclose(said, default, rel_tol=1e-5), f"{name}: {said} is {default}"
    else:
        assert said == default and type(said) is type(default), f"{name}: {said!r} is {default!r}"


def suggested(section: str) -> dict[str, Any]:
    line = next((line for line in section.splitlines() if line.startswith("Suggests: ")), "")
    pairs = config.parse_set(re.findall(r"`(\w+=[^`]+)`", line))
    kinds = config.field_types(Run)
    return {name: config.convert(kinds[name], value, name) for name, value in pairs.items()}


def test_every_method_has_a_section() -> None:
    parts = sections(METHODS.read_text(encoding="utf-8"))
    assert set(BUILT_IN) <= set(parts), f"without a section: {set(BUILT_IN) - set(parts)}"
    files = {path.stem for path in (ROOT / "adapters").glob("*.py")}
    assert set(parts) <= files | set(BUILT_IN), f"sections of no method: {set(parts) - files}"


@pytest.mark.parametrize("name", BUILT_IN)
def test_settings_and_defaults(name: str) -> None:
    section = sections(METHODS.read_text(encoding="utf-8"))[name]
    cls = registry.get_method(name)
    check_settings(cls, section)
    wanted = config.field_types(Run)
    suggests = {key: config.convert(wanted[key], value, key) for key, value in cls.suggests.items()}
    assert suggested(section) == suggests
    assert section.count("\n```") >= 2, "the equation is missing"
    assert f"uqharness train {name} " in section, "the example command is missing"


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_overview_is_what_the_methods_say_of_themselves(name: str) -> None:
    rows = {row[0]: row for row in table(METHODS.read_text(encoding="utf-8"), "name")}
    row, cls = rows[f"[`{name}`](#{name})"], registry.get_method(name)
    assert (row[1], row[2]) == (cls.label, cls.paper)
    assert row[4].replace("`", "") == cls.passes.replace("`", "")
    assert row[6] == ("yes" if cls.uses_source else "no")


def test_a_wrong_page_is_noticed() -> None:
    """The checks themselves: a wrong default, a setting too few and one too many."""
    section, cls = sections(METHODS.read_text(encoding="utf-8"))["blob"], registry.get_method("blob")
    wrong = [
        section.replace("| `prior_std` | `0.2` |", "| `prior_std` | `0.1` |"),
        section.replace("| `reweight` | `true` |", "| `reweight` | `false` |"),
        section.replace("| `weights` | `code` |", "| `weights` | `paper` |"),
        section.replace("| `train_samples` | `1` |", "| `train_samples` | `2` |"),
        section.replace("| `gamma` |", "| `gama` |"),
        re.sub(r"^\| `eps` .*\n", "", section, flags=re.MULTILINE),
    ]
    for page in wrong:
        assert page != section
        with pytest.raises((AssertionError, InputError)):
            check_settings(cls, page)


def test_the_examples_use_the_run_settings_of_the_demo() -> None:
    text = METHODS.read_text(encoding="utf-8")
    shown = re.search(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert shown is not None
    settings = {"base": "toyworld", "task": "toyworld_uq", **yaml.safe_load(shown[1])}
    assert settings == {"base": "toyworld", "task": "toyworld_uq", **schema.read("toyworld").run}


# ---------------------------------------------------------------- links


def links(text: str) -> list[str]:
    """Targets of links and images that are neither addresses nor places on the page itself."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose)
    return [target for target in links if not re.match(r"[a-z]+:|#", target)]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_relative_links_point_to_files(page: Path) -> None:
    targets = links(page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target.partition("#")[0]).exists()]
    assert not missing, f"{relative(page)} links to what is not there: {missing}"


def test_links_are_found() -> None:
    text = "[a](x.md#y) ![b](img/z.svg) [c](https://a.b) [d](#e)\n```\n[f](g.md)\n```\n"
    assert links(text) == ["x.md#y", "img/z.svg"]
    assert any(links(page.read_text(encoding="utf-8")) for page in PAGES)


# ---------------------------------------------------------------- commands


def commands(text: str) -> Iterator[str]:
    """`uqharness …` as it stands in code blocks and, across line ends, between backticks."""
    fenced = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    prose = fenced.sub("\n", text)
    indented = "\n".join(line for line in prose.splitlines() if line.startswith("    "))
    block = "\n".join([*fenced.findall(text), indented])
    for line in re.sub(r"\\\n", " ", block).splitlines():
        if match := re.search(r"(?:^|[\s#/`])(uqharness[ \t]+[^\s#`].*)$", line):
            yield match[1].partition("`")[0]
    rest = "\n".join(line for line in prose.splitlines() if not line.startswith("    "))
    for span in re.findall(r"`([^`]+)`", rest):
        if span.startswith("uqharness "):
            yield " ".join(span.split())


def check_command(line: str) -> None:
    """The parser of the command takes it; method and settings exist."""
    words = [word for word in shlex.split(line, comments=True)[1:] if word not in ("…", "--help")]
    if not words:  # `uqharness …`
        return
    name, rest = words[0], ["1" if word == "N" else word for word in words[1:]]  # N: a number
    assert name in {*cli.COMMANDS, "COMMAND"}, f"no command {name!r}: {line}"
    if not rest or name == "COMMAND":  # the command is spoken of, not given
        return
    module, parser = import_module(cli.COMMANDS[name][0]), cli._parser(name)
    module.add_arguments(parser)
    parse = getattr(module, "parse", None)
    args = parse(parser, rest) if parse else parser.parse_args(rest)
    if name == "train":
        check_train(args)
    for method in getattr(args, "methods", None) or ():
        registry.get_method(method)


def check_train(args: argparse.Namespace) -> None:
    given = config.parse_set(args.set or [])
    cls = None if args.method in PLACEHOLDERS else registry.get_method(args.method)
    own = {key: value for key, value in given.items() if cls and key in config.field_types(cls)}
    if cls:
        config.build(cls, own)
        assert not args.adapter or cls.uses_source, f"{cls.name} cannot build on an adapter"
    shared = {key: value for key, value in given.items() if key not in own}
    config.build(Run, {**shared, **config.from_flags(args, Run)})


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_parse(page: Path) -> None:
    failed = []
    for line in commands(page.read_text(encoding="utf-8")):
        try:
            check_command(line)
        except (AssertionError, InputError, SystemExit) as error:
            failed.append(f"{line}: {error}")
    assert not failed, "\n".join([relative(page), *failed])


def test_commands_are_found_and_wrong_ones_noticed() -> None:
    text = "`uqharness train\nblob` `other`\n\n    .venv/bin/uqharness table a \\\n      b  # c\n\n"
    text += "```\n$ uqharness tasks\n```\n"
    assert [line.split() for line in commands(text)] == [
        ["uqharness", "tasks"],
        ["uqharness", "table", "a", "b", "#", "c"],
        ["uqharness", "train", "blob"],
    ]
    assert sum(1 for page in PAGES for _ in commands(page.read_text(encoding="utf-8"))) > 20
    wrong = [
        "uqharness trian blob",
        "uqharness train blbo --out x",
        "uqharness train blob --stepz 3",
        "uqharness train blob --steps many",
        "uqharness train blob --set gama=8",
        "uqharness train blob --set weights=both",
        "uqharness train mle --adapter x",
        "uqharness eval x --tusks toyworld",
        "uqharness demo --methods blbo",
    ]
    for line in wrong:
        with pytest.raises((AssertionError, InputError)):
            check_command(line)


# ---------------------------------------------------------------- the tree in the README


def tree() -> list[tuple[str, str, str]]:
    """(folder, names, description) of each line of the README's tree."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## The tree\n\n((?:    .*\n)+)", text, flags=re.MULTILINE)
    assert block is not None, "README.md has no section `The tree`"
    listed, folder = [], ""
    for line in block[1].splitlines():
        inner = line.startswith("      ")
        match = re.match(r"((?:[\w./]+(?:\.py|/) *)+)(.*)", line.strip())
        assert match is not None, f"no path at the start of {line!r}"
        if not inner:
            folder = match[1].split()[0]
        listed.append((folder if inner else "", match[1], match[2]))
    return listed


def test_the_tree_names_only_what_exists() -> None:
    missing = []
    for folder, names, description in tree():
        missing += [f"{folder}{name}" for name in names.split() if not (ROOT / folder / name).exists()]
        here = [ROOT, ROOT / folder, *(ROOT / folder / name for name in names.split())]
        said = re.findall(r"(?<![\w/.-])[\w/]+(?:\.py|\.yaml|/)(?![\w*])", description)
        missing += [name for name in said if not any((place / name).exists() for place in here)]
    assert not missing, f"the README's tree names what is not there: {missing}"


def test_every_module_is_in_the_tree() -> None:
    said = " ".join(f"{names} {description}" for folder, names, description in tree() if folder == "uqharness/")
    package = ROOT / "uqharness"
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and not path.name.startswith("__")}
    missing = sorted(modules | folders - {"adapters/", "tasks/", "leaderboard/"})
    missing = [name for name in missing if not re.search(rf"(?<![\w/]){re.escape(name)}", said)]
    assert not missing, f"not in the README's tree: {missing}"


def test_every_page_is_in_the_sites_navigation() -> None:
    """`mkdocs build` runs in the workflow; what it leaves out is seen here."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    missing = sorted(page for page in pages if not page.startswith("examples/") and page not in navigation)
    assert not missing, f"not in mkdocs.yml: {missing}"
    named = re.findall(r"[\w/.-]+\.md", navigation)
    assert sorted(set(named)) == sorted(named) and set(named) <= pages, set(named) - pages


def test_the_oldest_dependencies_are_those_of_the_metadata() -> None:
    from importlib.metadata import requires

    done = subprocess.run([sys.executable, ROOT / ".ci" / "oldest.py"], capture_output=True, text=True, check=True)
    oldest = dict(line.split("==") for line in done.stdout.split())
    plain = [line for line in requires("uqharness") or [] if "extra ==" not in line]
    assert len(plain) == len(oldest)
    for line in plain:
        name, lowest = re.findall(r"^[\w-]+|(?<=>=)[\d.]+", line)
        assert oldest[name] == lowest
