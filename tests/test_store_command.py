"""``python -m primitive_jobs store``: it shows what is there, and runs nothing."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from primitive_jobs import JobPool, SweepStore
from primitive_jobs.__main__ import main

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def simulate(T: float, size: int = 4, status: str = "x") -> Any:  # noqa: N803 - as physicists do
    if size == 0:
        raise ValueError("no lattice\nat all")
    if size < 0:
        return complex(T, size)
    return {"m": T * size, "steps": [1, 2], "nan": float("nan")}


@pytest.fixture
def path(pool: JobPool, tmp_path: Path) -> Path:
    file = tmp_path / "ising.db"
    with SweepStore(file) as store:
        function = store.function(simulate, version=1)
        for point in [(2.5,), (3.0, 0), (1.0, -1)]:
            for _ in function.sweep([point], pool):
                pass
        store.function(abs, version=1).sweep([-3], pool).results()
    return file


def shown(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    assert main(["store", *map(str, arguments)]) == status
    told = capsys.readouterr()
    assert bool(told.err) == bool(status), told.err
    return told.err if status else told.out


def test_list(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, path, "list").splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["key", "function", "arguments", "status", "result", "took", "ended"]
    assert "T=2.5, size=4" in lines[1]
    assert '{"m":10.0' in lines[1]
    assert "ERROR      ValueError: no lattice " in lines[2]
    assert "(pickled)" in lines[3]
    assert lines[4].split()[1:5] == ["abs", "0=-3", "DONE", "3"]
    assert len(shown(capsys, path, "list", "--name", "abs").splitlines()) == 2
    assert len(shown(capsys, path, "list", "--status", "ERROR").splitlines()) == 2


def test_list_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(shown(capsys, path, "list", "--json"), parse_constant=pytest.fail)
    assert [row["status"] for row in rows] == ["DONE", "ERROR", "DONE", "DONE"]
    assert rows[0]["result"] == {"m": 10.0, "steps": [1, 2], "nan": None}
    assert rows[2]["result"] is None
    assert rows[0]["arguments"] == {"T": 2.5, "size": 4, "status": "x"}
    assert json.loads(shown(capsys, path, "list", "--json", "--name", "none")) == []


def test_show(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(SweepStore(path).rows())
    text = shown(capsys, path, "show", rows[1].key[:10])
    assert "error_text:   no lattice\nat all" in text
    assert "\ntraceback:\nTraceback (most recent call last):" in text
    facts = json.loads(shown(capsys, path, "show", "--json", rows[0].key))
    assert facts["key"] == rows[0].key
    assert facts["version"] == "1"
    assert "no row of which the key begins" in shown(capsys, path, "show", "xyz", status=1)
    assert "give more of it" in shown(capsys, path, "show", "", status=1)


def test_export(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = list(csv.DictReader(io.StringIO(shown(capsys, path, "export", "-"))))
    assert table[0]["T"] == "2.5"
    assert table[0]["m"] == "10.0"
    assert table[0]["status"] == "x"  # the argument
    assert table[0]["row.status"] == "DONE"
    assert json.loads(table[0]["steps"]) == [1, 2]
    assert table[1]["error"] == "ValueError: no lattice"
    out = tmp_path / "out.csv"
    assert shown(capsys, path, "export", out, "--name", "abs") == f"1 rows written to {out}\n"
    assert len(out.read_text().splitlines()) == 2
    out = tmp_path / "out.json"
    shown(capsys, path, "export", out)
    assert len(json.loads(out.read_text())) == 4
    assert "is to end in" in shown(capsys, path, "export", tmp_path / "out.txt", status=2)


def test_forget(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "say which" in shown(capsys, path, "forget", status=2)
    key = next(SweepStore(path).rows()).key
    assert "say which" in shown(capsys, path, "forget", "--name", "abs", "--key", key, status=2)
    assert shown(capsys, path, "forget", "--key", key[:12]) == "1 row deleted\n"
    assert shown(capsys, path, "forget", "--name", "simulate") == "2 rows deleted\n"
    assert [row.name for row in SweepStore(path).rows()] == ["abs"]


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.db"
    for action in (["list"], ["show", "1"], ["export", "-"], ["forget", "--name", "f"]):
        assert "No such file" in shown(capsys, path, *action, status=1)
    assert not path.exists()


def test_pandas(path: Path) -> None:
    pytest.importorskip("pandas")
    with SweepStore(path) as store:
        frame = store.to_pandas("simulate")
        assert list(frame["T"]) == [2.5, 3.0, 1.0]
        assert frame["m"].iloc[0] == 10.0
        assert list(frame["row.status"]) == ["DONE", "ERROR", "DONE"]
        assert str(frame["ended"].dtype).startswith("datetime64[")
        assert frame["result"].isna().all()
        assert frame.index.name == "key"
        assert store.to_pandas("simulate", load=True)["result"].iloc[2] == complex(1.0, -1)
        assert store.to_pandas("none").empty
