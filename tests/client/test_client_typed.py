"""The generics of our classes, as pymongo's: what mypy says of them (it checks this file) is what they are."""

from __future__ import annotations

from typing import Any, TypedDict, assert_type

import gridfs
from bson import ObjectId
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database as Mongo

import superduper_nb as sd


class Product(TypedDict):
    _id: ObjectId
    name: str
    price: float


def test_a_client_of_a_document_class_is_one_of_its_databases_collections_and_cursors(
    mongo_uri: str, database: Mongo[dict[str, Any]]
) -> None:
    with sd.Client[Product](mongo_uri) as client:
        shop = assert_type(client[database.name], sd.Database[Product])
        products = assert_type(shop["products"], sd.Collection[Product])
        assert_type(shop.get_collection("products"), sd.Collection[Product])
        given: Product = {"_id": ObjectId(), "name": "scarf", "price": 19.5}
        products.insert_one(given)
        cursor = assert_type(products.find({"price": {"$lt": 50}}), sd.Cursor[Product])
        assert type(cursor) is sd.Cursor
        assert_type(cursor.clone(), sd.Cursor[Product])
        with products.find() as closing:
            assert_type(closing, sd.Cursor[Product])
        (found,) = cursor
        assert assert_type(found, Product) == given
        assert_type(products.find_one(), Product | None)
        assert_type(products.decoded([given]), list[Product])
        assert "queryPlanner" in products.find().explain()


def test_options_of_another_document_class_are_of_our_collections(
    mongo_uri: str, database: Mongo[dict[str, Any]]
) -> None:
    with sd.Client[dict[str, Any]](mongo_uri) as client:
        documents = client[database.name]["docs"]
        documents.insert_one({"_id": 1})
        raw = documents.with_options(codec_options=CodecOptions(document_class=RawBSONDocument))
        assert type(raw) is type(client[database.name].with_options()["docs"]) is sd.Collection
        assert type(raw.find()) is sd.Cursor
        assert type(raw.find_one()) is RawBSONDocument
        bucket = gridfs.GridFSBucket(client[database.name])
        assert bucket.open_download_stream(bucket.upload_from_stream("a", b"bytes")).read() == b"bytes"
