"""Pages about single runs: every question, a comparison, a method, a run, and what was wrong with files."""

from __future__ import annotations

import json
from collections.abc import Sequence

from uqharness.leaderboard import about, charts, comparison, items, markup, run_view, texts
from uqharness.leaderboard.page import Block, Cards, Columns, Figure, Grid, Methods, Page, Text, View
from uqharness.leaderboard.table import titled_tasks
from uqharness.results.runs import RunSummary

SIZES = (5, 10, 20, 50)
COMMANDS = """lm_eval --model bayeslora --model_args adapter=DIR,samples=10 --tasks TASK --output_path results/NAME
uqharness validate --submit results/NAME"""
HOW = """
1. Evaluate with an output path: the results file then holds the answers of every draw, and every number here is
   computed from them. A `--limit` makes a result that is marked as trimmed.
2. `uqharness validate --submit` runs the checks that a submission must pass: the format, probabilities that are
   probabilities, metrics that agree with the answers, all questions of the task, no run twice, a true protocol hash.
3. Open a pull request that adds the folder. The same checks run there, and the reasons are written on its lines.

Results that do not pass are listed below with the reason. None is dropped silently, and none is changed.
"""


def pick_run(view: View) -> RunSummary:
    """The run of the link, or the nearest one of another data set or method that was chosen beside it."""
    results, runs = view.results, view.results.runs
    given = next(iter(view.params.get("run", ())), "")
    known = {run.run_id: run for run in runs}

    def drawn(run: RunSummary) -> bool:
        """Whether every single draw can be shown: what a visit without a link starts with."""
        return given not in known and run.draws > 1 and results.whole(run.run_id)

    chosen = known.get(given) or next(filter(drawn, runs), runs[0])
    tasks = sorted({run.task for run in runs})
    task = view.one("task", "Data set", tasks, chosen.task, labels=titled_tasks(tasks), main=True)
    here = [run for run in runs if run.task == task]
    rows = list(dict.fromkeys(map(results.board.label, here)))
    row = view.one("method", "Method", rows, results.board.label(chosen), main=True)
    same = {run.run_id: run for run in here if results.board.label(run) == row}
    run = same.get(chosen.run_id) or nearest(list(filter(drawn, same.values())) or list(same.values()), chosen)
    if given in known:  # of another data set or method: not a mistake in the link
        view.params = {**view.params, "run": [run.run_id]}
    named = {each.run_id: run_label(each) for each in same.values()}
    clears = ("task", "method")
    return known[view.one("run", "Run", list(named), run.run_id, labels=named, main=True, clears=clears)]


def nearest(runs: Sequence[RunSummary], like: RunSummary) -> RunSummary:
    """Of these the one of the same method, else of the same recipe, else of the same seed; the first of equal ones."""

    def alike(run: RunSummary) -> tuple[bool, bool, bool]:
        return run.row == like.row, run.recipe_hash == like.recipe_hash, run.seed == like.seed

    return max(runs, key=alike)


def run_label(run: RunSummary) -> str:
    """Which of the runs of a method on a data set."""
    seed = "no seed" if run.seed is None else f"seed {run.seed}"
    trained = f", trained on {run.trained_on}" if run.trained_on not in (None, run.task) else ""
    return f"{seed}{trained}, N = {run.draws} ({run.run_id[:6]})"


