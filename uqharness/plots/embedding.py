"""Embeddings of questions under draws of weights, in the plane that tells the answers apart (BLoB, Figure 3).

The embedding φ(s; W) is what the output head reads at a question's last token. From the mean's weights: a plane by
linear discriminant analysis with the right answers as classes, and in it the regions of a logistic regression. Each
draw's embeddings are projected into that plane. Answers that are texts of their own are no classes: the plane is then
that of the two principal components, without regions.

Against the paper: the analysis shrinks its covariance (Ledoit & Wolf), since with fewer questions than dimensions the
plain one separates any labels. Right and wrong are those of the averaged answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from uqharness.errors import InputError
from uqharness.metrics.intervals import Interval, z_value
from uqharness.plots.figure import COLOURS, blank, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from uqharness.harness.model import BayesLoRA

Floats = NDArray[np.float64]
SHOWN = 4  # right and wrong questions, as in the paper
MASSES = (0.75, 0.5)


@dataclass(frozen=True)
class Embedded:
    """One adapter's questions: the mean's embedding [D, H], the draws' [S, D, H], labels [D], who is right [D]."""

    name: str
    mean: Floats
    draws: Floats
    gold: NDArray[np.int64]
    right: NDArray[np.bool_]
    ids: NDArray[np.int64]  # position in the evaluated split
    answers: Sequence[str]  # of the classes; () if each question has texts of its own


@dataclass(frozen=True)
class Ratio:
    """Mean spread of wrong answers over that of right ones, and its 95 % interval over questions."""

    value: float
    interval: Interval
    wrong: int
    right: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"


@dataclass(frozen=True)
class Plane:
    """An adapter's embeddings in two dimensions, and the classes' regions there."""

    source: Embedded
    mean: Floats  # [D, 2]
    draws: Floats  # [S, D, 2]
    regions: Any  # of scikit-learn: predict([n, 2]); None without classes
    ratio: Ratio  # of the spread in the plane
    whole: Ratio  # in all dimensions


def spread(draws: Floats) -> Floats:
    """Total variance of each question's embedding over draws, [D] from [S, D, n]: the trace of its covariance."""
    return np.asarray(draws.var(axis=0, ddof=1).sum(axis=-1))


def ratio_of(values: Floats, right: NDArray[np.bool_], level: float = 0.95) -> Ratio:
    """mean(wrong) / mean(right); exp(log ratio ± z sqrt(v_w + v_r)), v the relative variance of each mean."""
    parts = values[~right], values[right]
    counts = len(parts[0]), len(parts[1])
    if min(counts) < 2 or min(part.mean() for part in parts) <= 0:
        return Ratio(float("nan"), (float("nan"), float("nan")), *counts)
    value = float(parts[0].mean() / parts[1].mean())
    half = z_value(level) * float(np.sqrt(sum(part.var(ddof=1) / len(part) / part.mean() ** 2 for part in parts)))
    return Ratio(value, (value * float(np.exp(-half)), value * float(np.exp(half))), *counts)


def project(embedded: Embedded) -> Plane:
    """The plane of the mean's embeddings, and every draw in it."""
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression

    if len(embedded.mean) < 3:
        raise InputError(f"{embedded.name}: a plane needs 3 questions, here {len(embedded.mean)}: raise --limit")
    if embedded.answers and len(np.unique(embedded.gold)) < 3:
        raise InputError(
            f"{embedded.name}: the right answers are of {len(np.unique(embedded.gold))} kinds, a plane needs 3: take a "
            "task with more choices, or more questions"
        )
    if embedded.answers:
        plane: Any = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=2)
        plane.fit(embedded.mean, embedded.gold)
    else:
        plane = PCA(n_components=2, svd_solver="full").fit(embedded.mean)
    mean = plane.transform(embedded.mean)
    scale = mean.std(axis=0)
    mean = mean / scale
    draws = np.stack([plane.transform(part) / scale for part in embedded.draws])
    regions = LogisticRegression(max_iter=1000).fit(mean, embedded.gold) if embedded.answers else None
    ratios = (ratio_of(spread(values), embedded.right) for values in (draws, embedded.draws))
    return Plane(embedded, mean, draws, regions, *ratios)


