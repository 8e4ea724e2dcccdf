"""The command: parse, call the library, print. What it prints for machines goes to stdout, everything else to stderr."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from pgsnap.cli.backup import backup, copy
from pgsnap.cli.inspect import list_backups, show, verify
from pgsnap.cli.notify import notify
from pgsnap.cli.restore import restore
from pgsnap.cli.retention import ack, delete, hold, prune, release
from pgsnap.cli.schedule import schedule
from pgsnap.cli.session import Session
from pgsnap.cli.setup import doctor, init, keygen, plugins
from pgsnap.cli.status import status

__all__ = ["cli", "main"]

EPILOG = """\b
Exit codes, the worst of all pipelines:
   0  all done
   1  a backup, restore … did not happen, or the quorum was missed
   2  usage or configuration
   3  done, but a store or a notifier failed
   4  integrity: something is damaged, suspect, or not there
  75  busy: another run holds the lock
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.option("--config", "-c", metavar="FILE", help="The configuration; without it ./pgsnap.toml and the like are looked for.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Lines on stderr.")
@click.option("--quiet", "-q", is_flag=True, help="Only warnings and errors.")
@click.option("--verbose", "-v", is_flag=True, help="More, and tracebacks of unexpected errors.")
@click.version_option(package_name="pgsnap", message="pgsnap %(version)s")
@click.pass_context
def cli(context: click.Context, config: str | None, log_format: str, quiet: bool, verbose: bool) -> None:
    """PostgreSQL backups that are proved restorable.

    Every backup carries a RECOVER.txt: it restores without pgsnap.
    """
    context.obj.configure(config, log_format, quiet, verbose)


COMMANDS = (
    *(backup, list_backups, show, restore, verify, copy, prune, ack, hold, release, delete, status, schedule),
    *(doctor, notify, init, keygen, plugins),
)
for command in COMMANDS:
    cli.add_command(command)


class Stopped(BaseException):
    """A signal arrived. (Not a KeyboardInterrupt, of which click makes an Abort that has forgotten the signal.)"""


def _raise_once(number: int, frame: FrameType | None) -> None:
    """Raise in the main thread for the first signal; later ones do not disturb the cleaning up."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _raise_once)
    session = Session()
    try:
        code = cli.main(
            args=None if arguments is None else list(arguments), prog_name="pgsnap", standalone_mode=False, obj=session
        )
    except click.exceptions.Exit as done:
        code = done.exit_code
    except click.ClickException as error:
        code = session.misused(error)
    except Stopped as stop:
        session.error(f"stopped by {stop}: what was not committed has been removed.")
        code = 1
    except BrokenPipeError:
        code = 1
    except Exception as error:
        code = session.failed(error)
    sys.exit(code if isinstance(code, int) else 0)
