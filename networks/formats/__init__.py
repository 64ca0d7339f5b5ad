"""Weights in the formats of other tools, each read as data and never run: one module a format.

Each has `read(path)`, which returns a Mapping {variable name of this project: array} or raises UserError.
"""
MAX_ELEMENTS = 2 ** 28  # of an array: more than any network here has in all
