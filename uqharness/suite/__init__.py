"""Suites: grids of trainings and evaluations, planned as one graph, run anywhere, each cell once.

`schema` reads the YAML file, `plan` makes cells of it (their hashes, sources and what is shared), `cells` trains or
evaluates one in a folder of its own, `runners` are local processes, Slurm and Ray.
"""
