"""The `lrc` command: parses, calls the package, prints. What the package refuses is one line and exit status 2."""

from lrc.cli.commands import app, main
from lrc.cli.inspection import export, inspect
from lrc.cli.studies import study
from lrc.cli.training import train

__all__ = ["app", "main"]

app.command()(inspect)
app.command()(export)
app.command()(train)
app.command()(study)
