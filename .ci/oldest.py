"""Print the oldest version that pyproject.toml allows of each dependency, as constraints for pip.

python .ci/oldest.py > oldest.txt && pip install -c oldest.txt .[test]
"""

from __future__ import annotations

import re
from pathlib import Path


def constraints(text: str) -> list[str]:
    """`name==version` for each line `"name[extra]>=version,…"` of the dependencies."""
    (table,) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.M | re.S)
    return [f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)', table)]


if __name__ == "__main__":
    print("\n".join(constraints((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))))
