"""The command `restow`: its groups, its way of failing, and nothing else.

A command's module is imported when the command is called, so that `restow ps` loads neither torch nor Ray.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import time
import traceback
from pathlib import Path

import click

from restow import config
from restow.errors import RestowError

COMMANDS = {  # name → (module, attribute, first line of help)
    "up": ("restow.cli.cluster", "up", "Start restow on this machine, or join others."),
    "down": ("restow.cli.cluster", "down", "End everything that up started here."),
    "submit": ("restow.cli.jobs", "submit", "Hand in a job."),
    "sweep": ("restow.cli.sweep", "sweep", "Hand in one job that trains many small models at once."),
    "ps": ("restow.cli.jobs", "ps", "List jobs."),
    "show": ("restow.cli.jobs", "show", "Show all about one job."),
    "logs": ("restow.cli.jobs", "logs", "Print what a job's workers print."),
    "wait": ("restow.cli.jobs", "wait", "Wait until a job has ended."),
    "cancel": ("restow.cli.jobs", "cancel", "End a job."),
    "migrate": ("restow.cli.moves", "migrate", "Move a running job to other devices, live."),
    "checkpoint": ("restow.cli.checkpoints", "checkpoint", "Make, list, verify and go on from checkpoints."),
    "scale": ("restow.cli.moves", "scale", "Let a job have more or fewer devices while it trains."),
    "pause": ("restow.cli.moves", "pause", "Let jobs give their devices back and keep their state."),
    "resume": ("restow.cli.moves", "resume", "Let paused jobs go on."),
    "defrag": ("restow.cli.moves", "defrag", "Say or do which moves would bring scattered jobs together."),
    "share": ("restow.cli.sharing", "share", "Say how a job shares its devices with others."),
    "explain": ("restow.cli.sharing", "explain", "Say why a job is where it is, and what was predicted and measured."),
    "drain": ("restow.cli.nodes", "drain", "Empty a machine: move what can move, suspend the rest."),
    "undrain": ("restow.cli.nodes", "undrain", "Use a drained machine again."),
    "cordon": ("restow.cli.nodes", "cordon", "Start nothing new on a machine."),
    "uncordon": ("restow.cli.nodes", "uncordon", "Start jobs there again."),
    "nodes": ("restow.cli.cluster", "nodes", "List machines and devices."),
    "events": ("restow.cli.cluster", "events", "Print what happened."),
    "snapshot": ("restow.cli.snapshot", "snapshot", "Print the cluster as it is now, to be simulated on from there."),
    "simulate": ("restow.cli.simulate", "simulate", "Run a trace of jobs on a cluster that need not exist."),
    "doctor": ("restow.cli.doctor", "doctor", "Check what this machine lacks."),
    "lab": ("restow.cli.lab", "lab", "A small cluster on this one machine."),
    "demo": ("restow.cli.demo", "demo", "See a scattered job move, in two minutes."),
}
BUG = 70  # EX_SOFTWARE: our mistake
INTERRUPTED = 130


class _Group(click.Group):
    """Knows its commands by name; imports one when it is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if words and words[0] not in COMMANDS and not words[0].startswith("-"):
            close = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"the commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {words[0]!r}; {hint}", context)
        return super().resolve_command(context, words)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="restow", message="restow %(version)s")
def restow() -> None:
    """Run PyTorch jobs on shared machines, and restow them while they train.

    \b
      restow up                                    this machine becomes a cluster
      restow submit -n 2 -- python train.py        two workers of train.py
      restow ps                                    where they are and how fast
      restow migrate train-1 --to "m1:0 m1:1"      move them, live
      restow down                                  end everything

    Every command takes --json. Files are in $RESTOW_HOME (default ~/.restow).

    \b
    Exit codes: 0 done; 1 the job failed, or another mistake; 2 wrong spec or usage; 3 no such job, node or device;
    4 refused, the line says why; 5 nobody answers; 6 this machine lacks something; 7 the script uses the SDK
    wrongly; 8 a trace, table or cluster to simulate that is wrong; 70 a bug in restow; 130 interrupted.
    """


def main() -> None:
    """Run the command line and exit. A user's mistake is one line on stderr and its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of `restow ARGUMENTS`."""
    try:
        code = restow.main(arguments, prog_name="restow", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except RestowError as error:
        click.echo(f"restow: {error}", err=True)
        return error.exit_code
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        click.echo(f"restow: {error.format_message()}{hint}", err=True)
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("restow: interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # our mistake: the user gets one line, we get the rest
        click.echo(f"restow: a bug in restow: {type(error).__name__}: {error}; details in {_keep_crash()}", err=True)
        return BUG


def _keep_crash() -> Path | str:
    """Write the traceback at hand to a file; returns its path."""
    folder = config.home().logs
    path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())
    except OSError as error:
        return f"nowhere ({error.strerror})"
    return path
