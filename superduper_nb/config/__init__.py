"""Settings: explicit arguments > environment (``SUPERDUPER_*``) > ``config.json`` > defaults.

``config.json`` has the shape of the original cluster file: every part has a host and a port. The same keys work as
environment variables (``SUPERDUPER_MONGODB__URI``) and as arguments of :meth:`Config.load`. Anything wrong stops here,
with the file (or variable) and the key; no message and no ``repr`` holds a secret.
"""

from superduper_nb.config.sections import DownloadsConfig, SearchConfig
from superduper_nb.config.settings import Config

__all__ = ["Config", "DownloadsConfig", "SearchConfig"]
