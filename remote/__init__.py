"""Data preparation on other machines: the wire, its keys, the trainer's end and the worker's end."""
