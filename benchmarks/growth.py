"""Growth of a batch's cost with its size: time in addition to the gateway's, and memory, for 100 to 10,000 images.

The gateway answers immediately, so only the package's own cost remains. The plot in the docs is drawn from these rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.gateway import gateway
from benchmarks.making import WARM, environment, make
from benchmarks.measure import ROOT, fresh
from benchmarks.results import Row

SIZES = (100, 1_000, 10_000)
QUICK = (20, 100)
WIDTH, POLL = 50, 0.05
PLOT = ROOT / "docs" / "images" / "growth.svg"
SECONDS, MEMORY = "overhead an image", "peak memory above idle"


def run(quick: bool) -> list[Row]:
    """One run of each size: the sizes themselves are the repetition."""
    sizes = QUICK if quick else SIZES
    rows = []
    for count in sizes:
        with tempfile.TemporaryDirectory() as root, gateway([0.0]) as client:
            env = environment(client, Path(root).as_uri())
            found = fresh(make, env=env, count=count, width=WIDTH, poll_interval=POLL, thumbnails=False, warm=WARM)
        assert found["counts"]["landed"] == count, found
        rows += [
            Row("growth", f"{SECONDS}, of {count:,}", "ms", found["seconds"] / count * 1000),
            Row("growth", f"{MEMORY}, of {count:,}", "MB", (found["peak"] - found["idle"]) / 1e6),
        ]
    if not quick:
        plot(rows)
    return rows


def plot(rows: list[Row]) -> None:
    """Draw `rows` for the docs; the same rows always give the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 10})
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, label) in zip(
        figure.subplots(1, 2), ((SECONDS, "ms an image"), (MEMORY, "MB above idle")), strict=True
    ):
        points = {int(row.figure.split(", of ")[1].replace(",", "")): row.ours for row in rows if name in row.figure}
        axes.plot(list(points), list(points.values()), marker="o", color="#1a73e8")
        axes.set(xscale="log", xlabel="images in the batch", ylabel=label, ylim=(0, None))
        axes.set_xticks(list(points), [f"{count:,}" for count in points])
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(PLOT, metadata={"Date": None})
