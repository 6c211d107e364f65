"""What a person runs beside training: making data, reports, studies and benchmarks.

`python tools/NAME.py` puts only tools/ on sys.path. A script that imports from this package
therefore starts with `if not __package__: sys.path.insert(0, ...)`, the repository's root.
"""
