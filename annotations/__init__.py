"""Annotation files as tools write them, as flat arrays; skeletons; image files."""
