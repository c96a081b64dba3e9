"""The command ``webhooks``. Exit codes: 0 success, 1 failure, 2 invalid command line, 130 Ctrl-C."""

import io
import os
import sys
from typing import Any, NoReturn

import click

from webhooks.cli.check_cmd import check
from webhooks.cli.dead_cmd import dead
from webhooks.cli.delivery_cmd import event
from webhooks.cli.demo_cmd import demo
from webhooks.cli.gate_cmd import drain, pause, resume, skip_deliveries
from webhooks.cli.header_cmd import header
from webhooks.cli.listen_cmd import listen
from webhooks.cli.logs_cmd import logs
from webhooks.cli.output import print_error
from webhooks.cli.pending_cmd import pending
from webhooks.cli.queues_cmd import queues
from webhooks.cli.resend_cmd import resend, test
from webhooks.cli.secret_cmd import secret
from webhooks.cli.send_cmd import send
from webhooks.cli.settings_cmd import settings
from webhooks.cli.token_cmd import token
from webhooks.cli.up_cmd import up
from webhooks.cli.webhooks_cmd import activate, add, deactivate, edit, list_webhooks, show
from webhooks.config import find_notices
from webhooks.errors import StoreUnavailable, WebhooksError
from webhooks.rules.remedies import DRIVER_ERRORS, explain_broker, explain_database
from webhooks.version import __version__


class OneLineCommand(click.Command):
    """A command whose errors are one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and exit; takes click's arguments."""
        sys.exit(self._run(*args, **{**kwargs, "standalone_mode": False}))

    def _run(self, *args: Any, **kwargs: Any) -> int:
        try:
            # The exit code of `ctx.exit`, or a command's return value, which is None.
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
        except UnicodeEncodeError:  # MongoDB cannot be queried for invalid UTF-8
            print_error("the command line is not UTF-8")
            return 2
        except DRIVER_ERRORS as error:
            print_error(f"the broker cannot be used: {explain_broker(error)}")
            return 1


class OneLineGroup(OneLineCommand, click.Group):
    """A group that lists its commands in the order of their definition."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of definition."""
        return list(self.commands)


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="webhooks", message="%(prog)s %(version)s")
def cli() -> None:
    """Manage webhooks, send events and see what happened to each delivery.

    Uses the broker of WEBHOOKS_BROKER_URL and the database of WEBHOOKS_MONGODB_URL.
    """
    for notice in find_notices(os.environ):
        print_error(notice)


for command in (
    *(add, list_webhooks, show, edit, secret, header, deactivate, activate),
    *(pause, resume, drain, skip_deliveries),
    *(send, test, logs, event, pending, resend, dead, check, queues, token, settings, listen, demo, up),
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command: the entry point of the package."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Unicode must not cause a traceback.
            stream.reconfigure(errors="backslashreplace")
    cli.main(prog_name="webhooks")
