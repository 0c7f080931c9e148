"""keepfs completion: prints the script with which a shell completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")
#: The variable that such a script sets when it runs keepfs for completions.
VARIABLE = "_KEEPFS_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
def completion_command(shell: str) -> None:
    """Print the script that completes keepfs's commands and options in SHELL.

    \b
    bash:  keepfs completion bash > ~/.local/share/bash-completion/completions/keepfs
    zsh:   keepfs completion zsh > "${fpath[1]}/_keepfs"
    fish:  keepfs completion fish > ~/.config/fish/completions/keepfs.fish
    """  # noqa: D301 - a backspace: click keeps the lines of the paragraph
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - for the type; the choice has only those of click
    group = click.get_current_context().find_root().command
    click.echo(kind(group, {}, "keepfs", VARIABLE).source())