def chosen(right: NDArray[np.bool_], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Four right and four wrong questions (or all there are), by a seed."""
    rng = np.random.default_rng(seed)
    kinds = (np.flatnonzero(right), np.flatnonzero(~right))
    one, other = (np.sort(rng.permutation(kind)[:SHOWN]) for kind in kinds)
    return one, other


def said(plane: Plane) -> str:
    """The ratio on one line."""
    size = plane.source.mean.shape[1]
    return (
        f"{plane.source.name}: spread of wrong / right answers {plane.ratio} in the plane, {plane.whole} in all {size} "
        f"dimensions; {plane.ratio.wrong} wrong, {plane.ratio.right} right, {len(plane.draws)} draws"
    )


# ---------------------------------------------------------------- the figure


def draw(planes: Sequence[Plane], seed: int = 0) -> Figure:
    """A column for each adapter: four right questions above, four wrong ones below."""
    with style():
        fig, grid = blank(2, len(planes), width=2.5, height=2.4)
        for column, plane in enumerate(planes):
            shown = chosen(plane.source.right, seed)
            limits = _limits(plane, np.concatenate(shown))
            for row, (kind, questions) in enumerate(zip(("right", "wrong"), shown, strict=True)):
                axes = grid[row * len(planes) + column]
                _regions(axes, plane, limits)
                for d in questions:
                    _question(axes, plane, d, limits)
                axes.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[], ylabel=kind if column == 0 else "")
                if row == 0:
                    axes.set_title(f"{plane.source.name}\nwrong / right spread {plane.ratio}", fontsize=7)
        answers = planes[0].source.answers
        _legend(fig, answers, (1 + bool(answers)) * len(planes))  # without answers all labels are long
    return fig


def _limits(plane: Plane, questions: NDArray[np.int64]) -> tuple[tuple[float, float], tuple[float, float]]:
    points = np.concatenate([plane.mean[questions], plane.draws[:, questions].reshape(-1, 2)])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.25 * np.maximum(high - low, 1e-6)
    ends = np.stack([low - margin, high + margin], axis=1)
    return (float(ends[0, 0]), float(ends[0, 1])), (float(ends[1, 0]), float(ends[1, 1]))


def _mesh(limits: tuple[tuple[float, float], tuple[float, float]], count: int = 120) -> tuple[Floats, Floats]:
    x, y = np.meshgrid(np.linspace(*limits[0], count), np.linspace(*limits[1], count))
    return x, y


def _regions(axes: Axes, plane: Plane, limits: tuple[tuple[float, float], tuple[float, float]]) -> None:
    if plane.regions is None:
        return
    x, y = _mesh(limits)
    classes = plane.regions.predict(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(x.shape)
    count = int(plane.source.gold.max()) + 1
    colours = [COLOURS[k % len(COLOURS)] for k in range(count)]
    axes.contourf(x, y, classes, levels=np.arange(count + 1) - 0.5, colors=colours, alpha=0.13)


def _question(axes: Axes, plane: Plane, d: int, limits: tuple[tuple[float, float], tuple[float, float]]) -> None:
    """Contours of the draws' density in the colour of the right answer, ★ the mean's weights, ▼ the mean embedding."""
    from scipy.stats import gaussian_kde

    colour = COLOURS[int(plane.source.gold[d]) % len(COLOURS) if plane.source.answers else 0]
    draws = plane.draws[:, d]  # [S, 2]
    middle = draws.mean(axis=0)
    if np.linalg.matrix_rank(draws - middle) == 2:
        x, y = _mesh(limits)
        density = gaussian_kde(draws.T)(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
        levels = sorted({level for mass in MASSES if (level := _level(density, mass)) > 0})
        axes.contour(x, y, density, levels=levels, colors=colour, linewidths=0.8)
    axes.plot(*plane.mean[d], marker="*", color=colour, markersize=6, markeredgecolor="black", markeredgewidth=0.4)
    axes.plot(*middle, marker="v", color=colour, markersize=4, markeredgecolor="black", markeredgewidth=0.4)


def _level(density: Floats, mass: float) -> float:
    """The height above which this share of the probability lies."""
    heights = np.sort(density.ravel())[::-1]
    return float(heights[np.searchsorted(heights.cumsum(), mass * heights.sum())])


def _legend(fig: Figure, answers: Sequence[str], columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(color=COLOURS[k % len(COLOURS)], alpha=0.5, label=answer) for k, answer in enumerate(answers)
    ]
    mark: dict[str, Any] = {"linestyle": "none", "color": "0.4"}
    handles += [Line2D([], [], marker="*", label="mean of the weights", **mark)]
    handles += [Line2D([], [], marker="v", label="mean of the embeddings", **mark)]
    handles += [Line2D([], [], color="0.4", linewidth=0.8, label="0.5 and 0.75 of the draws")]
    fig.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), columns), frameon=False)


# ---------------------------------------------------------------- from an adapter


def embed(name: str, lm: BayesLoRA, task: Any, limit: int | None = None, batch: int = 16) -> Embedded:
    """The evaluated questions of a task under the mean and every draw.

    Args:
        lm: a loaded adapter, with its number of draws.
        task: an lm-eval task.
    """
    from uqharness.engine.rows import make_rows
    from uqharness.engine.shortcuts import may_branch
    from uqharness.settings import Run, build, field_types
    from uqharness.training.prompts import Prompting
    from uqharness.training.questions import PairEncoder, read_questions

    engine = lm.engine
    if engine.model.get_base_model().get_output_embeddings() is None:
        raise InputError(f"{name} is an encoder's adapter, which has a head of its own: give adapters of causal models")
    if engine.combined or engine.count < 3 or not engine.samples > 1:
        raise InputError(
            f"{name} has no draws of weights to show: give an adapter whose answers average several draws (blob, bbb, "
            "mcd; laplace: train it with --set predictive=weights), and --samples 10"
        )
    known = {key: value for key, value in ((lm.record or {}).get("run") or {}).items() if key in field_types(Run)}
    prompting = Prompting.of(task, lm.tokenizer, build(Run, known))
    questions = read_questions(
        task, "test", task.eval_docs, PairEncoder(lm.tokenizer, lm.add_bos_token), limit, prompting
    )
    branch = may_branch(lm.model, lm.max_length)
    means, draws, right = [], [], []
    for start in tqdm(range(0, len(questions), batch), desc="embed", unit="batch"):
        part = questions[start : start + batch]
        rows = make_rows([q.pairs for q in part], lm.max_length, branch=branch)
        states, average = engine.states(rows)
        owner = rows.question[rows.slot].tolist()
        first = rows.at[[owner.index(q) for q in range(len(part))]]  # where the first answer's first token is read
        means.append(states[0, first].double().numpy())
        draws.append(states[int(engine.separate_mean) :, first].double().numpy())
        right.append(average.argmax(-1).numpy() == np.array([q.gold for q in part]))
    return Embedded(
        name,
        np.concatenate(means),
        np.concatenate(draws, axis=1),
        np.array([q.gold for q in questions]),
        np.concatenate(right),
        np.arange(len(questions)),
        [lm.tokenizer.decode([token]).strip() for token in shared_answers([q.pairs for q in questions])],
    )


def shared_answers(questions: Sequence[Sequence[Any]]) -> list[int]:
    """Return the token of each answer if all questions have the same ones, else []."""
    tokens: dict[int, set[tuple[int, ...]]] = {}
    for pairs in questions:
        for k, (_, answer) in enumerate(pairs):
            tokens.setdefault(k, set()).add(tuple(answer))
    if any(len(kinds) > 1 or len(next(iter(kinds))) > 1 for kinds in tokens.values()):
        return []
    return [next(iter(tokens[k]))[0] for k in sorted(tokens)]