def questions(view: View) -> Page:
    title, what = "Items", "What was asked, what was answered, and how much the draws disagree."
    results, runs = view.results, view.results.runs
    if not runs:
        return _nothing(view, title, what, "so there are no questions to show")
    run = pick_run(view)
    record = results.record(run.run_id)
    held = ["all", *["0"] * bool(run.has_mean and run.draws)]
    held += map(str, range(1, run.draws + 1)) if results.whole(run.run_id) else []  # published without its draws
    n = view.one("samples", "N", held, help="draws averaged; 0: the posterior's mean", main=True)
    show = view.one(
        "show", "Questions", list(items.FILTERS), labels={k: text for k, (text, _) in items.FILTERS.items()}, main=True
    )
    sort = view.one(
        "sort", "Order", list(items.SORTS), labels={k: text for k, (text, *_) in items.SORTS.items()}, main=True
    )
    size = view.one("size", "Per page", SIZES, 10, main=True)
    base, label = items.baseline(runs, run), results.board.label(run)
    plain = results.record(base.run_id) if base else None
    run_items = items.items(record, label, None if n == "all" else int(n), plain)
    selected = items.select(run_items, show, sort)
    pages = max(1, -(-len(selected) // size))
    page = view.number("page", f"Page of {pages}", pages, main=True)
    alike = [other.file for other in runs if (other.task, other.protocol_hash) == (run.task, run.protocol_hash)]
    files = list(dict.fromkeys([run.file, *alike]))
    rows = selected.iloc[size * (page - 1) : size * page].to_dict("records")
    words, whence = texts.texts(record, files, [int(row["at"]) for row in rows])
    many = "" if n == "all" else f", N = {n}"
    caption = f"{label} on {run.task}, run {run.run_id}{many}: {items.FILTERS[show][0]}"

    def whole() -> Grid:
        """Every question of the filter, not only those of this page."""
        known, _ = texts.texts(record, files, [int(d) for d in selected["at"]])
        return Grid(*items.rows(run_items, selected, known), caption, "words")

    compared = "compared with MLE of the same recipe" if run_items.base else "no MLE of the same recipe to compare with"
    cards = [markup.card(run_items, row, text) for row, text in zip(rows, words, strict=True)]
    blocks: list[Block] = [Text(f"{len(selected):,} of {record.items:,} questions, {compared}. {whence}", "caption")]
    blocks += [Cards("".join(cards), whole)] if rows else [Text("No question is like that.", "info")]
    return view.page(title, what, blocks)


def compare(view: View) -> Page:
    title, what = "Compare", "Two to four runs on the same questions, tested in pairs."
    results, runs, label = view.results, view.results.runs, view.results.board.label
    if len(runs) < 2:
        return _nothing(view, title, what, "so there is nothing to compare")
    known = {run.run_id: run for run in runs}
    start = results.cached("start", lambda: comparison.start(runs))
    given = [known[i] for i in view.params.get("run", ()) if i in known] or [known[i] for i in start]
    tasks = sorted({run.task for run in runs})
    labels = titled_tasks(tasks)
    task = view.one("task", "Data set", tasks, given[0].task, labels=labels, main=True, clears=("method",))
    here = [run for run in runs if run.task == task]
    by_row: dict[str, list[RunSummary]] = {}
    for run in here:
        by_row.setdefault(label(run), []).append(run)
    wanted = [run for run in given if run.task == task]
    if not wanted:  # another data set was chosen: the same methods there
        matches = [nearest(by_row[label(run)], run) for run in given if label(run) in by_row]
        wanted = list(dict.fromkeys(matches)) or [known[i] for i in comparison.start(here)]
    by_run = "method" not in view.params
    own = list(dict.fromkeys(map(label, wanted)))
    chosen = view.several("method", "Methods", list(by_row), own, main=True)
    ids = [run.run_id for run in wanted if label(run) in chosen]
    ids += [nearest(by_row[row], wanted[0]).run_id for row in chosen if row not in own]
    names = {run.run_id: f"{row}, {run_label(run)}" for row in chosen for run in by_row[row]}
    view.params = {**view.params, "run": ids or [""]}
    picked = view.several("run", "Runs", list(names), ids, labels=names, main=True, clears=("task", "method"))
    ids = list(picked)[: comparison.MOST]
    blocks: list[Block] = []
    if by_run and (left_out := max(len(given) - len(ids), len(picked) - len(ids))) > 0 and "task" not in view.params:
        many = f"At most {comparison.MOST} are compared, all on one data set."
        blocks.append(Text(f"Left out of these runs: {left_out}. {many}", "info"))
    if len(ids) < 2:
        return view.page(title, what, [*blocks, Text("Choose at least two runs.", "info")])
    return view.page(title, what, [*blocks, *_compared(view, [known[i] for i in ids])])


def _compared(view: View, chosen: Sequence[RunSummary]) -> list[Block]:
    results = view.results
    labels = comparison.names(chosen, [results.board.label(run) for run in chosen])
    answers = [results.answers(run.run_id, label) for run, label in zip(chosen, labels, strict=True)]
    settings = [[key, *values] for key, values in comparison.differing(chosen)]
    numbers = Grid(*comparison.side_by_side(chosen, labels), "At all draws of each run", "numbers")
    differ = Grid(["Setting", *labels], settings, "Settings that differ; equal ones are left out", "words")
    right: list[Block] = [differ] if settings else [Text("No recorded setting differs.", "caption")]
    blocks: list[Block] = [Columns([numbers], right), Text("Tests", "heading")]
    if why := comparison.not_comparable(chosen, [results.record(run.run_id) for run in chosen]):
        blocks.append(Text(why, "warning"))
    else:
        tests = comparison.shown_tests(comparison.tests(labels, answers))
        caption = (
            "Paired over questions; ACC by McNemar's exact test. These runs only: other training seeds may differ."
        )
        both = comparison.both_right(labels, answers)
        blocks.append(Grid(*tests, caption, "words"))
        blocks.append(Grid(*both, "Questions that both, one or neither got right", "numbers"))
    links = [
        [(f"Questions of {label}", view.link("items", run=run.run_id))]
        for run, label in zip(chosen, labels, strict=True)
    ]
    blocks += [
        Text("Reliability", "heading"),
        Figure(charts.reliability(answers, bands=False), "compare", "Reliability of the compared runs"),
        Grid(["Look closer"], links, "Every answer", "words"),
    ]
    return blocks


def method(view: View) -> Page:
    title, what = "Method", "What a method does, and all results of it."
    board = view.results.board
    if not board.runs:
        return _nothing(view, title, what, "so there is no method to show")
    names = run_view.methods(board.runs)
    chosen = view.one("method", "Method", names, "BLoB", main=True)
    runs = board.select(method=chosen)
    first = runs[0]
    page, paper = about.pages().get(about.method_name(first)), about.paper(first)
    blocks: list[Block] = []
    if page:
        blocks += [Text(page.title[:1].upper() + page.title[1:], "heading"), Text(page.equation, "code")]
    blocks += [Text(f"Paper: {paper}")] if paper else []
    if page:
        blocks.append(Text(page.text, "markdown", "What it does, its settings and its limits"))
    elif about.method_name(first):
        blocks.append(
            Text("The documentation has no page for this method; its record names only what is above.", "caption")
        )
    else:
        blocks.append(Text("A model without an adapter: there is no paper or equation to show.", "caption"))
    blocks.append(Text("Measured", "heading"))
    tables = view.results.tables([run.run_id for run in runs], ("nll", "brier", "acc", "ece"), [0, None])
    for k, table in enumerate(tables, start=1):
        caption = (
            f"{chosen}, table {k} of {len(tables)}" if len(tables) > 1 else f"{chosen}: N = 0 is the posterior's mean"
        )
        blocks.append(Methods(table, caption, link=lambda cell: view.link("items", run=cell.runs[0]), most=12))
    listed = run_view.listing(runs, board.label, lambda run_id: view.link("run", run=run_id))
    blocks.append(Grid(*listed, f"Runs of {chosen}", sortable=True))
    header, printed, remarks = run_view.in_papers(board.reported, chosen)
    if printed:
        blocks += [
            Text("Reported in papers", "heading"),
            Grid(header, printed, "As printed: other prompts, budgets and bases", "numbers"),
        ]
        blocks += [Text(remark, "caption") for remark in remarks]
    return view.page(title, what, blocks)


def run(view: View) -> Page:
    title, what = "Run", "One method, one training seed, one data set."
    board = view.results.board
    if not board.runs:
        return _nothing(view, title, what, "so there is no run to show")
    chosen = pick_run(view)
    header, rows = run_view.numbers(chosen, view.results.record(chosen.run_id))
    numbers = Grid(header, rows, "Computed from the answers; intervals over questions", "numbers")
    facts = Grid(["What", "Value"], run_view.facts(chosen, board.label(chosen)), "What it is", "words")
    pages = {"All questions of this run": "items", "Compare it": "compare"}
    links = [(text, address) for text, page in pages.items() if (address := view.link(page, run=chosen.run_id))]
    closer = [Grid(["Look closer"], [[link] for link in links], "Pages of this run", "words")] if links else []
    blocks: list[Block] = [Text(text, "warning") for text in run_view.warnings(chosen, board.problems)]
    blocks += [Columns([numbers, *closer], [facts]), Text("Make it again", "heading")]
    blocks += [Text(step, "code") for step in about.reproduce(chosen)]
    if left_out := about.withheld_text(chosen):
        blocks.append(Text(left_out, "caption"))
    blocks.append(Text("Record of the adapter", "heading"))
    if record := about.record_of(chosen):
        blocks.append(Text(json.dumps(record, indent=1, ensure_ascii=False), "json"))
    else:
        blocks.append(Text("This model came without an adapter, so there is no record of a training.", "caption"))
    return view.page(title, what, blocks)


def submit(view: View) -> Page:
    problems = view.results.board.problems
    blocks: list[Block] = [Text("Add results", "heading"), Text(COMMANDS, "code"), Text(HOW, "markdown")]
    blocks.append(Text("Files with problems", "heading"))
    kind = view.one("kind", "Kind", ["all", *sorted({each.kind for each in problems})], main=True)
    listed = [each for each in problems if kind in ("all", each.kind)]
    if listed:
        rows = [[each.file, each.task or "–", each.kind, each.reason] for each in listed]
        caption = f"Files with problems: {kind}"
        blocks.append(Grid(["File", "Task", "Kind", "Reason"], rows, caption, "words", sortable=True))
    else:
        blocks.append(Text("Every file could be read, and every number agrees with its answers.", "info"))
    return view.page("Submit", "How results get here, and what was wrong with those that did not.", blocks)


def _nothing(view: View, title: str, what: str, why: str) -> Page:
    return view.page(title, what, [Text(f"Too few measured results were given, {why}.", "info")])
