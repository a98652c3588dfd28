"""``%load_ext superduper_nb`` and its undoing: both silent, both harmless when done twice.

Connections outlive them (:mod:`~superduper_nb.magics.session`), so ``%reload_ext`` loses nothing.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import ConfigError, SuperduperError
from superduper_nb.magics.asking import answered
from superduper_nb.magics.completion import matcher
from superduper_nb.magics.magic import SuperduperMagics
from superduper_nb.magics.project import configure
from superduper_nb.widgets.display import BUNDLES, DISPLAYS

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load", "unload"]

_NAME: Final = SuperduperMagics.__name__
_OURS: Final = ("superduper_nb",)
_POLICY: Final = ("allowed_getattr_external", "allowed_getitem_external")


def load(ipython: InteractiveShell) -> None:
    """Register the magic, its completion and its displays."""
    shell: Any = ipython
    if _NAME in shell.magics_manager.registry:
        return
    magics = SuperduperMagics(shell=shell)
    try:
        configure(magics)
    except ConfigError as error:  # a typing error in a project's file must not take the magics away
        warnings.warn(str(error), stacklevel=3)
    shell.register_magics(magics)
    shell.Completer.custom_matchers.append(matcher)
    shell.input_transformers_cleanup.append(answered)
    _allow_attributes(shell.Completer, allow=True)
    for (module, name), function in DISPLAYS.items():
        shell.display_formatter.ipython_display_formatter.for_type_by_name(module, name, function)
    for (module, name), bundle in BUNDLES.items():
        shell.display_formatter.mimebundle_formatter.for_type_by_name(module, name, bundle)


def unload(ipython: InteractiveShell) -> None:
    """Take out what :func:`load` put in."""
    shell: Any = ipython
    magics = shell.magics_manager.registry.pop(_NAME, None)
    if magics is None:
        return
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("sddb", None)
    shell.configurables.remove(magics)
    shell.Completer.custom_matchers.remove(matcher)
    shell.input_transformers_cleanup.remove(answered)
    _allow_attributes(shell.Completer, allow=False)
    for module, name in DISPLAYS:
        shell.display_formatter.ipython_display_formatter.pop(f"{module}.{name}", None)
    for module, name in BUNDLES:
        shell.display_formatter.mimebundle_formatter.pop(f"{module}.{name}", None)
    SuperduperError.short = True


def _allow_attributes(completer: Any, *, allow: bool) -> None:
    """Let IPython complete attributes of our objects where Jedi is off: it refuses classes with ``__getattr__``."""
    if not completer.has_trait("policy_overrides"):
        return
    from IPython.core.guarded_eval import EVALUATION_POLICIES

    policy, overrides = EVALUATION_POLICIES[completer.evaluation], dict(completer.policy_overrides)
    for name in _POLICY:
        if hasattr(policy, name):  # an override replaces the policy's own set, so that is kept with it
            known = set(overrides.get(name, getattr(policy, name)))
            overrides[name] = known | {_OURS} if allow else known - {_OURS}
    completer.policy_overrides = overrides
