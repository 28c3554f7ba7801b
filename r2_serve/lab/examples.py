"""Shipped example files, and the choice between one of them and a user's own file."""

from __future__ import annotations

from pathlib import Path

import typer


def example_names(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.yaml"))


def example_path(name: str, directory: Path) -> Path:
    """The shipped file of that name. Raises: ConfigError."""
    from r2_serve.errors import ConfigError
    from r2_serve.serve_config.document import suggestion

    names = example_names(directory)
    if name not in names:
        raise ConfigError(f"no example {name!r}{suggestion(name, names)}")
    return directory / f"{name}.yaml"


def chosen_file(file: Path | None, example: str | None, directory: Path) -> Path:
    """The file to use; `list` prints the examples' names and ends the command. Raises: ConfigError."""
    from r2_serve.errors import ConfigError

    if example == "list":
        typer.echo("\n".join(example_names(directory)))
        raise typer.Exit
    if file is not None and example is None:
        return file
    if file is None and example is not None:
        return example_path(example, directory)
    raise ConfigError("give a file, or --example NAME (--example list names them)")
