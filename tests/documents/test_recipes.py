"""The recipes in ``examples/``: each parses, its configuration loads, and its commands exist with their options."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest
from cronsim import CronSim

from pgsnap.cli import cli
from pgsnap.config import load

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
RECIPES = [
    *EXAMPLES.glob("docker/*"),
    *EXAMPLES.glob("railway/*"),
    *EXAMPLES.glob("kubernetes/*"),
    *EXAMPLES.glob("systemd/*"),
    *EXAMPLES.glob("github-actions/*"),
    *EXAMPLES.glob("cron/*"),
]
ENVIRONMENT = {
    "DATABASE_URL": "postgresql:///shop",
    "BACKUP_URL": "/var/backups/pgsnap",
    "PGSNAP_AGE_RECIPIENTS": "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
}


def check_command(words: list[str]) -> None:
    """Parse a command line as the command itself does, without running it."""
    assert "pgsnap" == Path(words[0]).name
    context = cli.make_context("pgsnap", words[1:], resilient_parsing=False, obj=Quiet())
    name, command, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None, name
    command.make_context(name, list(rest), parent=context)


class Quiet:
    """Stands for the session."""

    def configure(self, *_: object) -> None:
        pass


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def test_the_checker_of_commands_finds_mistakes() -> None:
    """A check that cannot fail is none."""
    check_command(["pgsnap", "--quiet", "status", "--max-age", "26h"])
    for wrong in (["pgsnap", "statsu"], ["pgsnap", "status", "--max-aeg", "26h"], ["pgsnap", "--quite", "backup"]):
        with pytest.raises(click.UsageError):
            check_command(wrong)


def test_every_recipe_is_in_the_list() -> None:
    """Each folder has its line, and each line its folder."""
    named = set(re.findall(r"^\| `([\w-]+)` \|", (EXAMPLES / "README.md").read_text(), flags=re.MULTILINE))
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == named
    assert len(RECIPES) >= 11


def test_commands_in_comments_exist() -> None:
    """Those in quotes, and those that somebody is told to run."""
    texts = "\n".join(path.read_text() for path in RECIPES)
    named = set(re.findall(r"(?:'|: |run )pgsnap ([a-z]+)", texts))
    assert {"backup", "status"} <= named <= cli.commands.keys()


def test_railway() -> None:
    """The keys that Railway reads, a cron line, and a Dockerfile that is there."""
    document = tomllib.loads((EXAMPLES / "railway/railway.toml").read_text())
    assert {"build", "deploy"} == document.keys()
    assert (ROOT / document["build"]["dockerfilePath"]).exists()
    next(CronSim(document["deploy"]["cronSchedule"], datetime(2026, 1, 1)))
    assert "NEVER" == document["deploy"]["restartPolicyType"]
    check_command(shlex.split(document["deploy"]["startCommand"]))


@pytest.mark.parametrize("name", ["cronjob.yaml", "schedule.yaml"])
def test_kubernetes(name: str) -> None:
    """Each container's command; what it mounts is defined; cron lines and time zones."""
    for document in documents(EXAMPLES / "kubernetes" / name):
        assert {"apiVersion", "kind", "metadata"} <= document.keys()
        if document["kind"] == "ConfigMap":
            continue
        spec = document["spec"]
        if document["kind"] == "CronJob":
            assert "Forbid" == spec["concurrencyPolicy"]
            next(CronSim(spec["schedule"], datetime(2026, 1, 1)))
            spec = spec["jobTemplate"]["spec"]
        pod = spec["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            check_command(container["command"])
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            if "livenessProbe" in container:
                assert "/tmp/heartbeat" in " ".join(container["livenessProbe"]["exec"]["command"])
                assert "/tmp/heartbeat" in container["command"]


def test_configurations_load(tmp_path: Path) -> None:
    """That of the ConfigMap and that of the image."""
    (config,) = [d for d in documents(EXAMPLES / "kubernetes/cronjob.yaml") if d["kind"] == "ConfigMap"]
    (tmp_path / "pgsnap.toml").write_text(config["data"]["pgsnap.toml"])
    for path in (tmp_path / "pgsnap.toml", EXAMPLES / "docker/pgsnap.toml"):
        shop = load(path, environ=ENVIRONMENT).pipelines["shop"]
        assert (7, 4, 12) == (shop.keep.daily, shop.keep.weekly, shop.keep.monthly)  # type: ignore[union-attr]
    assert "0 8 * * *" == shop.schedule


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("systemd/*")), ids=lambda path: path.name)
def test_systemd(path: Path) -> None:
    """Sections and keys; commands; each timer has its service; systemd's own check where there is one."""
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text())
    assert "Description" in unit["Unit"]
    if path.suffix == ".timer":
        assert path.with_suffix(".service").exists()
        assert "timers.target" == unit["Install"]["WantedBy"]
        assert "OnCalendar" in unit["Timer"]
        if tool := shutil.which("systemd-analyze"):
            subprocess.run([tool, "calendar", unit["Timer"]["OnCalendar"]], check=True, capture_output=True)
    else:
        check_command(shlex.split(unit["Service"]["ExecStart"]))
        assert "oneshot" == unit["Service"]["Type"]


