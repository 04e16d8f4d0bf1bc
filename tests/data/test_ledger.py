"""Ledgers: the order of events, each kind of file, and each fault with its row and column."""

import gzip
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tljax.data import ledger
from tljax.data.ledger import Ledger
from tljax.errors import ConfigError, DataError

USERS, WHEN, ITEMS, PRICES = [2, 1, 2, 10, 1], [30, 5, 10, 1, 5], ["b", "a", "é", "a", "c"], [1.5, 2.0, 0.25, 8.0, 3.0]
COLUMNS = {"user": USERS, "when": WHEN, "item": ITEMS, "price": PRICES}
LINES = list(zip(USERS, WHEN, ITEMS, PRICES, strict=True))
CSV = "user,when,item,price\n" + "".join(f"{u},{t},{i},{p}\n" for u, t, i, p in LINES)
JSONL = "".join(json.dumps(dict(zip(COLUMNS, line, strict=True))) + "\n" for line in LINES)
TXT = "".join(" \t".join(map(str, line)) + "\n" for line in LINES)


def npz(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.asarray(column) for name, column in columns.items()})
    return buffer.getvalue()


def parquet(**columns: Any) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def read(folder: Path, name: str, content: "bytes | str", entity: str = "user", when: str = "when",
         columns: Sequence[str] = ("item", "price"), **options: Any) -> Ledger:  # fmt: skip
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return ledger.read(str(folder / name), entity, when, columns, **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV),
        ("a.CSV", "\ufeff" + CSV.replace("\n", "\r\n") + "\n\n"),
        ("a.csv.gz", gzip.compress(CSV.encode())),
        ("a.tsv", CSV.replace(",", "\t")),
        ("a.jsonl", JSONL),
        ("a.jsonl.gz", gzip.compress(JSONL.encode())),
        ("a.json", json.dumps([dict(zip(COLUMNS, line, strict=True)) for line in LINES])),
        ("a.parquet", parquet(**COLUMNS)),
        ("a.npz", npz(**COLUMNS)),
        ("a.npz", npz(**{**COLUMNS, "user": np.array(USERS, np.uint16), "when": np.array(WHEN, np.uint32)})),
        ("a.txt", TXT),
        ("a.txt.gz", gzip.compress(("\n" + TXT.replace("\n", " \r\n")).encode())),
    ],
    ids=range(12),
)
def test_kinds(tmp_path: Path, name: str, content: "bytes | str") -> None:
    order = list(COLUMNS) if ".txt" in name else ["item", "price"]
    found = read(tmp_path, name, content, columns=order, numbers=["price"])
    assert found.entities.tolist() == [1, 2, 10]  # by number, not by text
    assert found.offsets.tolist() == [0, 2, 4, 5]
    assert found.rows.tolist() == [1, 4, 2, 0, 3]
    assert {name: column.tolist() for name, column in found.columns.items()} == {
        "user": [1, 1, 2, 2, 10],
        "when": [5.0, 5.0, 10.0, 30.0, 1.0],
        "item": ["a", "c", "é", "b", "a"],
        "price": [2.0, 3.0, 0.25, 1.5, 8.0],
    }
    assert [found.rows.dtype, found.offsets.dtype, found.times.dtype] == [np.int64, np.int64, np.float64]
    assert found.times is found.columns["when"]
    assert found.columns["price"].dtype == np.float64
    assert (len(found), found.name, found.entity, found.time) == (5, str(tmp_path / name), "user", "when")


@pytest.mark.parametrize(("name", "content"), [("a.csv", CSV), ("a.txt", TXT), ("a.npz", npz(**COLUMNS))])
def test_without_a_time_the_file_is_in_its_order(tmp_path: Path, name: str, content: "bytes | str") -> None:
    found = read(tmp_path, name, content, when="", columns=list(COLUMNS))
    assert found.rows.tolist() == found.times.tolist() == [1, 4, 0, 2, 3]
    assert found.columns["when"].tolist() == [5, 5, 30, 10, 1]


