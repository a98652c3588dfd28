"""What Python users type: pymongo's classes, which also register models and find by meaning."""

from superduper_nb.client.client import Client
from superduper_nb.client.collection import Collection
from superduper_nb.client.connecting import connect
from superduper_nb.client.cursor import Cursor
from superduper_nb.client.database import Database
from superduper_nb.client.jobs import Job, Jobs

__all__ = ["Client", "Collection", "Cursor", "Database", "Job", "Jobs", "connect"]
