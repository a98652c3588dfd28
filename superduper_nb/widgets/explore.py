"""Looking around in a collection: what it holds, and from there more like this, less like that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.errors import InvalidInputError
from superduper_nb.widgets import html
from superduper_nb.widgets.clean import shorten, spell, visible
from superduper_nb.widgets.grid import grid
from superduper_nb.widgets.results import HIDDEN, LAST, Facts, Result, scores_of

if TYPE_CHECKING:
    from superduper_nb.client import Collection

__all__ = ["MOST", "Explorer"]

MOST: Final = 48
"""Most documents on show: a page to look at, not to scroll through."""
_EXAMPLES: Final = 20
_VIEWS: Final = "superduper_nb.widgets.views"

Read = Callable[[str], Mapping[str, Any]]
"""Reads a filter that somebody typed."""


class Explorer:
    """Documents of a collection, with buttons for more and for less like each of them.

    Every button has its method here; :attr:`query` is the Python that stands for what is on show, :attr:`result` what
    it found. A view is made when it is displayed, and closed by :meth:`close`, or when it is displayed again.

    Parameters
    ----------
    collection : Collection
        Where to look.
    filter : mapping, optional
        Only among these.
    like : mapping, optional
        What to start from, as of `Collection.find`; default: any documents.
    n : int, default 12
        How many to show; at most :data:`MOST`.
    semantic_index : str, optional
        Which; not needed where the collection has only one.
    name : str, default "docs"
        What to call the collection in :attr:`query`.
    read : callable, optional
        Reads a filter typed into the view; default: MongoDB Extended JSON.
    """

    def __init__(
        self,
        collection: Collection[dict[str, Any]],
        filter: Mapping[str, Any] | None = None,
        *,
        like: Mapping[str, Any] | None = None,
        n: int = 12,
        semantic_index: str | None = None,
        name: str = "docs",
        read: Read | None = None,
    ) -> None:
        self._collection, self._name, self._read = collection, name, read or _extended_json
        self._filter, self._n = dict(filter or {}), _checked(n)
        self._seed = None if like is None else dict(like)
        self._index = {} if semantic_index is None else {"semantic_index": semantic_index}
        self._more: list[Any] = []
        self._less: list[Any] = []
        self._labels: dict[Any, str] = {}
        self._problem = ""
        self._view: Any = None
        self.result = self._found()

    @property
    def query(self) -> str:
        """The Python that gives what is on show."""
        return self._query_of(self._asked())

    @property
    def filter(self) -> dict[str, Any]:
        """Among which documents is looked."""
        return dict(self._filter)

    def more_like(self, id: Any) -> None:
        """Look for more like the document with this ``_id``; again: no longer."""
        self._change(more=_toggled(self._more, id), less=[each for each in self._less if each != id])

    def less_like(self, id: Any) -> None:
        """Stay away from the document with this ``_id``; again: no longer."""
        self._change(more=[each for each in self._more if each != id], less=_toggled(self._less, id))

    def narrow(self, filter: Mapping[str, Any] | None = None, *, n: int | None = None) -> None:
        """Look among other documents, or at more or fewer of them."""
        self._change(filter=None if filter is None else dict(filter), n=None if n is None else _checked(n))

    def reset(self) -> None:
        """Forget the examples."""
        self._change(more=[], less=[])

    def close(self) -> None:
        """Close the view; what it showed stays as it is."""
        leaving, self._view = self._view, None
        if leaving is not None:
            import_module(_VIEWS).close(leaving)

    def __repr__(self) -> str:
        return f"{self.result!r}\n{self.query}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        self.close()
        still = {"text/plain": repr(self), "text/html": self.result._repr_mimebundle_()["text/html"]}
        if not html.in_notebook():
            return still
        self._view = import_module(_VIEWS).ExplorerView(
            html=self._drawn(), n=self._n, most=MOST, filter=self._filter_text()
        )
        self._view.on_msg(self._heard)
        return {**(self._view._repr_mimebundle_()[0] or {}), **still}

    def _asked(self) -> dict[str, Any]:
        likes = [*([self._seed] if self._seed else []), *({"_id": id} for id in self._more)]
        unlikes = [{"_id": id} for id in self._less]
        if not likes:
            return {"limit": self._n}
        return {
            "like": _one_or_all(likes),
            **({"unlike": _one_or_all(unlikes)} if unlikes else {}),
            "n": self._n,
            **self._index,
        }

    def _query_of(self, asked: Mapping[str, Any]) -> str:
        given = "".join(f", {key}={value!r}" for key, value in asked.items())
        return f"{self._name}.find({self._filter!r}{given})"

    def _found(self) -> Result:
        from superduper_nb.search.ids import id_key

        if self._less and not (self._seed or self._more):
            raise InvalidInputError("say first what to find more of: less like one thing alone is no direction.")
        asked = self._asked()
        cursor = self._collection.find(self._filter, **asked)
        documents = list(cursor)
        known = {} if (reply := cursor.reply) is None else {key: getattr(reply, key) for key in _TOLD}
        words = tuple(text for text in (self._seed or {}).values() if isinstance(text, str))
        facts = Facts(query=self._query_of(asked), source=self._collection.full_name, words=words, **known)
        self._labels |= {id_key(document["_id"]): _label(document) for document in documents}
        return Result(documents, facts=facts, layout="gallery")

    def _change(self, **changes: Any) -> None:
        """Change what is asked for; where that fails, nothing has changed."""
        before = {name: getattr(self, f"_{name}") for name in changes}
        for name, value in changes.items():
            if value is not None:
                setattr(self, f"_{name}", value)
        try:
            if len(self._more) + len(self._less) > _EXAMPLES:
                raise InvalidInputError(f"{_EXAMPLES} examples are the most: take one back first.")
            self.result = self._found()
        except BaseException:
            for name, value in before.items():
                setattr(self, f"_{name}", value)
            raise
        self._problem = ""
        self._draw()

    def _heard(self, _: Any, message: Mapping[str, Any], __: Any) -> None:
        """Do what the reader of the view asks for; what goes wrong is told there."""
        try:
            self._obey(message)
        except Exception as error:  # a widget's callback has nobody to raise to
            self._problem = shorten(visible(str(error)), 300)
            self._draw()

    def _obey(self, message: Mapping[str, Any]) -> None:
        match message.get("act"):
            case "more":
                self.more_like(self.result[int(message["rank"])]["_id"])
            case "less":
                self.less_like(self.result[int(message["rank"])]["_id"])
            case "forget":
                id = [*self._more, *self._less][int(message["rank"])]
                (self.more_like if id in self._more else self.less_like)(id)
            case "reset":
                self.reset()
            case "narrow":
                typed = str(message.get("filter", "")).strip()
                self.narrow(self._read(typed) if typed else {}, n=int(message["n"]))

    def _draw(self) -> None:
        if self._view is not None:
            self._view.html, self._view.n, self._view.filter = self._drawn(), self._n, self._filter_text()

    def _filter_text(self) -> str:
        return spell(self._filter) if self._filter else ""

    def _drawn(self) -> str:
        from superduper_nb.search.ids import id_key

        shown = self.result.to_list()
        table = grid(shown, hidden=HIDDEN | {"_outputs"}, last=LAST)
        roles = ["more" if each["_id"] in self._more else "less" if each["_id"] in self._less else "" for each in shown]
        cards = html.cards(table, scores_of(shown), words=self.result.facts.words, roles=roles)
        examples = [(id, "more") for id in self._more] + [(id, "less") for id in self._less]
        chosen = [(self._labels.get(id_key(id)) or _label({"_id": id}), role) for id, role in examples]
        footer = self.result.footer(len(cards))
        return str(
            html.render(
                "explore.html.j2", cards=cards, chosen=chosen, query=self.query, problem=self._problem, footer=footer
            )
        )


_TOLD: Final = ("index", "strategy", "candidates", "pending")


def _checked(n: int) -> int:
    if not 1 <= n <= MOST:
        raise InvalidInputError(f"n is how many documents are shown, from 1 to {MOST}; given {n!r}.")
    return n


def _toggled(ids: list[Any], id: Any) -> list[Any]:
    return [each for each in ids if each != id] if id in ids else [*ids, id]


def _one_or_all(examples: list[Any]) -> Any:
    return examples[0] if len(examples) == 1 else examples


def _label(document: Mapping[str, Any]) -> str:
    texts = (value for key, value in document.items() if isinstance(value, str) and key[:1] != "_")
    return " ".join(visible(shorten(next(texts, spell(document["_id"])), 40)).split())


def _extended_json(text: str) -> Mapping[str, Any]:
    from bson.json_util import loads

    try:
        filter = loads(text)
    except ValueError as error:
        raise InvalidInputError(f"the filter is no JSON: {error}.") from None
    if not isinstance(filter, Mapping):
        raise InvalidInputError('the filter is a document, such as {"price": {"$lt": 50}}.')
    return filter
