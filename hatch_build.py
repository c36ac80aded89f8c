"""Editable builds: ship the two start-up files, and leave everything else in the checkout.

Without this, hatchling would copy `adapters/`, `tasks/` and `leaderboard/` into site-packages, where the
copies would hide later edits.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

START_UP_FILES = ("uqharness.pth", "uqharness.start")


class StartUpFilesOnly(BuildHookInterface):
    """`version` is hatchling's name for the kind of build: "standard" or "editable"."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            build_data["force_include_editable"] = {name: name for name in START_UP_FILES}
