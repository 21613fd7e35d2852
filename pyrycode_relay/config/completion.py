"""Scripts that complete the command's options in bash, fish and zsh."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pyrycode_relay.config.options import COMMAND_OPTIONS, OPTIONS, CommandOption, Option
from pyrycode_relay.config.values import (
    DIRECTORY,
    DOMAIN,
    FILE_OR_NONE,
    PATH,
    SECRET,
    SWITCH,
    Kind,
)

_COMMAND: Final = "pyrycode-relay"
_FUNCTION: Final = "_pyrycode_relay"
_FILES: Final = frozenset({PATH, FILE_OR_NONE, SECRET})
_ALL: Final = (
    *OPTIONS,
    *COMMAND_OPTIONS,
    CommandOption("version", "Print the relay's version and exit."),
    CommandOption("help", "Print all options and exit."),
)


@dataclass(frozen=True, slots=True)
class _Values:
    """The words by which one shell offers an option's values, by what they are."""

    words: str
    """For a few words, which stand in the place of the braces."""
    files: str
    folders: str
    hosts: str
    other: str
    """For values that nobody can guess."""

    def of(self, kind: Kind) -> str:
        """Return what offers the values of a kind."""
        if kind.words:
            return self.words.format(" ".join(kind.words))
        if kind in _FILES:
            return self.files
        return {DIRECTORY: self.folders, DOMAIN: self.hosts}.get(kind, self.other)


_BASH: Final = _Values('-W "{}"', "-f", "-d", "-A hostname", "")
_FISH: Final = _Values(
    "-x -a '{}'",
    "-r -F",
    "-x -a '(__fish_complete_directories)'",
    "-x -a '(__fish_print_hostnames)'",
    "-x",
)
_ZSH: Final = _Values("({})", "_files", "_directories", "_hosts", " ")


def script(shell: str) -> Iterator[str]:
    """Yield the lines of the script for a shell, of those that ``--completion`` allows."""
    return {"bash": _bash, "fish": _fish, "zsh": _zsh}[shell]()


def summary(option: Option | CommandOption) -> str:
    """Return the first sentence of an option's help, as far as its colon or full stop."""
    return option.help.partition(". ")[0].partition(": ")[0].removesuffix(".")


def _bash() -> Iterator[str]:
    yield f"# {_COMMAND}: completion for bash"
    yield f"{_FUNCTION}() {{"
    # readline splits --option=value at the equals sign.
    yield "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} option="
    yield "    if [[ $word == = ]]; then"
    yield "        option=$before word="
    yield "    elif [[ $before == = ]]; then"
    yield "        option=${COMP_WORDS[COMP_CWORD-2]}"
    yield "    elif [[ $before == --* && $word != -* ]]; then"
    yield "        option=$before"
    yield "    fi"
    yield "    COMPREPLY=()"
    yield "    case $option in"
    for offer, names in _by_offer().items():
        yield f"        {'|'.join(names)})"
        if offer:
            yield f'            mapfile -t COMPREPLY < <(compgen {offer} -- "$word")'
        if offer in {"-f", "-d"}:
            yield "            compopt -o filenames"
        yield "            return ;;"
    yield "    esac"
    all_names = " ".join(f"--{each.name}{'' if _is_switch(each) else '='}" for each in _ALL)
    yield f'    mapfile -t COMPREPLY < <(compgen -W "{all_names}" -- "$word")'
    yield "    # A value follows the equals sign at once."
    yield "    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then"
    yield "        compopt -o nospace"
    yield "    fi"
    yield "}"
    yield f"complete -F {_FUNCTION} {_COMMAND}"


def _by_offer() -> dict[str, list[str]]:
    """Return the options with a value by the option of ``compgen`` that offers it."""
    found: dict[str, list[str]] = {}
    for each in _ALL:
        if not _is_switch(each):
            found.setdefault(_BASH.of(each.kind), []).append(f"--{each.name}")
    return found


def _fish() -> Iterator[str]:
    yield f"# {_COMMAND}: completion for fish"
    yield f"complete -c {_COMMAND} -f"
    for each in _ALL:
        value = "" if _is_switch(each) else " " + _FISH.of(each.kind)
        yield f"complete -c {_COMMAND} -l {each.name}{value} -d {_fish_quoted(summary(each))}"
    yield f"complete -c {_COMMAND} -s h -d 'Print the most important options and exit'"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _zsh() -> Iterator[str]:
    yield f"#compdef {_COMMAND}"
    yield f"# {_COMMAND}: completion for zsh"
    yield "_arguments -s -S \\"
    for each in _ALL:
        text = summary(each).replace("\\", "\\\\")
        for character in "[]:":
            text = text.replace(character, f"\\{character}")
        often = "*" if isinstance(each, Option) and each.many else ""
        value = ""
        if not _is_switch(each):
            value = f":{each.kind.placeholder.replace(':', '')}:{_ZSH.of(each.kind)}"
        name = f"--{each.name}{'' if _is_switch(each) else '='}"
        yield f"    {shlex.quote(f'{often}{name}[{text}]{value}')} \\"
    yield "    '-h[Print the most important options and exit]'"


def _is_switch(option: Option | CommandOption) -> bool:
    return option.kind is SWITCH
