"""Weights in the formats of other tools, each read as data and never run: one module a format.

Each has `read(path)`, which returns a Mapping {variable name of this project: array} or raises UserError.
"""
from collections.abc import Mapping

MAX_ELEMENTS = 2 ** 28  # of an array: more than any network here has in all


class LazyArrays(Mapping):
    """{name: read(name, source)} for sources {name: source}: each array is read when it is asked for."""

    def __init__(self, sources, read):
        self._sources, self._read = sources, read

    def __getitem__(self, name):
        return self._read(name, self._sources[name])

    def __iter__(self):
        return iter(self._sources)

    def __len__(self):
        return len(self._sources)
