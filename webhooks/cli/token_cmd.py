"""``webhooks token``: who may read a company's webhooks and logs through the read API."""

import click
from bson import ObjectId

from webhooks.cli.options import COMPANY_OPTION, ID, JSON_OPTION
from webhooks.cli.output import Cell, Table, print_error, print_json
from webhooks.cli.stores import get_stores
from webhooks.models.wire import document_json, to_wire

#: Characters of a name.
_MAX_NAME = 200
_HEADER = ("ID", "COMPANY", "CREATED (UTC)", "LAST USED (UTC)", "NAME")


@click.group(short_help="Make tokens for the read API.")
def token() -> None:
    """Make tokens for the read API, list and remove them.

    A token reads the webhooks and logs of one company. It cannot change anything.
    """


@token.command()
@click.option("--company", type=ID, metavar="ID", required=True, help="The company that it belongs to.")
@click.option("--name", default="", help="For people: who uses it.")
@JSON_OPTION
def add(company: ObjectId, name: str, as_json: bool) -> None:
    """Make a token, and show it once: only its hash is stored."""
    if len(name) > _MAX_NAME:
        raise click.UsageError(f"--name has more than {_MAX_NAME} characters")
    store = get_stores().tokens
    store.ensure_indexes()
    token_id, text = store.add(company, name)
    if as_json:
        print_json(document_json({"_id": token_id, "company": company, "name": name, "token": text}))
        return
    rows = [["added", str(token_id)], ["company", str(company)], ["token", text]]
    Table().print([*rows, ["", Cell("shown only now; send it as `Authorization: Bearer TOKEN`", "dim")]])


@token.command("list")
@COMPANY_OPTION
@JSON_OPTION
def list_tokens(company: ObjectId | None, as_json: bool) -> None:
    """List the tokens, without what they are. "Last used" is up to a minute old."""
    found = get_stores().tokens.list_all(company)
    if as_json:
        for one in found:
            print_json(document_json(one))
        return
    if not found:
        print_error("there are no tokens; `webhooks token add` makes one")
        return
    fields = ("_id", "company", "created_at", "last_used_at", "name")
    rows = [[str(to_wire(one.get(field)) or "-") for field in fields] for one in found]
    Table(cut=True).print([[Cell(name, "bold") for name in _HEADER], *rows])


@token.command()
@click.argument("token_id", metavar="ID", type=ID)
def remove(token_id: ObjectId) -> None:
    """Remove a token: it stops working at once. ID is what `webhooks token list` shows."""
    if not get_stores().tokens.remove(token_id):
        raise click.ClickException(f"there is no token {token_id}; `webhooks token list` shows them")
    click.echo(f"token {token_id} is removed")
