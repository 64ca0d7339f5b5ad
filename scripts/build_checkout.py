"""The build backend of pyproject.toml: setuptools, for an editable installation of this checkout and nothing else.

A wheel would put names like `inference` and `graphs` into site-packages, beside whatever else is called so.
"""
import sys

from setuptools.build_meta import build_editable, get_requires_for_build_editable, \
    prepare_metadata_for_build_editable  # noqa: F401 (pip calls them)

REFUSAL = ('error: this project is used from its checkout and makes no wheel: run `pip install -e .` in it, or put its '
           'folder on PYTHONPATH')


def get_requires_for_build_wheel(config_settings=None):
    sys.exit(REFUSAL)


def get_requires_for_build_sdist(config_settings=None):
    sys.exit(REFUSAL)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    sys.exit(REFUSAL)


def build_sdist(sdist_directory, config_settings=None):
    sys.exit(REFUSAL)
