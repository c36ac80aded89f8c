"""Throw-away environments: a venv with the built wheel that, on request, sees this interpreter's packages."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(kind: str, out: Path, source: Path = ROOT) -> Path:
    """Build "wheel" or "sdist" of the checkout without the network: hatchling is in the test extra."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


class Overlay:
    """A venv made by hand: unpacking a pure wheel into site-packages is what pip does with it."""

    def __init__(self, folder: Path, wheel: Path | None = None, packages: bool = False) -> None:
        venv.create(folder, symlinks=True)
        self.python = str(folder / "bin" / "python")
        self.site = Path(sysconfig.get_path("purelib", "posix_prefix", {"base": str(folder)}))
        if wheel is not None:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(self.site)
            compileall.compile_dir(self.site, quiet=1)
        if packages:
            # Lines of a .pth file add folders whose own .pth files are not read: the hook of the environment
            # that runs the tests stays out.
            seen = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
            (self.site / "zz_packages.pth").write_text("\n".join(seen))

    def run(self, *args: str, path: Path | None = None, cwd: Path | None = None, **env: str) -> Done:
        dropped = ("PYTHON", "HF_", "TRANSFORMERS_", "COV_")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        clean |= {} if "HF_ENDPOINT" in env else {"HF_HUB_OFFLINE": "1"}
        clean |= {**({"PYTHONPATH": str(path)} if path else {}), **env}
        where = cwd or Path(self.python).parent
        done = subprocess.run([self.python, *args], capture_output=True, text=True, env=clean, cwd=where)
        return Done(done.returncode, done.stdout, done.stderr)

    def code(self, source: str, *flags: str, path: Path | None = None, **env: str) -> Done:
        return self.run(*flags, "-c", source, path=path, cwd=None, **env)


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:  # what pytest shows where an assertion fails
        return f"exit {self.code}\n{self.out[-3000:]}\n{self.err[-3000:]}"
