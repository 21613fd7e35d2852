"""What pytest keeps in memory and trial does not, for tests of what stays there."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

from twisted.logger import globalLogBeginner
from twisted.python import failure


@cache
def clean_failure() -> Any:
    """Return the method; pytest-twisted replaces it by one that does nothing.

    Under pytest a failure would keep the frames of its exception, and whatever they refer to.
    """
    spec = importlib.util.spec_from_file_location("twisted_failure", failure.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Failure.cleanFailure


def forget_log() -> None:
    """Begin logging, to nowhere, if the test runner has not.

    Until then Twisted keeps every event, and with it the object that logged it.
    """
    if globalLogBeginner._temporaryObserver is not None:
        globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
