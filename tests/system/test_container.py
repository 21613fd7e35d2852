"""The container image, step by step, without a container engine.

The Dockerfile's instructions are carried out as they stand: each stage is an overlay on this
machine's root file system, which takes the place of the base image; ``RUN`` runs in a chroot,
``COPY`` copies. What comes of it is started as its ENTRYPOINT and CMD say, as its user, without
a capability, on a read-only root and a network of its own, and probed by its HEALTHCHECK.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from tests import needs
from tests.system.harness import ROOT, SystemTestCase

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = ("unshare", "chroot", "setpriv", "ip", "mount")


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield a Dockerfile's instructions: keyword and the rest, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            keyword, _, rest = line.strip().partition(" ")
            yield keyword.upper(), rest.strip()


@dataclass
class Stage:
    """A stage's steps, as shell commands, and what its image says."""

    name: str
    steps: list[str] = field(default_factory=list)
    says: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"

    @property
    def root(self) -> str:
        return f"$layers/{self.name}/root"

    def inside(self, command: str, *, before: str = "") -> str:
        """Return how a shell command is run in the stage's root."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        script = shlex.quote(f"cd {self.directory} && {command}")
        return f"chroot {self.root} {before} env -i {' '.join(variables)} sh -c {script}"


def stages(text: str, base: Mapping[str, str]) -> list[Stage]:
    """Return what a Dockerfile does; ``base`` is the environment of its base image."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for keyword, rest in instructions(text):
        if keyword == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif keyword == "FROM":
            image, *alias = rest.split()
            assert image == "${BASE}${DIGEST}", "each stage is on the base image"
            found.append(Stage(alias[1] if alias else "final", environment=dict(base)))
        else:
            _take(found[-1], keyword, rest)
    assert arguments, "the base image has a default"
    return found


def _take(stage: Stage, keyword: str, rest: str) -> None:
    if keyword == "WORKDIR":
        stage.directory = rest
        stage.steps.append(f"mkdir -p {stage.root}{rest}")
    elif keyword == "ENV":
        name, _, value = rest.partition("=")
        stage.environment[name] = value.replace("$PATH", stage.environment["PATH"])
    elif keyword == "RUN":
        stage.steps.append(stage.inside(rest))
    elif keyword == "COPY":
        stage.steps.append(_copy(stage, rest.split()))
    else:
        assert keyword in {
            *("USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD", "LABEL")
        }
        stage.says[keyword] = rest


def _copy(stage: Stage, words: list[str]) -> str:
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    *sources, target = (word for word in words if not word.startswith("--"))
    origin = f"$layers/{flags['from']}/root" if "from" in flags else "$context"
    there = f"{stage.root}{target if target.startswith('/') else f'{stage.directory}/{target}'}"
    steps = [f"mkdir -p $(dirname {there})"]
    for source in sources:
        # A folder's content goes into the target, as docker has it.
        path = f"{origin}/{source.lstrip('/')}"
        steps.append(
            f"if test -d {path}; then mkdir -p {there} && cp -a {path}/. {there}/; "
            f"else cp -a {path} {there}; fi"
        )
    if "chown" in flags:
        steps.append(f"chown -R {flags['chown']} {there}")
    return " && ".join(steps)


def words(says: str) -> list[str]:
    """Return the words of an instruction in its JSON form."""
    value = json.loads(says)
    assert isinstance(value, list)
    return [str(each) for each in value]


def context(directory: Path) -> Path:
    """Copy what ``.dockerignore`` lets through, as the engine is sent it."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "what is not named stays out"
    dropped = [rule.removeprefix("**/") for rule in rules if rule.startswith("**/")]
    directory.mkdir()
    for rule in rules:
        if not rule.startswith("!"):
            continue
        source = ROOT / rule[1:]
        (directory / rule[1:]).parent.mkdir(exist_ok=True)
        if source.is_dir():
            ignore = shutil.ignore_patterns(*dropped)
            shutil.copytree(source, directory / rule[1:], ignore=ignore)
        else:
            shutil.copy2(source, directory / rule[1:])
    return directory


BUILD = """
set -eu
mount --make-rprivate /
layers={layers} context={context} out={out}
mount -t tmpfs -o mode=755 tmpfs $layers
base() {{
    mkdir -p $layers/$1/upper $layers/$1/work $layers/$1/root
    mount -t overlay -o lowerdir=/,upperdir=$layers/$1/upper,workdir=$layers/$1/work overlay \\
        $layers/$1/root
    mount --rbind /dev $layers/$1/root/dev
    mount --rbind /proc $layers/$1/root/proc
    # The interpreter of a test's machine may lie in its owner's home.
    chmod a+x $layers/$1/root/root
}}
"""

RUN = """
mount -o remount,ro {root}
unshare --net sh -eu <<'END'
layers={layers} out={out}
ip link set lo up
{start} >$out/log 2>$out/errors &
relay=$!
for second in $(seq 30); do
    sleep 1
    if {check} 2>$out/check; then break; fi
