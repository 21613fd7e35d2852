"""What a test needs of its machine.

If something is missing, the test is skipped with a sentence. In CI (``CI=true``) it fails instead,
because a machine for CI has to have everything.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import socket
import subprocess
from typing import NoReturn

from twisted.trial.unittest import SkipTest


def cannot_run(sentence: str) -> NoReturn:
    """Skip the test that calls, or fail it in CI. Only this function skips a test."""
    if os.environ.get("CI") == "true":
        raise AssertionError(f"CI must not skip a test: {sentence}")
    raise SkipTest(sentence)


def program(name: str) -> str:
    """Return the path of a program, of those for administrators too."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    return found or cannot_run(f"{name} is not installed")


def programs(*names: str) -> None:
    """Need each of these programs."""
    for name in names:
        program(name)


def root() -> None:
    """Need the power of root."""
    if os.geteuid():
        cannot_run("only root can run this test")


def namespaces() -> None:
    """Need root, and a kernel that gives this process mount and network namespaces."""
    root()
    attempt = [program("unshare"), "--mount", "--net", "true"]
    if subprocess.run(attempt, capture_output=True, check=False).returncode:
        cannot_run("the kernel gives this process no namespaces")


def ipv6() -> None:
    """Need the loopback address of IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        cannot_run("the machine has no IPv6")


def descriptors(count: int) -> None:
    """Raise the limit on open files, of this process and its children, to ``count``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        cannot_run(f"the test needs {count} open files, and the hard limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def module(name: str, distribution: str) -> None:
    """Need a module of an optional package, which ``pip install DISTRIBUTION`` brings."""
    try:
        importlib.import_module(name)
    except ImportError:
        cannot_run(f"{name} is not installed; install {distribution}")
