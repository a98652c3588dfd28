"""Options of the magics from outside IPython: the environment, else ``[tool.superduper_nb]`` in ``pyproject.toml``.

How things are shown, and nothing else: the project's file comes with other people's code, so where data and tokens go
is none of its business (that is in `superduper_nb.config`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from traitlets import TraitError
from traitlets.config import Configurable

from superduper_nb.errors import ConfigError, did_you_mean

__all__ = ["configure"]

_SECTION: Final = "superduper_nb"
_PREFIX: Final = "SUPERDUPER_MAGICS__"


def configure(magics: Configurable, folder: Path | None = None) -> None:
    """Set the options that the nearest ``pyproject.toml`` with such a section gives, and those of the environment.

    Parameters
    ----------
    folder : Path, optional
        Where to begin to look, upwards. Default: the working directory.

    Raises
    ------
    ConfigError
        One of them names an unknown option, or a value of the wrong kind; those before it are set.
    """
    try:
        _read_project(magics, folder)
    finally:
        _read_environment(magics)


def _read_environment(magics: Configurable) -> None:
    """Set what variables such as ``SUPERDUPER_MAGICS__DISPLAY_LIMIT`` give; empty ones give nothing."""
    for variable, text in sorted(os.environ.items()):
        if variable.upper().startswith(_PREFIX) and text:
            name = variable[len(_PREFIX) :].lower()
            trait = magics.traits(config=True).get(name)
            try:
                value = text if trait is None else trait.from_string(text)
            except ValueError as error:
                raise ConfigError(f"{variable}={text!r:.40}: {error}.") from None
            _set(magics, {name: value}, variable)


def _read_project(magics: Configurable, folder: Path | None) -> None:
    folder = (folder or Path.cwd()).resolve()
    for file in (each / "pyproject.toml" for each in (folder, *folder.parents)):
        if (options := _section(file)) is not None:
            return _set(magics, options, f"{file}: [tool.{_SECTION}]")


def _section(file: Path) -> Mapping[str, Any] | None:
    """Return our section of a file; None where there is none."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if f"tool.{_SECTION}" not in text:  # most have none, and what is wrong elsewhere in them is not for us to say
        return None
    import tomllib

    try:
        section = tomllib.loads(text).get("tool", {}).get(_SECTION)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}.") from None
    return section if isinstance(section, Mapping) else None


def _set(magics: Configurable, options: Mapping[str, Any], where: str) -> None:
    known = magics.trait_names(config=True)
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{where}: {name}: unknown key.{did_you_mean(name, known)}")
        try:
            setattr(magics, name, value)
        except TraitError as error:
            raise ConfigError(f"{where}: {name}: {error}") from None
