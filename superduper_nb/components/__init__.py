"""What users register: components with versions, their artifacts, and whether an artifact may be loaded."""

from superduper_nb.components.store import Component, ComponentStore

__all__ = ["Component", "ComponentStore"]
