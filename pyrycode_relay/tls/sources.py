"""Where certificates come from: files, and folders of files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls.certificate import Pair

Fingerprint = tuple[object, ...]
"""A value that differs if any file was replaced or changed."""


@dataclass(frozen=True, slots=True)
class Files:
    """A source of one pair.

    An ``awaited`` source may have no certificate yet, or one that cannot be used. ``option`` is
    the setting that named it.
    """

    pair: Pair
    awaited: bool = False
    option: str = "--tls-cert and --tls-key"

    def pairs(self) -> Sequence[Pair]:
        """Return the pair."""
        return [self.pair]


@dataclass(frozen=True, slots=True)
class Folder:
    """A source of pairs.

    The key of ``NAME.pem`` is in ``NAME.key``, in ``NAME-key.pem``, or in ``NAME.pem`` itself.
    """

    path: Path
    awaited: bool = False
    option: str = "--tls-dir"

    def pairs(self) -> Sequence[Pair]:
        """Return the pairs that are there now. Raises `StartupError`."""
        try:
            names = {each.name for each in self.path.iterdir()}
        except OSError as error:
            raise StartupError(f"{self.path} cannot be read: {error.strerror}.") from error
        pairs = [
            Pair(self.path / name, self.path / _key(name.removesuffix(".pem"), names))
            for name in sorted(names)
            if name.endswith(".pem") and not name.endswith("-key.pem") and name[0] != "."
        ]
        if not pairs:
            raise StartupError(
                f"{self.path} has no certificate; put its chain there as NAME.pem and its key as "
                "NAME.key."
            )
        return pairs


Source = Files | Folder


def given(
    certificates: Iterable[Path], keys: Iterable[Path], folders: Iterable[Path]
) -> list[Source]:
    """Return the sources that the settings name; the keys are in the order of the certificates."""
    pairs = zip(certificates, keys, strict=True)
    return [*(Files(Pair(*each)) for each in pairs), *map(Folder, folders)]


def fingerprint(sources: Iterable[Source]) -> Fingerprint:
    """Return the present state of all files of ``sources``."""
    files: list[object] = []
    for source in sources:
        try:
            pairs = source.pairs()
        except StartupError:
            pairs = ()
        for pair in pairs:
            files += [pair, _state(pair.certificate), _state(pair.key)]
    return tuple(files)


def _key(stem: str, names: set[str]) -> str:
    """Return the name of the file with the key of ``stem``.pem."""
    for name in (f"{stem}.key", f"{stem}-key.pem"):
        if name in names:
            return name
    return f"{stem}.pem"


def _state(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    # Mode and owner too: they decide whether a key is accepted.
    owner = status.st_mode, status.st_uid, status.st_gid
    return status.st_mtime_ns, status.st_ino, status.st_dev, status.st_size, owner
