"""What a timeline looks like: lanes, marks and words; as SVG, as a page, as a trace. No process."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from primitive_jobs import Timeline
from primitive_jobs.insight.ends import LOOKS
from primitive_jobs.insight.lanes import lanes_of, marks_of
from primitive_jobs.insight.memory import levels_of
from primitive_jobs.insight.page import page
from primitive_jobs.insight.svg import columns, picture
from primitive_jobs.insight.trace_events import trace
from primitive_jobs.insight.words import clipped, printable, share, size, span, ticks
from primitive_jobs.snapshots import Attempt, AttemptTotal, MemorySample, PoolAttempts

BEGIN = 1_700_000_000.0
HOSTILE = "<script>alert('x')</script>]]>&\"\x00\x1b[31m\ud800\u2028 --> </title>"


def attempt(began: float, seconds: float, pid: int = 7, **facts: Any) -> Attempt:
    shown: dict[str, Any] = {"name": "f", "end": "returned", **facts}
    return Attempt(began=BEGIN + began, ended=BEGIN + began + seconds, pid=pid, **shown)


def timeline(*attempts: Attempt, left_out: int = 0, memory: Any = ()) -> Timeline:
    totals: dict[Any, AttemptTotal] = {}
    for one in attempts:
        count, seconds = totals.get(one.end, (0, 0.0))
        totals[one.end] = AttemptTotal(count + 1, seconds + one.seconds)
    found = PoolAttempts(BEGIN + 100, list(attempts), left_out, totals, list(memory))
    return Timeline("JobPool(max_workers=2)", found)


def every_end() -> Timeline:
    ends = list(LOOKS)
    attempts = [
        attempt(n, 0.9, end=end, name=f"job {n}", pid=10 + n % 2, reason=f"why {n}")
        for n, end in enumerate(ends)
    ]
    attempts.append(attempt(20, 1, node="tcp://other:1", attempt=2, memory=300_000_000))
    return timeline(*attempts, left_out=1234)


def many(count: int, lanes: int, seconds: float = 1.0) -> Timeline:
    ends = ["returned"] * 50 + ["raised", "died", "cancelled"]
    return timeline(
        *(
            attempt(
                n // lanes * 1.01 * seconds,
                seconds,
                pid=n % lanes + 1,
                name=f"simulate(T={n % 97})",
                end=ends[n % len(ends)],
                memory=10**8,
            )
            for n in range(count)
        )
    )


# --- lanes and marks -----------------------------------------------------------------------------


def test_a_lane_for_each_worker_that_is_there_at_a_time() -> None:
    attempts = [
        attempt(0, 2, pid=1),
        attempt(0, 9, pid=2),
        attempt(2, 1, pid=1),
        attempt(3, 1, pid=3),  # in the place of 1
        attempt(3.5, 1, pid=4),  # 3 is there
        attempt(5, 1, pid=5),  # in the place of 4, which ended last
        attempt(5, 1, pid=6),
    ]
    lanes = lanes_of(attempts)
    assert [lane.pids for lane in lanes] == [(1, 3, 6), (2,), (4, 5)]
    assert [len(lane.attempts) for lane in lanes] == [4, 1, 2]


def test_lanes_of_nodes() -> None:
    """A worker of another node goes on in nobody's lane, though it may have the same pid."""
    attempts = [
        attempt(0, 1, pid=1, node="b"),
        attempt(1, 1, pid=1, node="a"),
        attempt(2, 1, pid=2, node="b"),
        attempt(3, 1, pid=1),
    ]
    lanes = lanes_of(attempts)
    assert [(lane.node, lane.pids) for lane in lanes] == [(None, (1,)), ("a", (1,)), ("b", (1, 2))]


def test_as_many_lanes_as_workers_at_a_time_however_many_were_killed() -> None:
    attempts = [attempt(n, 0.9, pid=2 * n + k + 1) for n in range(5000) for k in range(2)]
    assert len(lanes_of(attempts)) == 2


