"""How a command ends that cannot do what it was asked."""

from typing import NoReturn

import typer


def fail(message: str, status: int = 1) -> NoReturn:
    """Say on standard error what is wrong, and end with this exit status."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status)
