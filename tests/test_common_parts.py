"""`layers`: values pickled each on its own, over what they have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from primitive_jobs._wire import layers
from primitive_jobs._wire.layers import ALONE, MOST_IN_MEMO, Reader, Writer, joined, parted


class Thing:
    def __init__(self, number: int) -> None:
        self.number = number


def packed_over(writer: Writer, value: object) -> Any:
    packed = writer.dumps(value)
    assert packed is not None
    return joined(packed[0], packed[1])[0]


def last_byte(packed: Any) -> int:
    return bytes(parted(packed)[0])[-1]


@pytest.fixture(params=[True, False], ids=["memo set", "memo filled"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Pythons that let a memo be set, and with others."""
    assert layers._memo_can_be_set()
    if not request.param:
        monkeypatch.setattr(layers, "_memo_can_be_set", lambda: False)


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("count", [1, MOST_IN_MEMO // 4, 10 * MOST_IN_MEMO])
def test_a_value_refers_to_what_is_common(count: int) -> None:
    things = [Thing(i) for i in range(count)]
    writer = Writer()
    writer.add(things)
    bodies = [packed_over(writer, [thing, {"a": [thing.number, thing]}]) for thing in things]
    own = [packed_over(writer, [Thing(-1), [1.5]]) for _ in range(2)]
    reader = Reader()
    arrived = reader.add(writer.parts[0])
    for thing, body in zip(arrived, bodies, strict=True):
        one, holder = reader.load(body)
        assert one is thing
        assert holder["a"] == [thing.number, thing]
    (first, _), (second, _) = map(reader.load, own)
    assert type(first) is type(second) is type(arrived[0])
    assert first is not second
    assert (last_byte(bodies[0]) == 0) is (count > MOST_IN_MEMO)


def test_more_and_more_parts() -> None:
    """Classes that come one after the other, until a memo is too small for what they bring."""

    def kind_of(number: int) -> Any:
        return type(f"Kind{number}", (), {"number": number, "get": lambda self: (self, number)})

    kinds = [kind_of(i) for i in range(30)]
    writer, reader = Writer(), Reader()
    loaded, made = 0, []
    for kind in kinds * 2:
        body = packed_over(writer, (kind(), kind))
        for part in writer.parts[loaded:]:
            reader.add(part)
        loaded = len(writer.parts)
        made.append(reader.load(body))
    assert loaded == len(kinds)
    assert [one.get() for one, _ in made] == [(one, kind.number) for one, kind in made]
    assert all(type(one) is kind for one, kind in made)
    assert writer.classes == kinds
    assert last_byte(packed_over(writer, kinds[0]())) == 0


def test_what_refers_to_nothing_is_known() -> None:
    writer = Writer()
    writer.add([Thing(1)])
    assert last_byte(packed_over(writer, [1, 2.5, [3]])) == ALONE
    assert Reader().load(packed_over(writer, [1, 2.5, [3]])) == [1, 2.5, [3]]


def test_a_function_is_not_pickled_over_a_layer() -> None:
    writer = Writer()
    writer.add([1])
    assert writer.dumps([lambda: 1]) is None


def test_what_changes_is_noticed() -> None:
    things = [Thing(1)]
    changes: dict[str, Callable[[], object]] = {
        "an attribute": lambda: setattr(things[0], "number", 2),
        "more": lambda: things.append(Thing(3)),
        "another object that is equal": lambda: things.__setitem__(0, Thing(2)),
    }
    for change in changes.values():
        writer = Writer()
        writer.add(things)
        packed_over(writer, things[0])
        assert not writer.has_moved()
        change()
        assert writer.has_moved()


def test_what_changes_before_the_first_value() -> None:
    array = np.zeros(10_000)
    writer = Writer()
    writer.add(array)
    array[-1] = 1
    assert writer.dumps(array) is None
    assert writer.unsteady


def test_buffers_of_a_part_are_a_snapshot_and_can_be_used_again() -> None:
    array = np.zeros(10_000)
    writer = Writer()
    writer.add(array)
    array[:] = 1
    for _ in range(2):
        arrived = Reader().add(writer.parts[0], copied=True)
        assert not arrived.any()
        arrived[:] = 2


def test_what_cannot_be_pickled_leaves_the_writer_whole() -> None:
    thing = Thing(1)
    writer = Writer()
    writer.add([thing])
    with pytest.raises(TypeError, match="pickle"):
        writer.dumps([thing, threading.Lock()])
    reader = Reader()
    (arrived,) = reader.add(writer.parts[0])
    assert reader.load(packed_over(writer, [thing]))[0] is arrived
