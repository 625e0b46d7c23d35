"""Files of named tensors whose header is of another kind than grata writes."""

import json

import pytest

from grata.tensors import unpack


def packed(metadata) -> bytes:
    header = json.dumps({"__metadata__": metadata}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize("metadata", [True, [1], {"grata": 5}, {"grata": "[]"}, {"grata": "{"}])
def test_a_header_of_another_kind_is_refused(metadata):
    with pytest.raises(ValueError):
        unpack(packed(metadata), "grata")


def test_a_file_without_a_header_of_ours_has_no_checksum():
    assert unpack(packed({}), "grata") == ({}, None)
