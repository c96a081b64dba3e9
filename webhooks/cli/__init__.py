"""The operators' command ``webhooks``.

Owns what people type and read: each ``…_cmd`` module is one part of it, `common` what they share. Decides nothing about
deliveries. Exit codes: 0 done, 1 it failed, 2 the command line cannot be understood, 130 stopped by Ctrl-C.
"""

import io
import os
import sys
from typing import Any, NoReturn

import click

from webhooks.cli.check_cmd import check
from webhooks.cli.common import print_error
from webhooks.cli.dead_cmd import dead
from webhooks.cli.demo_cmd import demo
from webhooks.cli.gate_cmd import drain, pause, resume, skip_deliveries
from webhooks.cli.header_cmd import header
from webhooks.cli.logs_cmd import logs
from webhooks.cli.queues_cmd import queues
from webhooks.cli.secret_cmd import secret
from webhooks.cli.send_cmd import send
from webhooks.cli.settings_cmd import settings
from webhooks.cli.up_cmd import up
from webhooks.cli.webhooks_cmd import activate, add, deactivate, edit, list_webhooks, show
from webhooks.config import find_notices
from webhooks.errors import StoreUnavailable, WebhooksError
from webhooks.rules.remedies import DRIVER_ERRORS, explain_broker, explain_database
from webhooks.version import __version__


class OneLineCommand(click.Command):
    """Ends every error in one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and end the process; takes what click takes."""
        sys.exit(self._run(*args, **{**kwargs, "standalone_mode": False}))

    def _run(self, *args: Any, **kwargs: Any) -> int:
        try:
            # What comes back is the exit code of `ctx.exit`, else a command's own value, which is None in all of ours.
            return super().main(*args, **kwargs) or 0
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return error.exit_code
        except click.UsageError as error:
            hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
            print_error(error.format_message().rstrip(".") + hint)
            return error.exit_code
        except click.ClickException as error:
            print_error(error.format_message())
            return error.exit_code
        except click.Abort:
            return 130
        except StoreUnavailable as error:
            print_error(explain_database(error))
            return 1
        except WebhooksError as error:
            print_error(str(error))
            return 1
        except UnicodeEncodeError:  # half a character on the command line; MongoDB cannot be asked for it
            print_error("what was typed is not UTF-8")
            return 2
        except DRIVER_ERRORS as error:
            print_error(f"the broker cannot be used: {explain_broker(error)}")
            return 1


class OneLineGroup(OneLineCommand, click.Group):
    """Its commands, in the order in which people come to need them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of their definition, not by the alphabet."""
        return list(self.commands)


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="webhooks", message="%(prog)s %(version)s")
def cli() -> None:
    """Deliver what happens to those who asked for it, and see what came of it.

    Broker and database are those of WEBHOOKS_BROKER_URL and WEBHOOKS_MONGODB_URL.
    """
    for notice in find_notices(os.environ):
        print_error(notice)


for command in (add, list_webhooks, show, edit, secret, header, deactivate, activate):
    cli.add_command(command)
for command in (pause, resume, drain, skip_deliveries):
    cli.add_command(command)
for command in (send, logs, dead, check, queues, settings, demo, up):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command; the entry point that packaging names."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # In a terminal without Unicode an arrow must not end in a traceback.
            stream.reconfigure(errors="backslashreplace")
    cli.main(prog_name="webhooks")
