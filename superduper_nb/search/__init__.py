"""Linear algebra: vectors that models produced, in memory, searched completely and in real time."""

from superduper_nb.search.engine import SearchEngine
from superduper_nb.search.options import IndexOptions
from superduper_nb.search.values import SearchReply, SearchRequest

__all__ = ["IndexOptions", "SearchEngine", "SearchReply", "SearchRequest"]