@pytest.mark.parametrize("seed", range(20))
def test_order_by_entity_time_and_row(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 300))
    who = rng.integers(0, 20, n) if seed % 2 else rng.choice(["x", "Y", "zz", "é", "12", "7"], n)
    when = rng.integers(-9, 9, n) / 4
    found = read(tmp_path, "a.npz", npz(user=who, when=when, x=np.arange(n)), columns=["x"])
    wanted = sorted(range(n), key=lambda i: (who[i], when[i], i))
    assert found.rows.tolist() == found.columns["x"].tolist() == wanted
    assert found.entities.tolist() == sorted(set(who.tolist()))
    for i, one in enumerate(found.entities):
        events = slice(found.offsets[i], found.offsets[i + 1])
        assert set(found.columns["user"][events].tolist()) == {one}
        assert sorted(found.rows[events].tolist()) == np.flatnonzero(who == one).tolist()
    assert found.offsets[-1] == n


def test_columns_are_read_once_and_others_not(tmp_path: Path) -> None:
    found = read(tmp_path, "a.csv", CSV, columns=["item", "when", "item", "user"])
    assert list(found.columns) == ["user", "when", "item"]
    assert list(read(tmp_path, "c.npz", npz(user=[1], when=[2], deep=[[1, 2]]), columns=[]).columns) == ["user", "when"]


ROWS: list[tuple[str, str, "bytes | str", str, str]] = [
    ("ragged", "a.csv", "user,when,price\n1,2\n1,2,3\n", "row 2", "2 fields, expected 3"),
    ("no time", "a.csv", "user,when,price\n1,2,3\n1,,3\n", "row 3, column 'when'", "the time is missing"),
    ("NaN time", "a.csv", "user,when,price\n1,NaN,3\n", "row 2, column 'when'", "the time is missing"),
    ("infinite time", "a.csv", "user,when,price\n1,-inf,3\n", "row 2, column 'when'", "found -inf"),
    ("no date", "a.csv", "user,when,price\n1,noon,3\n", "row 2, column 'when'", "found 'noon'"),
    ("no day", "a.csv", "user,when,price\n1,2024-02-30,3\n", "row 2, column 'when'", "found '2024-02-30'"),
    ("mixed", "a.csv", "user,when,price\n1,2024-01-02,3\n1,20240103,3\n", "row 3, column 'when'", "among dates"),
    ("milliseconds", "a.csv", "user,when,price\n1,1700000000000,3\n", "row 2, column 'when'", "divided by 1000"),
    ("no entity", "a.csv", "user,when,price\n ,2,3\n", "row 2, column 'user'", "the entity is missing"),
    ("NaN entity", "a.csv", "user,when,price\nnan,2,3\n", "row 2, column 'user'", "the entity is missing"),
    ("text", "a.csv", "user,when,price\n1,2,\n1,2,free\n", "row 3, column 'price'", "expected a number"),
    ("infinite", "a.csv", "user,when,price\n1,2,inf\n", "row 2, column 'price'", "found inf, expected a finite"),
    ("lines", "a.csv", 'user,when,price\n"a\nb",2,3\nc,2,x\n', "row 3 (line 4), column 'price'", "found 'x'"),
    ("JSON", "a.jsonl", '{"user": 1, "when": 2, "price": 1}\n\n[]\n', "line 3", "found []"),
    ("no key", "a.jsonl", '{"user": 1, "when": 2, "price": 1}\n{"when": 2}\n', "line 2, column 'user'", "missing"),
    ("null", "a.jsonl", '{"user": "a", "when": null, "price": 1}\n', "line 1, column 'when'", "missing"),
    ("nested", "a.jsonl", '{"user": [1], "when": 2, "price": 1}\n', "line 1, column 'user'", "found [1], expected"),
    ("object", "a.jsonl", '{"user": 1, "when": 2, "price": {}}\n', "line 1, column 'price'", "found {}, expected"),
    ("fields", "a.txt", "1 2 3\n1 2\n", "line 2", "2 fields, expected 3 (user, when, price)"),
    ("npz time", "a.npz", npz(user=[1, 1], when=[2, np.nan], price=[1, 1]), "index 1, column 'when'", "missing"),
    ("npz NaT", "a.npz", npz(user=[1], when=np.array(["NaT"], "M8[s]"), price=[1]), "index 0, column 'when'", ""),
    ("npz who", "a.npz", npz(user=[1, np.nan], when=[2, 2], price=[1, 1]), "index 1, column 'user'", "missing"),
    ("npz text", "a.npz", npz(user=[1], when=[2], price=["x"]), "index 0, column 'price'", "found 'x'"),
    ("gap", "a.parquet", parquet(user=["a", None], when=[2, 2], price=[1, 1]), "row 2, column 'user'", "missing"),
]  # fmt: skip


