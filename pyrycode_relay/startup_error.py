"""The error that ends a start."""

from __future__ import annotations


class StartupError(Exception):
    """A mistake of configuration: the relay cannot start, or cannot use what it has read again.

    Each of ``problems`` is one sentence that names the setting, its value and the fix.
    """

    __module__ = "pyrycode_relay"
    # A daemon's twistd shows the terminal 100 bytes of an error, and the name counts.

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
