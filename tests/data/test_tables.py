"""Tables: each kind of file, and each fault with its row and byte offset."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from tljax.config import DataConfig
from tljax.data.sources import Records, read_records
from tljax.errors import ConfigError, DataError, TljaxError

GOOD = "id,text,label\n1,the card is lost,card\n2,no signal,network\n"


def read(
    tmp_path: Path, name: str, content: "bytes | str", part: str = "", labelled: bool = True, **data: str
) -> Records:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_records(str(tmp_path / name) + part, DataConfig(**data), "text", labelled)  # type: ignore[arg-type]


PAIRS = [["the card is lost", "card"], ["no signal", "network"]]
OBJECTS = [{"text": t, "label": x, "more": 1} for t, x in PAIRS]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.csv", GOOD, ""),
        ("A.CSV", GOOD, ""),
        ("bom.csv", "\ufefftext,label\nthe card is lost,card\nno signal,network\n", ""),
        ("crlf.csv", GOOD.replace("\n", "\r\n"), ""),
        ("mac.csv", GOOD.replace("\n", "\r"), ""),
        ("end.csv", GOOD.rstrip("\n"), ""),
        ("blank.csv", GOOD + "\n\n", ""),
        ("spaces.csv", "text,label\nthe card is lost, card \nno signal,network\n", ""),
        ("a.tsv", GOOD.replace(",", "\t"), ""),
        ("a.csv.gz", gzip.compress(GOOD.encode(), mtime=0), ""),
        ("pairs.json", json.dumps(PAIRS), ""),
        ("objects.json", json.dumps(OBJECTS), ""),
        ("splits.json", json.dumps({"train": PAIRS, "test": []}), "#train"),
        ("splits.json.gz", gzip.compress(json.dumps({"train": OBJECTS, "test": []}).encode(), mtime=0), "#train"),
        ("a.jsonl", "\n".join(json.dumps(o) for o in OBJECTS), ""),
        ("a.jsonl.gz", gzip.compress("\r\n".join(json.dumps(o) for o in PAIRS).encode(), mtime=0), ""),
        ("#odd.csv", GOOD, ""),
    ],
)
def test_kinds(tmp_path: Path, name: str, content: "bytes | str", part: str) -> None:
    records = read(tmp_path, name, content, part)
    assert records.inputs == ["the card is lost", "no signal"]
    assert records.labels == ["card", "network"]
    assert len(records) == 2


@pytest.mark.parametrize(
    ("name", "content", "part", "places"),
    [
        ("a.csv", "text,label\na,x\n\nb,y\n", "", ["row 2", "row 4"]),
        ("q.csv", 'text,label\n"one\ntwo",x\nb,y\n', "", ["row 2", "row 3 (line 4)"]),
        ("a.jsonl", '["a","x"]\n\n["b","y"]\n', "", ["line 1", "line 3"]),
        ("a.json", '[["a","x"],["b","y"]]', "", ["item 1", "item 2"]),
        ("s.json", '{"t": [["a","x"],["b","y"]]}', "#t", ["item 1", "item 2"]),
    ],
)
def test_places(tmp_path: Path, name: str, content: str, part: str, places: list[str]) -> None:
    records = read(tmp_path, name, content, part)
    assert [records.where(i) for i in range(2)] == [f"{tmp_path / name}{part}, {place}" for place in places]
    assert records.take([1]).where(0) == records.where(1)


def test_quoted_newlines_and_quotes_stay(tmp_path: Path) -> None:
    records = read(tmp_path, "a.csv", 'text,label\r\n"one\r\ntwo ""2"", three",x\r\n')
    assert records.inputs == ['one\r\ntwo "2", three']


BAD: list[tuple[str, str, "bytes | str", str, list[str]]] = [
    ("not_utf8", "a.csv", b"text,label\nfine,x\ncaf\xe9,y\n", "", ["row 3", "byte offset 21", "0xE9", "encoding"]),
    ("not_utf8_quoted", "a.csv", b'text,label\n"a\nb",x\n\xff,y\n', "", ["row 3", "byte offset 19"]),
    ("not_utf8_jsonl", "a.jsonl", b'["a","x"]\n["\xe9","y"]\n', "", ["line 2", "byte offset 12"]),
    ("not_utf8_bom", "a.csv", b"\xef\xbb\xbftext,label\n\xe9,y\n", "", ["row 2", "byte offset 14"]),
    ("utf16", "a.csv", GOOD.encode("utf-16"), "", ["byte offset 0", "utf-16"]),
    ("ragged_short", "a.csv", "text,label\na,x\nb\nc,z\n", "", ["row 3", "1 fields, expected 2"]),
    ("ragged_long", "a.csv", "text,label\na,x,y\n", "", ["row 2", "3 fields, expected 2"]),
    ("doubled", "a.csv", "text,label,label\na,x,y\n", "", ["row 1", "'label' stands there twice"]),
    ("missing", "a.csv", "Text,labels,id\na,x,1\n", "",
     ["no column 'text', 'label'", "'Text', 'labels', 'id'", "did you mean 'Text'", "text_column"]),
    ("semicolons", "a.csv", "text;label\na;x\n", "", ["separated by ';'"]),
    ("empty", "a.csv", "", "", ["empty (0 bytes)"]),
    ("empty_gz", "a.csv.gz", gzip.compress(b"", mtime=0), "", ["empty (0 bytes)"]),
    ("blank", "a.csv", "\n\n", "", ["no header"]),
    ("header_only", "a.csv", "text,label\n", "", ["found 0 examples", "0 rows", "at least 1"]),
    ("open_quote", "a.csv", 'text,label\na,x\n"b,y\nc,z\n', "", ["row 3", "line 3", "quotes"]),
    ("stray_quote", "a.csv", 'text,label\n"a" b,x\n', "", ["row 2", "quotes"]),
    ("empty_text", "a.csv", "text,label\na,x\n,y\n", "", ["row 3", "the text is empty"]),
    ("blank_text", "a.csv", "text,label\na,x\n \u3000 ,y\n", "", ["row 3", "white space"]),
    ("empty_label", "a.csv", "text,label\na,\n", "", ["row 2", "the label is missing"]),
    ("nan_label", "a.csv", "text,label\na,NaN\n", "", ["row 2", "the label is missing"]),
    ("nan_json", "a.json", '[{"text":"a","label":NaN}]', "", ["item 1", "the label is missing (found NaN)"]),
    ("null_json", "a.json", '[["a",null]]', "", ["item 1", "the label is missing"]),
    ("half_json", "a.json", '[["a",0.5]]', "", ["item 1", "0.5", "class name"]),
    ("inf_json", "a.json", '[["a",Infinity]]', "", ["item 1", "inf"]),
    ("list_label", "a.json", '[["a",["x"]]]', "", ["item 1", "class name"]),
    ("number_text", "a.json", '[[1,"x"]]', "", ["item 1", "expected text"]),
    ("triple", "a.json", '[["a","b","c"]]', "", ["item 1", "[input, label] pair"]),
    ("lost_key", "a.json", '[{"text":"a","label":"x"},{"text":"b"}]', "", ["item 2", "label is missing"]),
    ("no_key", "a.json", '[{"txt":"a","label":"x"}]', "", ["no column 'text'", "did you mean 'txt'"]),
    ("broken", "a.json", '[["a","x"],\n["b" "y"]]', "", ["line 2, column 6", "no JSON"]),
    ("deep", "a.json", "[" * 200000, "", ["cannot be read as JSON"]),
    ("scalar", "a.json", "3", "", ["found a int"]),
    ("no_split", "a.json", '{"train": [["a","x"]], "val": []}', "", ["object of splits", "train, val", "a.json#train"]),
    ("other_split", "a.json", '{"train": [], "val": []}', "#trian", ["no split 'trian'", "a.json#train"]),
    ("empty_split", "a.json", '{"train": []}', "#train", ["found 0 examples"]),
    ("split_of_list", "a.json", '[["a","x"]]', "#train", ["has no splits"]),
    ("split_of_csv", "a.csv", GOOD, "#train", ["a csv file has no splits"]),
    ("broken_line", "a.jsonl", '["a","x"]\n{"text":\n', "", ["line 2", "no JSON"]),
    ("cut_gz", "a.csv.gz", gzip.compress(GOOD.encode() * 999, mtime=0)[:-20], "", ["damaged or cut off"]),
    ("no_gz", "a.csv.gz", GOOD, "", ["damaged or cut off"]),
    ("no_parquet", "a.parquet", b"PAR1 and no more", "", ["cannot be read as Parquet"]),
    ("pickle", "a.pkl", b"x", "", ["found a pkl", ".csv"]),
    ("labelled_txt", "a.txt", "a, b\n", "", ["labels need columns"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "content", "part", "words"), BAD, ids=[row[0] for row in BAD])
def test_faults(tmp_path: Path, name: str, file: str, content: "bytes | str", part: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, file, content, part)
    message = str(caught.value)
    assert [word for word in [file, *words] if word not in message] == [], message
    assert caught.value.exit_code == 65


def test_all_bad_rows_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2.*the first of 3 unusable among 4") as caught:
        read(tmp_path, "a.csv", "text,label\n,x\na,\nfine,x\nb,x,y\n")
    assert [line.rpartition("row ")[2][:1] for line in caught.value.details] == ["2", "3", "5"]


def test_skipped_rows_are_recorded(tmp_path: Path) -> None:
    content = b"text,label\n,x\na,\nfine,x\nb,x,y\ncaf\xe9,x\n"
    records = read(tmp_path, "a.csv", content, on_bad="skip")
    assert records.inputs == ["fine"]
    assert records.where(0).endswith("row 4")
    assert [(bad["where"].rpartition("row ")[2], bad["reason"]) for bad in records.bad] == [
        ("2", "the text is empty"),
        ("3", "the label is missing (found '')"),
        ("5", "3 fields, expected 2 as in the header"),
        ("6", "bytes outside the encoding"),
    ]


@pytest.mark.parametrize(
    ("bad", "good", "fits"), [(10, 5, True), (11, 5, False), (20, 19980, True), (21, 19979, False)]
)
def test_skipping_has_a_limit(tmp_path: Path, bad: int, good: int, fits: bool) -> None:
    content = "text,label\n" + ",x\n" * bad + "a,x\n" * good
    if fits:
        assert len(read(tmp_path, "a.csv", content, on_bad="skip")) == good
    else:
        with pytest.raises(DataError, match=f"{bad} of {bad + good} rows cannot be used; expected at most"):
            read(tmp_path, "a.csv", content, on_bad="skip")


def test_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found 0 examples \(3 rows: 1 unusable, 2 of excluded classes\)"):
        read(tmp_path, "a.csv", "text,label\na,oos\nb,oos\n,x\n", on_bad="skip", exclude_labels="oos")


def test_excluded_classes(tmp_path: Path) -> None:
    records = read(tmp_path, "a.csv", "text,label\na,oos\nb,x\n,spam\n", exclude_labels="oos|spam")
    assert (records.inputs, records.excluded, records.bad) == (["b"], 2, [])


def test_other_encoding_only_when_named(tmp_path: Path) -> None:
    content = "text,label\ncafé,x\n".encode("latin-1")
    assert read(tmp_path, "a.csv", content, encoding="latin-1").inputs == ["café"]
    assert read(tmp_path, "b.csv", GOOD.encode("utf-16"), encoding="utf-16").labels == ["card", "network"]
    with pytest.raises(ConfigError, match="unknown encoding 'utf-9'"):
        read(tmp_path, "a.csv", content, encoding="utf-9")


def test_columns_by_name(tmp_path: Path) -> None:
    records = read(tmp_path, "a.csv", "Subject,Body,Team\na,b,x\n", text_column="Body", label_column="Team")
    assert (records.inputs, records.labels) == (["b"], ["x"])


def test_unlabelled(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "text\na\n", labelled=False).labels is None
    assert read(tmp_path, "a.txt", "one, two\n\nthree\n", labelled=False).inputs == ["one, two", "three"]
    assert read(tmp_path, "a.json", '["one", "two"]', labelled=False).inputs == ["one", "two"]


def test_large_fields_and_many_columns(tmp_path: Path) -> None:
    csv.field_size_limit(131072)  # what Python starts with
    long = "word " * 2_000_000
    assert read(tmp_path, "a.csv", f"text,label\n{long},x\n").inputs == [long]
    assert csv.field_size_limit() == 131072  # the limit of the process is left as it was
    names = [f"c{i}" for i in range(100_000)]
    with pytest.raises(DataError, match="and 99980 more") as caught:
        read(tmp_path, "b.csv", ",".join(names) + "\n")
    assert len(str(caught.value)) < 1000
    wide = ",".join([*names, "text", "label"]) + "\n" + "," * 100_000 + "a,x\n"
    assert read(tmp_path, "c.csv", wide).inputs == ["a"]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    def write(name: str, **columns: list[object]) -> str:
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name)
        return str(tmp_path / name)

    records = read_records(write("a.parquet", text=["a", "b"], label=[3, 1], more=[1, 2]), DataConfig(), "text")
    assert (records.inputs, records.labels) == (["a", "b"], ["3", "1"])
    assert records.where(1).endswith("a.parquet, row 2")
    # pandas turns whole numbers with a gap into floats with NaN
    source = write("b.parquet", text=["a", None, "c"], label=[3.0, 1.0, float("nan")])
    with pytest.raises(TljaxError, match=r"row 2: the text is missing \(the first of 2 unusable among 3\)"):
        read_records(source, DataConfig(), "text")
    assert read_records(source, DataConfig(on_bad="skip"), "text").labels == ["3"]
    with pytest.raises(DataError, match="did you mean 'txt'"):
        read_records(write("c.parquet", txt=["a"], label=["x"]), DataConfig(), "text")
