"""``pyrycode-relay`` and ``python -m pyrycode_relay``: the relay in the foreground.

Old versions of Python must be able to parse this module, because it reports that they are too old.
It imports nothing of the relay before that.
"""

import select
import sys


def main():
    # type: () -> None
    """Run ``twistd -n pyrycode-relay`` without a pid file, with the options of the command line."""
    problem = _problem()
    if problem:
        sys.stderr.write("pyrycode-relay: " + problem + "\n")
        sys.exit(2)
    from twisted.scripts import twistd  # noqa: PLC0415 - an old Python may be without it

    sys.argv[1:] = ["--nodaemon", "--pidfile=", "pyrycode-relay"] + sys.argv[1:]  # noqa: RUF005
    twistd.run()


def _problem():
    # type: () -> str
    """Return a sentence if the relay cannot run here, or an empty text."""
    if sys.version_info < (3, 11):  # noqa: UP036 - pip checks this, but a checkout does not
        version = ".".join(str(each) for each in sys.version_info[:3])
        return "The relay needs Python 3.11 or later, and this is Python " + version + "."
    if not hasattr(select, "epoll"):
        return "The relay needs Linux, because it uses epoll; this is " + sys.platform + "."
    return ""


if __name__ == "__main__":
    main()