done
echo "healthy after $second"
{check} && echo "healthy: 0"
grep -E '^(Uid|Gid|Groups|NoNewPrivs|CapEff|CapBnd|CapPrm):' /proc/$relay/status
plugins=$(echo {root}/opt/relay/lib/python*/site-packages/twisted/plugins)
find $plugins -name '*.py' ! -name '__init__.py' | sed 's/.*/plugin/'
find $plugins -name '*.py' -newer $plugins/dropin.cache | sed 's/^/stale: /'
for place in / /tmp /opt/relay /var/lib/pyrycode-relay; do
    {touch} 2>/dev/null && echo "writable: $place" || true
done
kill -{signal} $relay
if wait $relay; then echo "ended: 0"; else echo "ended: $?"; fi
{check} 2>>$out/check || echo "gone: $?"
END
"""


class DockerfileTests(SystemTestCase):
    """What can be read off the file."""

    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")

    def test_what_goes_in(self) -> None:
        """The engine is sent the sources of the package and nothing else."""
        sent = context(self.directory / "context")
        files = {path.relative_to(sent).as_posix() for path in sent.rglob("*") if path.is_file()}
        self.assertIn("twisted/plugins/pyrycode_relay_plugin.py", files)
        self.assertIn("pyrycode_relay/probe/command.py", files)
        for pattern in ("*.pyc", "*dropin.cache", "tests*", ".git*", ".venv*", "*.pem", "*.key"):
            self.assertEqual([each for each in files if fnmatch(each, pattern)], [])

    def test_small_print(self) -> None:
        """Not root, by number; a probe that is not limited; a signal that drains."""
        final = stages(self.text, {"PATH": PATH})[-1].says
        self.assertRegex(final["USER"], r"\A[1-9]\d+:[1-9]\d+\Z")
        self.assertEqual(final["STOPSIGNAL"], "SIGTERM")
        interval = re.search(r"--interval=(\d+)s", final["HEALTHCHECK"])
        assert interval is not None
        self.assertLess(4 * 60 / int(interval[1]), 10, "upgrades a minute, of --upgrade-rate")
        self.assertEqual(words(final["ENTRYPOINT"])[0], "twistd")


class ImageTests(SystemTestCase):
    """The image, made and run."""

    def setUp(self) -> None:
        super().setUp()
        needs.namespaces()
        needs.programs(*TOOLS)

    def test_image(self) -> None:
        """It builds, serves with nothing to write to, is healthy, and drains when told to stop."""
        layers, out = self.directory / "layers", self.directory / "out"
        for each in (layers, out):
            each.mkdir()
        python = Path(sys.base_prefix, "bin")
        base = {"PATH": f"{python}:{PATH}", "HOME": "/root"}
        # How this machine reaches its package index is this machine's affair.
        pip = {k: v for k, v in os.environ.items() if re.match("(?i)pip_|.*_proxy|ssl_", k)}
        built = stages((ROOT / "Dockerfile").read_text(encoding="utf-8"), base | pip)
        places = {"layers": layers, "out": out, "context": context(self.directory / "context")}
        script = [BUILD.format(**places)]
        for stage in built:
            script += [f"base {stage.name}", *stage.steps]
        script.append(self.running(built[-1], places))
        path = self.directory / "script"
        path.write_text("\n".join(script), encoding="utf-8")
        child = self.child("unshare", "--mount", "sh", path)
        status = child.wait(300)
        told = child.output()
        log = (out / "log").read_text(encoding="utf-8") if (out / "log").exists() else ""
        self.assertEqual(status, 0, told + child.errors() + log)

        self.assertIn("healthy: 0\n", told)
        user, group = built[-1].says["USER"].split(":")
        self.assertRegex(told, rf"(?m)^Uid:\t{user}\t{user}\t{user}\t{user}$")
        self.assertRegex(told, rf"(?m)^Gid:\t{group}\t{group}\t{group}\t{group}$")
        self.assertEqual(set(re.findall(r"Cap\w+:\t(\d+)", told)), {"0" * 16})
        self.assertNotIn("writable", told)
        self.assertIn("ended: 0\n", told)
        self.assertIn("gone: 1\n", told)
        # The list of plugins was made when the image was, after all of them.
        self.assertIn("plugin\n", told)
        self.assertNotIn("stale", told)
        self.assertEqual((out / "errors").read_text(encoding="utf-8"), "")
        events = {line.split()[2] for line in log.splitlines()}
        self.assertLessEqual({"starting", "ready", "draining", "drained"}, events)
        self.assertFalse([line for line in log.splitlines() if line.split()[1] == "error"], log)

    def running(self, image: Stage, places: Mapping[str, Path]) -> str:
        """Return how an image is run and looked at."""
        user, group = image.says["USER"].split(":")
        powerless = (
            f"setpriv --reuid={user} --regid={group} --clear-groups --no-new-privs "
            "--bounding-set=-all --inh-caps=-all"
        )
        command = shlex.join(words(image.says["ENTRYPOINT"]) + words(image.says["CMD"]))
        check = image.says["HEALTHCHECK"].partition("CMD ")[2]
        return RUN.format(
            root=image.root,
            start=image.inside(f"exec {command}", before=powerless),
            check=image.inside(check, before=powerless),
            touch=f"chroot {image.root} {powerless} touch $place/it",
            signal=image.says["STOPSIGNAL"].removeprefix("SIG"),
            **places,
        )
