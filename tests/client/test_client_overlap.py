"""Our classes add to pymongo's and replace what they mean to replace, nothing else."""

from __future__ import annotations

import inspect
import re

import pymongo
import pymongo.collection
import pymongo.command_cursor
import pymongo.cursor
import pymongo.database
import pytest

import superduper_nb as sd
from superduper_nb.client.cursor import DecodingCommandCursor

OURS = {
    sd.Client: (pymongo.MongoClient, "__enter__ __getitem__ close drop_database get_database get_default_database"),
    sd.Database: (
        pymongo.database.Database,
        "__getitem__ create_collection get_collection with_options",
    ),
    sd.Collection: (
        pymongo.collection.Collection,
        "__call__ __getitem__ aggregate bulk_write delete_many delete_one find find_one_and_delete "
        "find_one_and_replace find_one_and_update insert_many insert_one replace_one update_many update_one "
        "with_options",
    ),
    sd.Cursor: (pymongo.cursor.Cursor, "__enter__ _clone _refresh _unpack_response distinct explain"),
    DecodingCommandCursor: (pymongo.command_cursor.CommandCursor, "__init__ _refresh"),
}
OF_EVERY_CLASS = {*vars(type("Empty", (), {})), "__annotations__", "__orig_bases__", "__parameters__", "_abc_impl"} | {
    "__abstractmethods__"
}


@pytest.mark.parametrize("ours", OURS, ids=lambda cls: cls.__name__)
def test_only_what_is_meant_to_be_replaced_has_a_name_of_pymongos(ours: type) -> None:
    base, replaced = OURS[ours]
    added = [cls for cls in ours.__mro__ if cls.__module__.startswith("superduper_nb")]
    own = set().union(*map(vars, added)) - OF_EVERY_CLASS
    source = "".join(inspect.getsource(cls) for cls in base.__mro__ if cls.__module__.startswith("pymongo"))
    taken = set(dir(base)) | set(re.findall(r"self\.(\w+)", source))
    assert own & taken == set(replaced.split())
