"""Who made this artifact: HMAC signatures with this installation's key.

Loading a pickle runs code, so one is loaded only if this installation signed it, as Jupyter does with notebooks that it
trusts (``nbformat.sign.NotebookNotary``). The key is a file of mode 0600 in the Jupyter data folder; workers on other
machines have it in ``SUPERDUPER_TRUST_KEY`` (hexadecimal), which is set there, or handed over by TLS.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from superduper_nb.errors import TrustError

__all__ = ["TRUST_KEY", "sign", "trust_key", "verify"]

TRUST_KEY: Final = "SUPERDUPER_TRUST_KEY"
"""Environment variable that holds the key where there is no file of it."""
_KEY_BYTES = 32


def trust_key() -> bytes:
    """Return this installation's key; make it on first use."""
    if given := os.environ.get(TRUST_KEY):
        return bytes.fromhex(given)
    from jupyter_core.paths import jupyter_data_dir

    return _read_or_create(Path(jupyter_data_dir()) / "superduper_nb" / "trust.key")


def _read_or_create(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        # Linked into place whole, so that two first users agree on one key and nobody reads half of it.
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        if not path.exists():
            draft.touch(mode=0o600)
            draft.write_bytes(secrets.token_bytes(_KEY_BYTES))
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        if path.stat().st_mode & 0o077:
            raise TrustError(f"The signing key {path} is readable by others. Run: chmod 600 {path}")
        return path.read_bytes()
    except OSError as error:
        raise TrustError(f"Can't use the signing key {path}: {error.strerror}.") from error


def _digest(header: Mapping[str, Any], key: bytes) -> str:
    message = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def sign(header: Mapping[str, Any]) -> str:
    """Return the signature of a header (who, which version, format, SHA-256 and size of the bytes)."""
    return _digest(header, trust_key())


def verify(header: Mapping[str, Any], signature: Any) -> bool:
    """Say whether this installation signed exactly this header: by the signature, or by one of a list of them."""
    try:
        expected = _digest(header, trust_key())
    except TypeError:  # something that no header of ours holds
        return False
    given = signature if isinstance(signature, list) else [signature]
    return any(isinstance(each, str) and hmac.compare_digest(expected.encode(), each.encode()) for each in given)
