"""The `_uq` tasks: YAMLs by dataset over shared bases (no file ending), `docs.py` and `shifts.yaml`."""
