"""Walking the pages gives each item once, whatever comes and goes meanwhile."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.kit.errors import InvalidRequestError
from genaid_server.kit.paging import DEFAULT_SIZE, MAX_BYTES, MAX_SIZE, page

keys = st.lists(st.text(st.characters(codec="utf-8"), max_size=5), unique=True, max_size=40)


def itself(text: str) -> str:
    return text


@given(keys=keys, size=st.integers(1, 7), descending=st.booleans())
def test_all_pages_together_are_the_list(keys: list[str], size: int, descending: bool) -> None:
    items = sorted(keys, reverse=descending)
    walked: list[str] = []
    token = ""
    while True:
        part = page(items, itself, size, token)
        assert len(part.items) <= size
        walked += part.items
        token = part.next_token
        if not token:
            break
        assert len(part.items) == size
    assert walked == items


@given(keys=keys, size=st.integers(1, 5), descending=st.booleans(), data=st.data())
def test_items_that_stay_are_seen_once_and_in_order_while_others_come_and_go(
    keys: list[str], size: int, descending: bool, data: st.DataObject
) -> None:
    staying = set(data.draw(st.sets(st.sampled_from(keys)))) if keys else set()
    walked: list[str] = []
    token = ""
    while True:
        others = set(data.draw(st.sets(st.sampled_from(keys)))) if keys else set()
        part = page(sorted(staying | others, reverse=descending), itself, size, token)
        walked += part.items
        token = part.next_token
        if not token:
            break
    assert walked == sorted(set(walked), reverse=descending)
    assert staying <= set(walked)


@given(weights=st.lists(st.integers(0, 2 * MAX_BYTES), max_size=20), size=st.integers(1, 7))
def test_heavy_items_make_shorter_pages_but_none_is_left_out(weights: list[int], size: int) -> None:
    items = [f"{number:02}" for number in range(len(weights))]
    walked: list[str] = []
    token = ""
    while True:
        part = page(items, itself, size, token, lambda item: weights[int(item)])
        assert len(part.items) <= 1 or sum(weights[int(item)] for item in part.items) <= MAX_BYTES
        walked += part.items
        token = part.next_token
        if not token:
            break
        assert part.items
    assert walked == items


def test_a_list_that_shrank_to_one_item_keeps_its_direction() -> None:
    token = page(["c", "b", "a"], itself, 1, "").next_token
    assert page(["a"], itself, 1, token) == (["a"], "")
    assert page(["d"], itself, 1, token) == ([], "")


def test_size_zero_is_the_default() -> None:
    items = [f"{number:04}" for number in range(MAX_SIZE + 1)]
    assert len(page(items, itself, 0, "").items) == DEFAULT_SIZE
    assert len(page(items, itself, MAX_SIZE, "").items) == MAX_SIZE


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1, 2**31 - 1])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"between 0 and {MAX_SIZE}, not {size}") as refused:
        page(["a"], itself, size, "")
    assert refused.value.facts == {"field": "page_size"}


@pytest.mark.parametrize("token", ["2", "nonsense!", "☃", "=", "\0", "a" * 100_001, base64.b64encode(b"key").decode()])
def test_a_token_that_nobody_gave_out_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        page(["a"], itself, 1, token)
    assert refused.value.facts == {"field": "page_token"}


@given(st.text())
def test_no_token_does_worse_than_being_refused(token: str) -> None:
    try:
        part = page(["a", "b"], itself, 1, token)
    except InvalidRequestError:
        return
    assert set(part.items) <= {"a", "b"}
