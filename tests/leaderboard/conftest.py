"""Results as lm-eval writes them, and the app over them without a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_results import result
from streamlit.testing.v1 import AppTest

from uqharness.leaderboard import app

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, two seeds, one data set with a shift, one cell that is missing, a hostile name, a broken file."""
    folder = tmp_path_factory.mktemp("results")
    for k, method in enumerate(("MLE", "BLoB", EVIL)):
        for seed in range(2):
            finite = 1 if method == "MLE" else None
            for task in ("openbookqa_uq", "arc_challenge_uq")[: 1 if k == 2 else 2]:
                draws = 1 if finite else 4
                result(
                    folder, method, seed, task, draws, numbers=10 * k + seed, trained_on="openbookqa_uq", finite=finite
                )
    (folder / "results_broken.json").write_text("{")
    return folder


class App:
    """One page of the app, run without a browser."""

    def __init__(self, results: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UQHARNESS_LEADERBOARD", json.dumps([str(results)] if results else []))
        monkeypatch.delenv("UQHARNESS_LEADERBOARD_CACHE", raising=False)
        app._stamp.clear()  # else for ten seconds the files are those of the test before

    def open(self, page: str, **params: str | list[str]) -> AppTest:
        self.at = AppTest.from_string(f"from uqharness.leaderboard import app\napp.show({page!r})", default_timeout=60)
        for name, value in params.items():
            self.at.query_params[name] = value
        return self.run()

    def run(self) -> AppTest:
        self.at.run()
        assert not self.at.exception, [e.value for e in self.at.exception]
        return self.at

    @property
    def params(self) -> dict[str, list[str]]:
        """The URL's, each as a list."""
        given = dict(self.at.query_params)
        return {name: [value] if isinstance(value, str) else list(value) for name, value in given.items()}

    @property
    def html(self) -> str:
        """What `st.html` shows."""
        return "\n".join(str(each.proto.body) for each in self.at.get("html"))


@pytest.fixture
def shown(results: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    return App(results, monkeypatch)
