"""keepfs explain: the cause and the cure of a message."""

from __future__ import annotations

from dataclasses import asdict

import click

from keepfs.cli import clients
from keepfs.messages import of_commands
from keepfs.messages.registry import MESSAGES, explanation, find_message, sections


@click.command("explain")
@click.argument("words", metavar="[ID]", nargs=-1)
@clients.json_option
def explain_command(words: tuple[str, ...], *, is_json: bool) -> None:
    """Explain a message: its cause, and what to do.

    ID are the words in brackets at the end of a message; the whole message is
    accepted too. Without an ID all messages are listed.
    """
    if not words and is_json:
        for each in MESSAGES.values():
            clients.print_json(asdict(each))
        return
    if not words:
        width = max(map(len, MESSAGES)) + 2
        for subject, messages in sections():
            click.echo(f"{subject.capitalize()}:")
            for each in messages:
                click.echo(f"  {each.id:{width}}{each.cause.partition('. ')[0].rstrip('.')}")
        return
    message = find_message(" ".join(words))
    if message is None:
        raise click.UsageError(of_commands.UNKNOWN_MESSAGE(name=" ".join(words)))
    if is_json:
        clients.print_json(asdict(message))
    else:
        click.echo(explanation(message))
