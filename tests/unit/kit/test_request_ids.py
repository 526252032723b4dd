import pytest

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.kit.request_ids import MAX_REQUEST_ID, RequestIds, check_request_id


def test_a_repeat_finds_what_the_original_made() -> None:
    ids = RequestIds[str]()
    assert ids.known("one") is None
    ids.remember("one", "a")
    assert ids.known("one") == "a"
    assert ids.known("two") is None


def test_an_empty_id_is_none() -> None:
    ids = RequestIds[str]()
    ids.remember("", "a")
    assert ids.known("") is None


def test_those_that_were_used_the_longest_ago_are_forgotten_first() -> None:
    ids = RequestIds[int](limit=2)
    ids.remember("one", 1)
    ids.remember("two", 2)
    assert ids.known("one") == 1
    ids.remember("three", 3)
    assert [ids.known(each) for each in ("one", "two", "three")] == [1, None, 3]


def test_what_is_gone_is_forgotten() -> None:
    ids = RequestIds[int]()
    ids.remember("one", 1)
    ids.remember("also one", 1)
    ids.remember("two", 2)
    ids.forget(lambda made: made == 1)
    assert [ids.known(each) for each in ("one", "also one", "two")] == [None, None, 2]


def test_an_id_has_a_longest_length() -> None:
    check_request_id("x" * MAX_REQUEST_ID)
    with pytest.raises(InvalidRequestError) as refused:
        check_request_id("x" * (MAX_REQUEST_ID + 1))
    assert refused.value.facts == {"field": "request_id"}
