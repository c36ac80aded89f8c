import sys


def install() -> None:
    pass
