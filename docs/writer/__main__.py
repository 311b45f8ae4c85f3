"""The command line: ``python -m docs.writer`` in a checkout."""

from __future__ import annotations

import click

from docs.writer import pages

__all__ = ["main"]


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; name what is stale and fail if anything is.")
def main(check: bool) -> None:
    """Write the pages under docs/ and the tables of the README from docstrings, registries and result files.

    \b
    Examples:
      python -m docs.writer
      python -m docs.writer --check
    """
    try:
        paths = pages.stale() if check else pages.write()
    except (FileNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for path in paths:
        click.echo(path.relative_to(pages.ROOT))
    if check and paths:
        raise click.ClickException("these files are stale; write them with: python -m docs.writer")


if __name__ == "__main__":
    main()
