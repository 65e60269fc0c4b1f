"""Progress of a row stream, read off its staging files."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet

from raycurate.core.observe import Progress
from raycurate.data.documents.counting import count_documents
from raycurate.data.documents.documents import DocumentsOptions, list_documents
from raycurate.streams.staging import REJECT_REASON, ROW_KEY, StagingSink
from raycurate.streams.watch import StagingWatch


def stage(folder, number: int, rows: int, rejects: int) -> None:
    """A staging file as a write task makes it."""
    table = pa.table(
        {
            ROW_KEY: pa.array(range(rows), pa.uint64()),
            REJECT_REASON: pa.array(["empty_text"] * rejects + [None] * (rows - rejects), pa.string()),
        }
    )
    folder.mkdir(exist_ok=True)
    StagingSink(str(folder)).write([table], SimpleNamespace(task_idx=number))


def test_rows_rejects_and_what_was_there_before(tmp_path, capsys):
    folder = tmp_path / "staged"
    stage(folder, 0, 10, 3)
    with StagingWatch(str(folder), "embed", total=lambda: 40, every_s=0.01):
        stage(folder, 1, 20, 0)
        stage(folder, 2, 5, 1)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("embed: 35/40 documents, ")
    assert last.endswith("s to go, 4 rejected")


def test_a_stream_into_a_store_of_others_counts_its_own(tmp_path, capsys):
    folder = tmp_path / "store"
    stage(folder, 0, 10, 0)
    with StagingWatch(str(folder), "embed", unit="text", total=7, resumes=False, every_s=0.01):
        stage(folder, 1, 7, 0)
    assert capsys.readouterr().err.splitlines()[-1].startswith("embed: 7/7 texts, ")


def test_a_folder_that_cannot_be_read_stops_nothing(tmp_path):
    folder = tmp_path / "staged"
    folder.mkdir()
    (folder / "broken.parquet").write_bytes(b"not parquet")
    with StagingWatch(str(folder), "embed", every_s=0.01) as watch:
        ended_by_itself = True
    assert ended_by_itself and not watch._thread.is_alive()


def test_the_rate_leaves_out_what_was_done_before():
    shown = io.StringIO()
    with Progress("embed", total=10, done=5, every_s=0, stream=shown) as progress:
        progress.update(0)
    assert "embed: 5/10 rows, 0.0/s" in shown.getvalue()


def test_documents_are_counted_where_it_is_cheap(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.md").write_text("two")
    (tmp_path / "c.jsonl").write_text('{"text": "3"}\n{"text": "4"}')
    pa.parquet.write_table(pa.table({"text": ["5", "6", "7"]}), tmp_path / "d.parquet")
    options = DocumentsOptions(input=str(tmp_path))
    assert count_documents(list_documents(options)) == 7
    (tmp_path / "e.jsonl.gz").write_bytes(b"")
    assert count_documents(list_documents(options)) is None
