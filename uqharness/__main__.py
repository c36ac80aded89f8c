"""`python -m uqharness`, `accelerate launch -m uqharness eval …`."""

import sys

from uqharness.cli import main

if __name__ == "__main__":
    sys.exit(main())