def test_what_is_near_is_merged_by_its_end() -> None:
    attempts = [
        attempt(0, 0.5),
        attempt(0.6, 0.3),
        attempt(1, 0.5, end="died"),
        attempt(1.6, 0.4),
        attempt(2, 5),  # wide: alone
        attempt(7.1, 0.2),
        attempt(8.5, 0.2),  # too far
    ]
    marks = marks_of(attempts, lambda moment: moment - BEGIN)
    told = [(round(m.left, 2), round(m.right, 2), len(m.attempts)) for m in marks["returned"]]
    assert told == [(0, 2, 3), (2, 7, 1), (7.1, 7.3, 1), (8.5, 8.7, 1)]
    assert [len(mark.attempts) for mark in marks["died"]] == [1]
    assert marks["raised"] == []


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (12e-6, "12 us"),
        (0.01234, "12.3 ms"),
        (0.9996, "1 s"),
        (3.4159, "3.42 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (4800, "1 h 20 min"),
        (4_000_000, "1,111 h 06 min"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_shares_and_sizes() -> None:
    told = [share(part, 10_000) for part in (0, 1, 9_999, 10_000, 1234)]
    assert told == ["0 %", "<0.1 %", ">99.9 %", "100 %", "12.3 %"]
    assert share(0, 0) == "0 %"
    sizes = [size(count) for count in (0, 999, 999.6, 312_400_000, 17e9, 4e15)]
    assert sizes == ["0 B", "999 B", "1 kB", "312 MB", "17 GB", "4e+03 TB"]
    assert clipped("abc", 3) == "abc"
    assert clipped("abcd", 3) == "ab…"


@pytest.mark.parametrize("power", range(-6, 8))
@pytest.mark.parametrize("factor", [1, 1.7, 3.3, 6, 9.9])
def test_ticks(power: int, factor: float) -> None:
    length = factor * 10.0**power
    found = ticks(length, 9)
    assert 2 <= len(found) <= 10
    assert found[0][0] == 0
    assert found[-1][0] <= length * (1 + 1e-9)
    assert len({text for _, text in found}) == len(found), found


def test_texts_of_ticks() -> None:
    assert [text for _, text in ticks(4e-4, 5)][:2] == ["0 us", "100 us"]
    assert [text for _, text in ticks(1.4, 8)][-2:] == ["1.2 s", "1.4 s"]
    assert [text for _, text in ticks(300, 6)][:3] == ["0 s", "1:00 min", "2:00 min"]
    assert [text for _, text in ticks(7200, 5)][-2:] == ["1:30 h", "2:00 h"]


# --- memory --------------------------------------------------------------------------------------


def test_levels_of_memory() -> None:
    attempts = [
        attempt(0, 4, pid=1),  # measured
        attempt(1, 2, pid=2, memory=100),  # its peak alone is known
        attempt(2, 2, pid=3),  # nothing is
        attempt(6, 1, pid=1),
    ]
    samples = [MemorySample(BEGIN + at, 1, held) for at, held in ((0.5, 10), (3.5, 30), (5, 99))]
    levels = [(at - BEGIN, held) for at, held in levels_of(attempts, samples)]
    assert levels == [(0.5, 10), (1, 110), (3, 10), (3.5, 30), (4, 0)]
    assert levels_of([attempt(0, 1)], []) == []


def test_columns_keep_the_peaks() -> None:
    levels = [(0.0, 5), (1.0, 100), (1.001, 7), (5.0, 7), (5.001, 50), (5.002, 0)]
    assert [*columns(levels, 0.0, 10.0, 10)] == [(0, 5), (1, 100), (2, 7), (5, 50), (6, 0)]
    assert [*columns([(0.0, 5), (10.0, 0)], 0.0, 10.0, 10)] == [(0, 5)]


# --- SVG -----------------------------------------------------------------------------------------


def texts(svg: str) -> str:
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return "\n".join("".join(element.itertext()) for element in root.iter() if element.text)


def assert_self_contained(text: str) -> None:
    links = re.findall(r"https?://[^\s\"'<)]*|url\([^)]*\)|\b(?:src|href)=\S+", text)
    assert {*links} <= {"http://www.w3.org/2000/svg", "url(#pjt-hatch)"}
    assert "@import" not in text


def test_the_picture_says_what_became_of_all() -> None:
    svg = picture(every_end())
    told = texts(svg)
    for end, look in LOOKS.items():
        assert f"{look.words} 1: 900 ms" in told or end == "returned"
        assert f'class="pjt-{end}"' in svg
    assert "returned 2: 1.9 s" in told
    for n, words in ((2, "cancelled: why 2"), (3, "why 3"), (5, "worker died: why 5")):
        assert f"job {n} on {10 + n % 2}: {words}" in told
    assert "1,234 earlier attempts are left out: a pool keeps the last 7" in told
    assert "tcp://other:1" in told
    assert "memory of the 1 attempts of which it is known" in told
    assert "drawn as one" not in told
    assert_self_contained(svg)


def test_it_has_colours_for_light_and_dark() -> None:
    svg = picture(every_end())
    light, dark = svg.split("@media(prefers-color-scheme:dark)")
    for end, look in LOOKS.items():
        assert f".pjt-{end}{{fill:{look.light}}}" in light
        assert f".pjt-{end}{{fill:{look.dark}}}" in dark.split("</style>")[0]
    assert len({look.light for look in LOOKS.values()}) == len(LOOKS)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_on_the_colours() -> None:
    for look in LOOKS.values():
        assert 1.05 / (luminance(look.light) + 0.05) > 4, look
        assert (luminance(look.dark) + 0.05) / (luminance("#0d1117") + 0.05) > 7, look


def test_an_empty_picture() -> None:
    assert "no attempts yet" in texts(picture(timeline()))
    assert "no attempts yet" in page(timeline())
    assert json.loads(trace(timeline()))["traceEvents"] == []


def test_one_of_no_length() -> None:
    svg = picture(timeline(attempt(0, 0.0)))
    assert "nan" not in svg
    assert "1 attempt in 1 lane" in texts(svg)


def test_what_is_merged_has_its_count() -> None:
    svg = picture(timeline(*(attempt(n * 0.001, 0.0005) for n in range(2000)), attempt(2, 2)))
    told = texts(svg)
    assert "2,000 ×" in told  # noqa: RUF001
    assert "2,000 attempts, 1 s: returned" in told
    assert "drawn as one shape" in told
    assert len(svg) < 10_000


@pytest.mark.parametrize(
    ("lanes", "seconds"), [(2, 0.001), (64, 1.0), (200, 1.0)], ids=["2", "64", "200"]
)
def test_20000_attempts(lanes: int, seconds: float) -> None:
    found = many(20_000, lanes, seconds)
    svg = picture(found)
    ET.fromstring(svg)
    assert len(svg) < 2_000_000
    if lanes == 64:
        assert len(page(found)) < 4_000_000
        check_trace(trace(found))


# --- the page ------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects what is in a page; fails where an element is not closed."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: dict[str, list[str]] = defaultdict(list)
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.found[self.open[-1] if self.open else ""].append(data)


def data_of(text: str) -> dict[str, Any]:
    data = Reader(text).found["script"][0]
    found: dict[str, Any] = json.loads(data)
    return found


def test_the_page_has_all_that_its_script_needs() -> None:
    found = every_end()
    text = page(found)
    assert_self_contained(text)
    assert "@@" not in text
    data = data_of(text)
    assert data["length"] == 21_000_000
    assert [end[0] for end in data["ends"]] == list(LOOKS)
    rows = [row for lane in data["lanes"] for row in lane["attempts"]]
    assert len(rows) == len(found.attempts)
    name, end, began, took, *more = data["lanes"][0]["attempts"][1]
    assert (data["names"][name], data["ends"][end][0]) == ("job 2", "cancelled")
    assert (began, took, more) == (2_000_000, 900_000, ["why 2"])
    assert data["lanes"][2]["node"] == "tcp://other:1"
    assert data["lanes"][2]["attempts"][0][4] == "attempt 2; 300 MB"
    cells = Reader(text).found["td"]
    assert len(cells) == 5 * 5
    assert "worker died: why 5" in cells
    assert "<noscript><svg " in text


def test_a_long_table_says_what_is_missing() -> None:
    found = timeline(*(attempt(n, 0.5, end="raised", name=f"job {n}") for n in range(600)))
    reader = Reader(page(found))
    assert reader.found["h2"] == ["No result, the last 500 of 600"]
    assert len(reader.found["td"]) == 5 * 500
    assert "job 99" not in reader.found["td"]


def test_hostile_names_are_text() -> None:
    facts: dict[str, Any] = {"name": HOSTILE, "reason": HOSTILE, "node": HOSTILE}
    found = timeline(attempt(0, 1, end="died", **facts), attempt(2, 1, **facts))
    svg, text, traced = picture(found), page(found), trace(found)
    clean = printable(HOSTILE)
    for form in (svg, text, traced):
        form.encode("utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800-\udfff\u2028]", form)
    assert "<script" not in svg
    assert clean in "".join(ET.fromstring(svg).itertext())
    assert text.count("<script") == 2
    assert data_of(text)["names"] == [clean]
    assert [e["name"] for e in check_trace(traced) if e["ph"] == "X"] == [clean] * 2
    picture(timeline(attempt(0, 1, name="")))
    assert "(no name)" in trace(timeline(attempt(0, 1, name="")))


# --- the trace -----------------------------------------------------------------------------------


def check_trace(text: str) -> list[dict[str, Any]]:
    """What the format asks for; return the events."""
    whole = json.loads(text, parse_constant=pytest.fail)
    assert set(whole) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert whole["displayTimeUnit"] in ("ms", "ns")
    events: list[dict[str, Any]] = whole["traceEvents"]
    named: dict[str, set[tuple[int, int]]] = defaultdict(set)
    ends: dict[tuple[int, int], int] = defaultdict(int)
    last = 0
    for event in events:
        place = event["pid"], event["tid"]
        assert all(type(number) is int for number in place)
        assert type(event["name"]) is str
        assert event["name"]
        assert type(event["ts"]) is int
        assert event["ts"] >= last, "sorted"
        last = event["ts"]
        match event["ph"]:
            case "M":
                known = {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}
                assert event["name"] in known
                named[event["name"]].add(place)
                (value,) = event["args"].values()
                assert isinstance(value, str if event["name"].endswith("name") else int)
            case "X":
                assert event["dur"] >= 0
                assert event["cat"] in LOOKS
                assert place in named["thread_name"]
                assert (event["pid"], 0) in named["process_name"]
                assert event["ts"] >= ends[place], "no two at a time in a lane"
                ends[place] = event["ts"] + event["dur"]
            case "C":
                assert [type(value) for value in event["args"].values()] == [int]
            case other:
                pytest.fail(other)
    assert named["thread_name"] == named["thread_sort_index"]
    return events


def test_a_trace() -> None:
    events = check_trace(trace(every_end()))
    names = [e["args"]["name"] for e in events if e["name"].endswith("_name")]
    assert names == [
        "JobPool(max_workers=2): this machine",
        "JobPool(max_workers=2): tcp://other:1",
        "worker 10",
        "worker 11",
        "worker 7",
    ]
    slices = [event for event in events if event["ph"] == "X"]
    assert [event["cat"] for event in slices] == [*LOOKS, "returned"]
    died = slices[5]
    assert (died["name"], died["ts"], died["dur"]) == ("job 5", 5_000_000, 900_000)
    assert died["args"] == {"end": "died", "pid": 11, "attempt": 1, "reason": "why 5"}
    assert slices[-1]["args"]["memory_bytes"] == 300_000_000
    assert [(e["ts"], e["args"]["bytes"]) for e in events if e["ph"] == "C"] == [
        (20_000_000, 300_000_000),
        (21_000_000, 0),
    ]
    facts = json.loads(trace(every_end()))["otherData"]
    assert facts["left_out"] == 1234
    assert facts["attempts"]["died"] == 1
    assert facts["worker_seconds"]["returned"] == pytest.approx(1.9)
    assert facts["began_at"] == BEGIN


def test_attempts_that_seem_to_overlap_do_not_in_a_trace() -> None:
    found = timeline(attempt(0, 1.00001), attempt(1, 1), attempt(2, 1, end="running"))
    events = [event for event in check_trace(trace(found)) if event["ph"] == "X"]
    assert [event["dur"] for event in events] == [1e6, 1e6, 1e6]


def test_a_worker_that_took_a_place_is_in_the_name_of_the_lane() -> None:
    attempts = [attempt(n, 0.5, pid=n + 1) for n in range(5)]
    events = check_trace(trace(timeline(*attempts)))
    (name,) = (event["args"]["name"] for event in events if event["name"] == "thread_name")
    assert name == "workers 1, 2, 3 and 2 more"
    assert [e["args"]["pid"] for e in events if e["ph"] == "X"] == [1, 2, 3, 4, 5]
    for earlier, later in pairwise(e for e in events if e["ph"] == "X"):
        assert earlier["tid"] == later["tid"]
