"""``config.json``: where it is, and what is wrong with it as a file."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from superduper_nb.errors import ConfigError

__all__ = ["from_file"]

_ENV_FILE: Final = "SUPERDUPER_CONFIG"
_MAX_BYTES: Final = 2**20


def from_file(config: str | Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Return the settings of the file, and the name by which messages speak of it."""
    if isinstance(config, Mapping):
        return dict(config), "config"
    if path := config or os.environ.get(_ENV_FILE):
        return _read(Path(path).expanduser()), str(path)
    from jupyter_core.paths import jupyter_config_dir

    default = Path(jupyter_config_dir(), "superduper_nb", "config.json")
    return _read(default) if default.exists() else {}, str(default)


def _read(path: Path) -> dict[str, Any]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: not a regular file.")
        if status.st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: {status.st_size} bytes, at most {_MAX_BYTES} are allowed.")
        settings = _parse(path.read_bytes(), path)
    except OSError as exc:
        raise ConfigError(f"{path}: can't be read: {exc.strerror}.") from None
    if os.name == "posix" and status.st_mode & 0o077 and _holds_secret(settings):
        raise ConfigError(f"{path}: holds a password or token, and others may read it: run `chmod 600 {path}`.")
    return settings


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ConfigError(f"{path}: {min(twice)!r} is given twice.")
        return dict(pairs)

    def no_constant(name: str) -> None:
        raise ConfigError(f"{path}: {name} is not JSON.")

    try:
        settings = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=no_constant)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text.") from None
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{path}: not JSON: {exc.msg}, line {exc.lineno}, column {exc.colno}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply.") from None
    if not isinstance(settings, dict):
        raise ConfigError(f'{path}: must hold an object, like {{"mongodb": {{"host": "localhost"}}}}.')
    return settings


def _holds_secret(settings: Mapping[str, Any]) -> bool:
    mongodb = settings.get("mongodb")
    uri = mongodb.get("uri") if isinstance(mongodb, Mapping) else None
    downloads = settings.get("downloads")
    headers = downloads.get("headers") if isinstance(downloads, Mapping) else None
    return bool(headers) or "token" in settings or "token=" in str(settings.get("url")) or "@" in str(uri)
