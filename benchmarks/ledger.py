"""A ledger of a million records in one DAG run: a collect of ten open records, and the totals of the run.

Only the ledger is measured; there are no images. The plot of cost against the number of records in the docs is drawn
from these rows and from those of other benchmarks.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import results
from benchmarks.collect import OPEN, collected
from benchmarks.copies import Copies
from benchmarks.gateway import gateway
from benchmarks.making import Memory, environment
from benchmarks.measure import ROOT, fresh
from benchmarks.results import Row

COUNT, QUICK = 1_000_000, 100
REPEATS = 3
PLOT = ROOT / "docs" / "images" / "scale.svg"
PATIENCE = 3600  # seconds for writing the records
# Title of a plot, the label of its axis (first word: the unit), and its lines: label, benchmark, and figure with the
# number of records.
PLOTS = (
    ("a collect, and the totals of a run", "s", (
        ("collect of 10 open records", "collect", "10 open among {} records on disk"),
        ("collect of 10 open records", "ledger", "collect of 10 open among {} records"),
        ("totals of a run", "gallery", "totals, {} images"),
        ("totals of a run", "ledger", "totals of a run of {} records"),
    )),
    ("a purge", "ms of CPU per record", (("purge", "purge", "{} records on disk, CPU of a record"),)),
    ("the plan and the merge of a batch", "MB", (
        ("plan", "plan", "plan of {} rows, peak memory above idle"),
        ("merge", "plan", "merge of {} rows, peak memory above idle"),
    )),
)  # fmt: skip
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def filled(*, root: str, count: int) -> None:
    """Write `count` records that have landed, all counted, and `OPEN` that have not."""
    from airflow_provider_geminiimg.core.ledger.records import Ledger

    copies = Copies(root)
    copies.fill(range(1, count))
    copies.count(range(1, count))
    ledger = Ledger(copies.store)
    for number in range(count, count + OPEN):
        found = ledger.read(copies.add(number, state="intent", job_id=None, manifest=None, answer_within=0.0))
        assert found is not None
        ledger.open_index.add(found.record)


def totals(*, count: int) -> dict[str, float]:
    """The totals of the run: seconds, and memory above idle."""
    from airflow_provider_geminiimg import settings
    from airflow_provider_geminiimg.core.ledger.records import Ledger
    from airflow_provider_geminiimg.core.storage import Files, open_store
    from airflow_provider_geminiimg.gallery.queries import GalleryQueries
    from airflow_provider_geminiimg.gallery.run_records import RecordFilter
    from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

    queries = GalleryQueries(Ledger(open_store(settings.root(), AIRFLOW_OPENERS)), "default", Files(AIRFLOW_OPENERS))
    memory, seconds = Memory(), []
    for _ in range(REPEATS):
        since = time.monotonic()
        found = queries.summary(RecordFilter(dag_id="bench", run_id="run"))
        seconds.append(time.monotonic() - since)
        assert found["images"] >= count, found
    return {"seconds": statistics.median(seconds), "megabytes": (memory.peak() - memory.idle) / 1e6}


def run(quick: bool) -> list[Row]:
    count = QUICK if quick else COUNT
    with tempfile.TemporaryDirectory() as folder, gateway() as client:
        root = Path(folder).as_uri()
        env = environment(client, root)
        fresh(filled, patience=PATIENCE, env=env, root=root, count=count)
        ours = statistics.median(fresh(collected, env=env, by_index=True)["seconds"] for _ in range(REPEATS))
        found = fresh(totals, env=env, count=count)
    rows = [
        Row("ledger", f"collect of {OPEN} open among {count:,} records", "s", ours),
        Row("ledger", f"totals of a run of {count:,} records", "s", found["seconds"]),
        Row("ledger", f"totals of a run of {count:,} records, memory above idle", "MB", found["megabytes"]),
    ]
    if not quick:
        plot([*results.read()[1], *rows])
    return rows


def plot(rows: list[Row]) -> None:
    """Draw `rows` for the docs; the same rows always give the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "scale", "svg.fonttype": "none", "font.size": 9})
    known = {(row.benchmark, row.figure, row.unit): row.ours for row in rows}
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, (title, unit, lines) in zip(figure.subplots(1, len(PLOTS)), PLOTS, strict=True):
        points: dict[str, dict[int, float]] = {}
        for label, benchmark, name in lines:
            for size in SIZES:
                value = known.get((benchmark, name.format(f"{size:,}"), unit.split()[0]))
                if value is not None:
                    points.setdefault(label, {})[size] = value
        for label, values in points.items():
            axes.plot(list(values), list(values.values()), marker="o", label=label)
        sizes = sorted({size for values in points.values() for size in values})
        axes.set(xscale="log", xlabel="records, or rows", ylabel=unit, title=title, ylim=(0, None))
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.savefig(PLOT, metadata={"Date": None})