def test_the_dockerfile() -> None:
    """Its instructions; what it copies is there; what it runs exists; nothing secret is built in."""
    text = (EXAMPLES / "docker/Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    known = {"FROM", "ARG", "RUN", "COPY", "USER", "WORKDIR", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert "FROM" == instructions[0][0]
    assert {name for name, _ in instructions} <= known
    for name, rest in instructions:
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
    by_name = dict(instructions)
    check_command([*json.loads(by_name["ENTRYPOINT"]), *json.loads(by_name["CMD"])])
    assert "pgsnap" == by_name["USER"]
    assert "/tmp/heartbeat" in by_name["HEALTHCHECK"]


def test_the_probe_of_the_heartbeat(tmp_path: Path) -> None:
    """The shell line of the image and of the Pod tells a fresh file from a stale and from a missing one."""
    text = (EXAMPLES / "docker/Dockerfile").read_text()
    match = re.search(r"CMD (test .*)", text)
    assert match is not None
    line = match[1].replace("/tmp/heartbeat", shlex.quote(str(tmp_path / "beat")))
    assert match[1] in (EXAMPLES / "kubernetes/schedule.yaml").read_text()

    def code() -> int:
        return subprocess.run(["sh", "-c", line], capture_output=True).returncode

    assert 0 != code()
    (tmp_path / "beat").touch()
    assert 0 == code()
    os.utime(tmp_path / "beat", (1, 1))
    assert 0 != code()


def test_github_actions() -> None:
    """The workflow's schedule and its commands."""
    (document,) = documents(EXAMPLES / "github-actions/backup.yml")
    triggers = document[True]  # YAML 1.1 reads the key "on" as a truth
    next(CronSim(triggers["schedule"][0]["cron"], datetime(2026, 1, 1)))
    steps = document["jobs"]["backup"]["steps"]
    commands = [step["run"] for step in steps if step.get("run", "").startswith("pgsnap")]
    assert 2 == len(commands)
    for command in commands:
        check_command(shlex.split(command))


def test_the_crontab() -> None:
    """Five fields and a command, in each line that is no comment and no variable."""
    lines = [line for line in (EXAMPLES / "cron/crontab").read_text().splitlines() if line and not line.startswith("#")]
    jobs = [line for line in lines if not re.match(r"[A-Z]+=", line)]
    assert 2 == len(jobs)
    for line in jobs:
        *fields, command = line.split(maxsplit=5)
        next(CronSim(" ".join(fields), datetime(2026, 1, 1)))
        assert "%" not in command  # a newline, to cron
        words = shlex.split(command.split(">")[0].split("||")[0])
        check_command(words)
