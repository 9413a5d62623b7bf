"""`Line`: what is said arrives once, in the order of its lane, and short overtakes long."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

pytest.importorskip("distributed")

from primitive_jobs.cluster.line import PIECE, URGENT, WINDOW, Frame, Line


class Comm:
    """One end of a connection in this process; slow, if there is a pause for each message."""

    def __init__(self, pause: float = 0.0) -> None:
        self.messages: asyncio.Queue[list[Frame] | None] = asyncio.Queue()
        self.other: Comm
        self.closed = False
        self.pause = pause
        self.largest = 0

    async def write(self, message: list[Frame]) -> None:
        if self.closed or self.other.closed:
            raise OSError
        sizes = [len(frame.get("piece") or frame.get("data") or b"") for frame in message]
        self.largest = max(self.largest, sum(sizes))
        await asyncio.sleep(self.pause)
        self.other.messages.put_nowait(message)

    async def read(self) -> list[Frame]:
        message = await self.messages.get()
        if message is None:
            raise OSError
        return message

    def abort(self) -> None:
        self.closed = True
        self.messages.put_nowait(None)
        self.other.messages.put_nowait(None)

    async def close(self) -> None:
        self.abort()


def pair(pause: float = 0.0) -> tuple[Comm, Comm]:
    one, two = Comm(pause), Comm(pause)
    one.other, two.other = two, one
    return one, two


async def carried(say: Any, *, pause: float = 0.0, count: int) -> tuple[list[Frame], Comm]:
    """What arrives of what ``say`` says on a line, at least so many frames."""
    one, two = pair(pause)
    heard: list[Frame] = []
    complete = asyncio.Event()

    def hear(frames: list[Frame]) -> None:
        heard.extend(frames)
        if len(heard) >= count:
            complete.set()

    lines = [Line(one, lambda frames: None), Line(two, hear)]
    tasks = [asyncio.ensure_future(line.run()) for line in lines]
    say(lines[0])
    await asyncio.wait_for(complete.wait(), 30)
    lines[0].close()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    return heard, one


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_data_of_any_length(size: int) -> None:
    data = random.Random(size).randbytes(size)

    def say(line: Line) -> None:
        line.send({"frame": "a", "n": 1}, 3, data)
        line.send({"frame": "b"}, 3)

    heard, comm = asyncio.run(carried(say, count=2))
    assert [frame["frame"] for frame in heard] == ["a", "b"]
    assert bytes(heard[0]["data"]) == data
    assert heard[0]["n"] == 1
    assert comm.largest <= PIECE


def test_each_lane_keeps_its_order_and_none_waits_for_another() -> None:
    rng = random.Random(1)
    said: dict[int, list[tuple[int, bytes]]] = {lane: [] for lane in range(1, 6)}

    def say(line: Line) -> None:
        for number in range(200):
            lane = rng.randint(1, 5)
            data = rng.randbytes(
                rng.choice([0, 10, 1000, PIECE, 2 * PIECE + 7]) if number % 9 == 0 else 5
            )
            said[lane].append((number, data))
            line.send({"frame": "x", "lane_number": lane, "number": number}, lane, data)

    heard, comm = asyncio.run(carried(say, count=200))
    for lane, told in said.items():
        got = [(f["number"], bytes(f["data"])) for f in heard if f["lane_number"] == lane]
        assert got == told
    assert comm.largest < 2 * PIECE


def test_what_is_urgent_overtakes_a_gigabyte() -> None:
    """At a millisecond for each message, the whole would take a second."""
    data = bytes(1 << 30)

    def say(line: Line) -> None:
        line.send({"frame": "result"}, 1, data)
        asyncio.get_running_loop().call_later(0.1, line.send, {"frame": "kill"}, URGENT)
        asyncio.get_running_loop().call_later(0.1, line.send, {"frame": "small"}, 2)

    heard, _ = asyncio.run(carried(say, pause=0.001, count=3))
    assert [frame["frame"] for frame in heard] == ["kill", "small", "result"]
    assert len(heard[-1]["data"]) == len(data)


def test_many_threads_may_speak() -> None:
    def say(line: Line) -> None:
        def speak(lane: int) -> None:
            for number in range(500):
                line.send({"frame": "x", "of": lane, "number": number}, lane)

        threads = [threading.Thread(target=speak, args=(lane,)) for lane in range(1, 5)]
        for thread in threads:
            thread.start()

    heard, _ = asyncio.run(carried(say, count=2000))
    for lane in range(1, 5):
        assert [f["number"] for f in heard if f["of"] == lane] == list(range(500))


def test_the_end_of_the_other_side_ends_it() -> None:
    async def run() -> None:
        one, two = pair()
        line = Line(one, lambda frames: None)
        task = asyncio.ensure_future(line.run())
        await asyncio.sleep(0)
        two.abort()
        await asyncio.wait_for(task, 10)
        assert one.closed
        line.send({"frame": "late"})  # nobody hears it, and nothing happens

    asyncio.run(run())


def test_the_end_comes_after_what_was_said() -> None:
    """Also where more was said than may be on its way at a time."""

    async def main() -> None:
        one, two = pair()
        heard: list[Frame] = []
        lines = [Line(one, lambda frames: None), Line(two, heard.extend)]
        tasks = [asyncio.ensure_future(lines[0].run())]
        lines[0].send({"frame": "long"}, 1, bytes(3 * WINDOW))
        lines[0].close()
        await asyncio.sleep(0.1)  # the other end is slow
        tasks.append(asyncio.ensure_future(lines[1].run()))
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert [len(frame["data"]) for frame in heard] == [3 * WINDOW]

    asyncio.run(main())


def test_a_piece_is_a_sign_of_life() -> None:
    async def main() -> None:
        one, two = pair()
        heard: list[Frame] = []
        line = Line(two, heard.extend)
        began = line.heard
        task = asyncio.ensure_future(line.run())
        await one.write([{"frame": None, "lane": 1, "size": 10, "piece": b"12345"}])
        await asyncio.sleep(0.01)
        assert line.heard > began
        assert not heard
        one.abort()
        await asyncio.wait_for(task, 10)

    asyncio.run(main())


def test_what_cannot_be_taken_in_is_logged_and_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        one, two = pair()

        def hear(frames: list[Frame]) -> None:
            raise ValueError("nonsense")

        line = Line(one, hear)
        task = asyncio.ensure_future(line.run())
        await two.write([{"frame": "x"}])
        await asyncio.wait_for(task, 10)
        assert one.closed

    asyncio.run(run())
    (record,) = caplog.records
    assert "could not be taken in" in record.message
    assert record.exc_info is not None
    assert "nonsense" in str(record.exc_info[1])
