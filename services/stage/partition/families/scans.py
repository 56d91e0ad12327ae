"""Mamba, Falcon Mamba, Jamba: the model library's scan of several tokens begins with an empty state."""

from .plain import Family


class Scans(Family):
    """A prompt's first piece is scanned, every further one is taken token by token."""

    one_by_one = True
