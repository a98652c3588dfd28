"""The four engines of the cluster as objects in this process: MongoDB, jobs, linear algebra, model server.

The client asks an object with the methods of `Services` and does not know whether it got one of those here or the HTTP
client of a notebook server (`superduper_nb.remote.RemoteServices`).
"""

from superduper_nb.services.in_process import InProcessServices
from superduper_nb.services.local import LocalServices
from superduper_nb.services.protocol import Services

__all__ = ["InProcessServices", "LocalServices", "Services"]
