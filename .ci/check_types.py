"""Run mypy on the built wheel: in the checkout it cannot see that `adapters/` is `uqharness.adapters`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_wheel(out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        unpacked = Path(folder, "package")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        command += ["--cache-dir", str(ROOT / ".mypy_cache"), "-p", "uqharness"]
        # Away from the checkout, whose editable install would be the second place with this package.
        return subprocess.run(command, cwd=unpacked, env={**os.environ, "MYPYPATH": str(unpacked)}).returncode


if __name__ == "__main__":
    sys.exit(main())
