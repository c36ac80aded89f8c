"""Suites: grids of trainings and evaluations, planned as one graph, run on any machine, each cell once.

`schema` reads the YAML file, `plan` makes cells of it (their hashes, sources and sharing), `cells` trains or
evaluates one in a folder of its own, `runners` are local processes, Slurm and Ray.
"""
