"""Write the page of the benchmarks from the figures: ``python -m benchmarks.report FILE.json docs/benchmarks.md``.

More files may stand between the two, such as figures with other BLAS kernels; their ratios are set beside the first's.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.__main__ import means
from xpconv.io._atomic import atomic_path

HEADINGS = {
    "torch": "Against PyTorch",
    "torch-cuda": "Against PyTorch on the same card",
    "reference": "Against the loop versions",
    "numpy": "Against NumPy on the machine's own cores",
}

Rows = list[dict[str, Any]]


def page(result: dict[str, Any], *others: dict[str, Any]) -> str:
    """Return the page of one result as Markdown, with the ratios of others beside its own."""
    machine, versions, gpu = result["machine"], result["versions"], "card" in result
    name = "benchmarks_gpu" if gpu else "benchmarks"
    options, figures = ("--backend cupy --peers torch-cuda,numpy ", "gpu") if gpu else ("", "cpu")
    lines = [
        f"# Benchmarks{' on a GPU' * gpu}",
        "",
        "Times of xpconv and of a peer on the same arrays, in one process and interleaved, after a check that their",
        "results agree. A shared machine's noise only adds time, so the best call counts; medians stand in brackets.",
        "A ratio above 1 means that xpconv is faster.",
        "",
        f"    python -m benchmarks {options}--json benchmarks/results/{figures}.json",
        f"    python -m benchmarks.report benchmarks/results/{figures}*.json docs/{name}.md",
        "",
        *(card(result) if gpu else []),
        f"Machine: {machine['cpu']}, {result['threads']} threads, {machine['system']}, BLAS {machine['blas']}. "
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}. "
        f"Commit {result['commit']}, {result['date'][:10]}.",
        "",
        *(bars(result["rows"]) if gpu else []),
        *(beside(result, *others) if others else []),
    ]
    for peer, tf32 in dict.fromkeys((row["peer"], row.get("tf32", False)) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["peer"], row.get("tf32", False)) == (peer, tf32)]
        lines += [f"## {HEADINGS.get(peer, peer)}{', with TF32 on both sides' * tf32}", "", *table(rows, peer), ""]
        lines += [*(f"- {name}: geometric mean {mean:.2f}" for name, mean in means(rows)), ""]
    return "\n".join(lines).rstrip() + "\n"


def beside(*results: dict[str, Any]) -> list[str]:
    """Return a table of the ratios to PyTorch in several results, a column for each BLAS that they computed with."""
    rows = [[row for row in result["rows"] if row["peer"] == "torch"] for result in results]
    ratios = [{(row["name"], row["pass"]): row["ratio"] for row in mine} for mine in rows]
    for found, mine in zip(ratios, rows, strict=True):
        found.update(((f"**{name}**", ""), mean) for name, mean in means(mine))
    return [
        "## PyTorch's time over ours, by the kernels of NumPy's BLAS",
        "",
        "PyTorch brings a BLAS of its own. NumPy's OpenBLAS chooses its kernels by the processor, or as the variable",
        "`OPENBLAS_CORETYPE` says. Times in the tables further down are those of the first column.",
        "",
        f"| row | pass | {' | '.join(result['machine']['blas'] for result in results)} |",
        "|---|---|" + "---|" * len(results),
        *(
            f"| {name} | {kind} | {' | '.join(f'{found[name, kind]:.2f}' for found in ratios)} |"
            for name, kind in ratios[0]
        ),
        "",
    ]


def card(result: dict[str, Any]) -> list[str]:
    """Return what the card is and what it reaches."""
    found, rates = result["card"], result["rates"]
    return [
        f"Card: {found['name']}, {found['memory']}, {found['processors']} processors at up to {found['clock']}, driver "
        f"{found['driver']} (CUDA {found['cuda_of_driver']}), CUDA {found['cuda']}.",
        f"Measured on it: {rates['float32_tflops']:g} TFLOP/s for float32 products of 8192 x 8192 matrices, "
        f"{rates['tf32_tflops']:g} with TF32, and {rates['copy_gb_s']:g} GB/s for copying. Times are those between "
        "CUDA events around several calls, so a small call's time is what the host takes to launch it. Shares are of "
        "these rates: of products for convolutions, of copying for the others, which have to read and write each of "
        "their arrays once at least. TF32 is off unless a heading says otherwise.",
        "",
    ]


def table(rows: Rows, peer: str) -> list[str]:
    """Return rows against one peer as a Markdown table, with a column for each figure that one of them has."""

    def cell(row: dict[str, Any], who: str) -> str:
        return f"{row[f'{who}_ms']:.2f} ({row[f'{who}_median_ms']:.2f})"

    def pair(row: dict[str, Any], figure: str) -> str:
        return f"{row[f'ours_{figure}']:g} / {row[f'peer_{figure}']:g}" if f"ours_{figure}" in row else ""

    def share(row: dict[str, Any]) -> str:
        found = [row[name] for name in ("share_of_products", "share_of_copying") if name in row]
        return f"{found[0]:.0%}" if found else ""

    columns = {
        "row": lambda row: row["name"],
        "pass": lambda row: row["pass"],
        "dtype": lambda row: row["dtype"],
        "xpconv, ms": lambda row: cell(row, "ours"),
        f"{peer}, ms": lambda row: cell(row, "peer"),
        "ratio": lambda row: f"{row['ratio']:.2f}",
        "share": share,
        f"launches, xpconv / {peer}": lambda row: pair(row, "launches"),
        f"memory of a step in MiB, xpconv / {peer}": lambda row: pair(row, "peak_mib"),
    }
    filled = {heading: cells for heading, write in columns.items() if any(cells := [write(row) for row in rows])}
    return [
        f"| {' | '.join(filled)} |",
        "|" + "---|" * len(filled),
        *(f"| {' | '.join(cells)} |" for cells in zip(*filled.values(), strict=True)),
    ]


def bars(rows: Rows) -> list[str]:
    """Return a table of what was aimed at and what was reached."""
    torch = [row for row in rows if row["peer"] == "torch-cuda" and not row["tf32"]]
    ratios = {(row["peer"], row["name"]): row["ratio"] for row in rows if not row["tf32"] and row["pass"] == "step"}
    reached = dict(means(torch))
    pools = [reached[name] for name in reached if name.startswith("pool")]
    aims = [
        (
            "a step of ThreeLayerConvNet at batch 50, PyTorch's time over ours",
            1.0,
            ratios.get(("torch-cuda", "three-layer step")),
        ),
        (
            "a step of six convolutions at batch 512, PyTorch's time over ours",
            0.5,
            ratios.get(("torch-cuda", "six-conv step, batch 512")),
        ),
        ("convolutions, forward and backward, geometric mean", 0.4, reached.get("conv, forward+backward")),
        ("pooling, norms, softmax and Adam, geometric mean, the lower of its two", 0.8, min(pools, default=None)),
        (
            "a step of six convolutions at batch 512, NumPy's time over ours",
            100.0,
            ratios.get(("numpy", "six-conv step, batch 512")),
        ),
    ]
    found = [(text, aim, value) for text, aim, value in aims if value is not None]
    lines = ["## Aims", "", "| aim | at least | reached | |", "|---|---|---|---|"]
    lines += [
        f"| {text} | {aim:g} | {value:.2f} | {'holds' if value >= aim else 'falls short'} |"
        for text, aim, value in found
    ]
    short = sorted((row["ratio"], f"{row['name']}, {row['pass']}") for row in torch if row["ratio"] < 1)
    if short:
        lines += ["", "Slower than PyTorch: " + "; ".join(f"{name} ({ratio:.2f})" for ratio, name in short) + "."]
    return [*lines, ""]


if __name__ == "__main__":
    *figures, written = sys.argv[1:] or [""]
    if not figures or not written.endswith(".md"):
        sys.exit(f"the last argument is {written!r}; expected files of figures and then the page, named *.md")
    with atomic_path(written) as temporary:
        temporary.write_text(page(*(json.loads(Path(path).read_text()) for path in figures)))