@pytest.mark.parametrize(("label", "name", "content", "where", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_unusable_rows(tmp_path: Path, label: str, name: str, content: "bytes | str", where: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content, columns=["user", "when", "price"], numbers=["price"])
    assert caught.value.where == f"{tmp_path / name}, {where}"
    assert words in caught.value.found
    assert caught.value.details == ()


@pytest.mark.parametrize(("bad", "listed"), [(3, 3), (50, 50), (51, 51), (400, 51)])
def test_all_unusable_rows_at_once(tmp_path: Path, bad: int, listed: int) -> None:
    rows = [f"{i},{'' if i < bad - 1 else i},1\n" for i in range(bad + 5)]
    with pytest.raises(DataError, match=f"the first of {bad} faults") as caught:
        read(tmp_path, "a.csv", "user,when,price\n" + "".join(rows) + "1,2\n", columns=["price"])
    assert len(caught.value.details) == listed
    assert [line.split(": ")[0].rpartition("row ")[2].split(",")[0] for line in caught.value.details[:2]] == ["2", "3"]
    assert caught.value.details[-1].endswith(
        f"and {bad - 50} more" if bad > 50 else "2 fields, expected 3 as in the header"
    )


FILES: list[tuple[str, str, "bytes | str", list[str]]] = [
    ("csv", "a.csv", "usr,when,price\n1,2,3\n", ["no column 'user'", "'usr', 'when', 'price'", "you mean 'usr'"]),
    ("npz", "a.npz", npz(User=[1], when=[1], price=[1]), ["no column 'user'", "did you mean 'User'"]),
    ("parquet", "a.parquet", parquet(user=[1], when=[1], prices=[1]), ["no column 'price'", "mean 'prices'"]),
    ("jsonl", "a.jsonl", '{"user": 1, "whem": 2, "price": 3}\n', ["no column 'when'", "did you mean 'whem'"]),
    ("semicolons", "a.csv", "user;when;price\n1;2;3\n", ["separated by ';'"]),
    ("empty", "a.csv", "", ["the file is empty"]),
    ("header", "a.csv", "user,when,price\n", ["found 0 events"]),
    ("no lines", "a.txt", "\n \n", ["found 0 events"]),
    ("no arrays", "a.npz", npz(user=[], when=[], price=[]), ["found 0 events"]),
    ("no rows", "a.parquet", parquet(user=[], when=[], price=[]), ["found 0 events"]),
    ("lengths", "a.npz", npz(user=[1, 2], when=[1, 2], price=[1]), ["column 'price'", "1 events", "2, as in 'user'"]),
    ("axes", "a.npz", npz(user=[1], when=[1], price=[[1]]), ["column 'price'", "found int64 (1, 1)"]),
    ("bytes", "a.npz", npz(user=[b"a"], when=[1], price=[1]), ["column 'user'", "found |S1 (1,)"]),
    ("objects", "a.npz", npz(user=np.array([{}], object), when=[1], price=[1]), ["as .npz", "pickle"]),
    ("no npz", "a.npz", "no zip", ["cannot be read as .npz"]),
    ("void npz", "a.npz", "", ["cannot be read as .npz"]),
    ("cut npz", "a.npz", npz(**COLUMNS)[:200], ["cannot be read as .npz"]),
    ("no parquet", "a.parquet", "no parquet", ["cannot be read as Parquet"]),
    ("cut gz", "a.csv.gz", gzip.compress(CSV.encode())[:30], ["damaged or cut off"]),
    ("utf-8", "a.csv", b"user,when,price\n\xe9,1,2\n", ["row 2", "byte 0xE9"]),
    ("quotes", "a.csv", 'user,when,price\n"1,2,3\n', ["row 2", "broken quotes"]),
    ("ending", "a.xls", "1", ["found a file of unknown kind"]),
    ("twice", "a.csv", "user,when,price,user\n1,2,3,4\n", ["'user' stands there twice"]),
]  # fmt: skip


@pytest.mark.parametrize(("label", "name", "content", "words"), FILES, ids=[row[0] for row in FILES])
def test_unreadable_files(tmp_path: Path, label: str, name: str, content: "bytes | str", words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content, columns=["user", "when", "price"])
    assert name in caught.value.where
    assert [word for word in words if word not in str(caught.value)] == []
    assert not any(word in str(caught.value) for word in ("text_column", "label_column"))


def test_a_single_array_is_no_table(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(DataError, match="found a single array"):
        ledger.read(str(tmp_path / "a.npz"), "user", "", [])


def test_names_of_a_text_without_header(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'user'; expected one of 'usr', 'item'; did you mean 'usr'"):
        read(tmp_path, "a.txt", "1 2\n", when="", columns=["usr", "item"])
    with pytest.raises(DataError, match="no column 'when'"):
        read(tmp_path, "a.txt", "1 2\n", columns=["user", "item"])


@pytest.mark.parametrize("name", ["b.npz", "b.csv", "b.parquet"])
def test_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / f"a{name}").write_text("x")
    with pytest.raises(DataError, match=rf"cannot be read \(No such file.*did you mean a{name}\?"):
        ledger.read(str(tmp_path / name), "user", "", [])
    (tmp_path / f"c{name}").mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        ledger.read(str(tmp_path / f"c{name}"), "user", "", [])


@pytest.mark.parametrize(("entity", "when"), [("", "when"), ("", ""), ("when", "when")])
def test_entity_and_time_are_two_columns(tmp_path: Path, entity: str, when: str) -> None:
    with pytest.raises(ConfigError, match="entity"):
        read(tmp_path, "a.csv", CSV, entity, when)


def test_encoding(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", CSV.encode("latin-1"), encoding="latin-1").columns["item"][2] == "é"
    with pytest.raises(ConfigError, match="unknown encoding"):
        read(tmp_path, "a.csv", CSV, encoding="utf-9")


def test_parquet_keeps_what_it_says(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    big = 2**60 + 1
    found = read(
        tmp_path, "a.parquet",
        parquet(user=["b", "a", "a"], when=[datetime(1970, 1, 2, tzinfo=UTC), datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
                datetime(1970, 1, 1, tzinfo=UTC)], item=[big, None, 3], price=np.array([1, 2, 3], np.float32)),
    )  # fmt: skip
    assert found.columns["user"].tolist() == ["a", "a", "b"]
    assert found.times.tolist() == [0.0, 1.0, 86400.0]
    assert found.columns["item"].tolist() == ["3", "", str(big)]  # float64 would make it 2**60
    assert found.columns["price"].dtype == np.float32


def test_handbook_in_time(testdata: Callable[[str], Path]) -> None:
    path = testdata("fraud_handbook") / "fraud_handbook.npz"
    started = time.process_time()
    found = ledger.read(str(path), "customer_id", "time_seconds", ["terminal_id", "amount_cents", "fraud"])
    assert time.process_time() - started < 3  # 0.5 s on one core that is free
    assert (len(found), len(found.entities)) == (1_754_155, 4990)
    assert found.columns["amount_cents"].dtype == np.uint32
    whose = np.repeat(np.arange(len(found.entities)), np.diff(found.offsets))
    assert np.array_equal(found.entities[whose], found.columns["customer_id"])
    ahead = np.diff(found.times)[np.diff(whose) == 0]
    assert ahead.min() >= 0
    with np.load(path) as raw:
        assert np.array_equal(raw["amount_cents"][found.rows], found.columns["amount_cents"])


def test_the_original_of_sasrec(testdata: Callable[[str], Path]) -> None:
    path = testdata("sasrec_video") / "Video.txt.gz"
    found = ledger.read(str(path), "user", "", ["user", "item"])
    assert (len(found), len(found.entities)) == (287_107, 31_013)
    assert found.columns["item"].dtype == np.int64
    assert found.columns["item"][:3].tolist() == [6393, 13504, 14087]
