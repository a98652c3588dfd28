"""The options of sub-commands that read documents: how they are written on the line, and read from it."""

from __future__ import annotations

import argparse
from typing import Any, Final

from superduper_nb.magics.call import FETCHED
from superduper_nb.magics.line import Parser

__all__ = [
    *("NEAREST", "aggregate_options", "distinct_options", "features_argument", "fields_argument", "find_one_options"),
    *("find_options", "form_options", "ranking_options", "sort_argument", "whole_argument"),
]

NEAREST: Final = 10
"""Documents of a search without ``-n``, as in :meth:`Collection.find`."""


def whole_argument(text: str) -> int:
    """Read a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def sort_argument(text: str) -> list[tuple[str, int]]:
    """Read ``price,-rating`` (or ``price:1,rating:-1``) as pymongo's sort."""
    return [_sort_field(part.strip()) for part in text.split(",") if part.strip()] or _nothing(text)


def _sort_field(text: str) -> tuple[str, int]:
    name, colon, direction = text.rpartition(":")
    if colon:
        if direction not in ("1", "-1", "asc", "desc"):
            raise argparse.ArgumentTypeError(f"{text!r}: the direction is 1, -1, asc or desc")
        return name, -1 if direction in ("-1", "desc") else 1
    return (text[1:], -1) if text.startswith("-") else (text.removeprefix("+"), 1)


def features_argument(text: str) -> dict[str, str]:
    """Read ``text=minilm,img=clip`` as `features` of `Collection.find`."""
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()] or _nothing(text)
    if wrong := next((key for key, sign, model in pairs if not (key and sign and model)), None):
        raise argparse.ArgumentTypeError(f"{wrong!r} names no model: write field=model")
    return {key: model for key, _, model in pairs}


def fields_argument(text: str) -> dict[str, int]:
    """Read ``text,price`` (only these) or ``-vector`` (all but these) as pymongo's projection."""
    names = [part.strip() for part in text.split(",") if part.strip()] or _nothing(text)
    if len({name.startswith("-") for name in names if name != "-_id"}) == 2:
        raise argparse.ArgumentTypeError(f"{text!r} mixes fields to show and fields to leave out")
    if any(name.lstrip("-").startswith("$") for name in names):
        raise argparse.ArgumentTypeError(f"{text!r}: fields are named, not computed")
    return {name.removeprefix("-"): int(not name.startswith("-")) for name in names}


def _nothing(text: str) -> Any:
    raise argparse.ArgumentTypeError(f"{text!r} names no field")


def _paging(parser: Parser) -> None:
    parser.add_argument(
        "-n",
        "--limit",
        dest="n",
        type=whole_argument,
        metavar="N",
        help=f"how many (default {FETCHED}, with $like {NEAREST}; 0: all)",
    )


def ranking_options(parser: Parser) -> None:
    """Add how a search by meaning ranks."""
    parser.add_argument(
        "--like",
        action="append",
        metavar="EXAMPLE",
        help="near to it, as $like in the body: '{text: \"warm\"}' or a variable; may be given more than once",
    )
    parser.add_argument("--index", metavar="ID", help="the semantic index; needed where the collection has several")
    parser.add_argument("--exact", action="store_true", help="compare with every vector, whatever the index is")
    parser.add_argument("--min-score", type=float, metavar="SCORE", help="leave out what scores less")
    parser.add_argument("--max-score", type=float, metavar="SCORE", help="leave out what scores more")
    parser.add_argument(
        "--unlike",
        action="append",
        metavar="EXAMPLE",
        help="stay away from it: '{text: \"cotton\"}' or a variable; may be given more than once",
    )
    parser.add_argument(
        "--diversity", type=float, metavar="SHARE", help="0: the nearest, 1: those least like each other"
    )
    parser.add_argument("--text", metavar="WORDS", help="rank by these words too (needs a text index)")
    parser.add_argument("--group-by", metavar="FIELD", help="only the best of each value of the field")


def _choosing(parser: Parser) -> None:
    parser.add_argument("--skip", type=whole_argument, metavar="N", help="leave out the first N")
    parser.add_argument(
        "--sort", type=sort_argument, metavar="FIELDS", help="price,-rating: by price, then best rating first"
    )
    parser.add_argument(
        "--fields", type=fields_argument, metavar="FIELDS", help="text,price: only these; -vector: all but this"
    )
    parser.add_argument(
        "--features", type=features_argument, metavar="FIELD=MODEL", help="the model's output in the field's place"
    )


def form_options(parser: Parser) -> None:
    """Add ``--as``: the form of a result."""
    forms = ("table", "gallery", "json", "pandas")
    parser.add_argument("--as", dest="form", choices=forms, default="table", help="how to show it, or a data frame")


def find_options(parser: Parser) -> None:
    """Add those of ``find``."""
    _paging(parser)
    _choosing(parser)
    ranking_options(parser)
    parser.add_argument("--explain", action="store_true", help="show how it is answered instead")
    form_options(parser)


def find_one_options(parser: Parser) -> None:
    """Add those of ``find_one``."""
    _choosing(parser)
    ranking_options(parser)
    parser.set_defaults(n=1)


def distinct_options(parser: Parser) -> None:
    """Add those of ``distinct``."""
    parser.add_argument("field", help="the field, with dots for nested ones")
    parser.add_argument(
        "-n", type=whole_argument, metavar="N", help=f"with $like: of how many documents (default {NEAREST})"
    )
    ranking_options(parser)
    parser.set_defaults(skip=None, sort=None, fields=None, features=None)


def aggregate_options(parser: Parser) -> None:
    """Add those of ``aggregate``."""
    _paging(parser)
    parser.add_argument("--index", metavar="ID", help="the semantic index of a $like stage")
    form_options(parser)
