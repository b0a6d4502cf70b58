"""Write the benchmark page from results: ``python -m benchmarks.report RESULT.json ... docs/benchmarks.md``.

Given several results, such as those with other BLAS kernels, the page compares their ratios and details the first.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.__main__ import geometric_means
from benchmarks.cases import CASES
from xpconv.io._atomic import atomic_path

HEADINGS = {
    "torch": "Against PyTorch",
    "torch-cuda": "Against PyTorch on the same GPU",
    "torch-graphs": "Against PyTorch with the whole step in a CUDA graph",
    "reference": "Against the loop implementations",
    "numpy": "Against NumPy on the CPU",
}

STEP_AIMS = {  # by peer and row: PyTorch's time over ours
    ("torch-cuda", "three-layer step, batch 50, captured"): 3.0,
    ("torch-graphs", "three-layer step, batch 50, captured"): 1.2,
    ("torch-cuda", "six-conv step, batch 64, captured"): 2.0,
    ("torch-graphs", "six-conv step, batch 64, captured"): 1.1,
    ("torch-cuda", "six-conv step, batch 512, captured"): 1.2,
    ("torch-graphs", "six-conv step, batch 512, captured"): 1.2,
}

SHAPES = {case.name: case.shape_text() for case in CASES}
Rows = list[dict[str, Any]]


def page(result: dict[str, Any], *others: dict[str, Any]) -> str:
    """Return the page of one result as Markdown, with a table comparing its ratios with those of `others`."""
    machine, versions, gpu = result["machine"], result["versions"], "card" in result
    name = "benchmarks_gpu" if gpu else "benchmarks"
    options, stem = ("--backend cupy --peers torch-cuda,torch-graphs,numpy ", "gpu") if gpu else ("", "cpu")
    lines = [
        f"# Benchmarks{' on a GPU' * gpu}",
        "",
        "Times of xpconv and another library on the same arrays, measured alternately in one process after checking",
        "that their results agree. Noise on a shared machine only adds time, so the tables show the fastest call, with",
        "the median in brackets. A ratio above 1 means that xpconv is faster.",
        "",
        f"    python -m benchmarks {options}--json benchmarks/results/{stem}.json",
        f"    python -m benchmarks.report benchmarks/results/{stem}*.json docs/{name}.md",
        "",
        *(gpu_lines(result) if gpu else []),
        f"Machine: {machine['cpu']}, {result['threads']} threads, {machine['system']}, BLAS {machine['blas']}. "
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}. "
        f"Commit {result['commit']}, {result['date'][:10]}.",
        "",
        *(aims_lines(result["rows"]) if gpu else []),
        *(blas_comparison(result, *others) if others else []),
    ]
    for peer, tf32 in dict.fromkeys((row["peer"], row.get("tf32", False)) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["peer"], row.get("tf32", False)) == (peer, tf32)]
        lines += [f"## {HEADINGS.get(peer, peer)}{', with TF32 on both sides' * tf32}", "", *peer_table(rows, peer), ""]
        lines += [*(f"- {name}: geometric mean {mean:.2f}" for name, mean in geometric_means(rows)), ""]
    return "\n".join(lines).rstrip() + "\n"


def blas_comparison(*results: dict[str, Any]) -> list[str]:
    """Return a table of the ratios to PyTorch, with one column per result, named by its BLAS."""
    rows = [[row for row in result["rows"] if row["peer"] == "torch"] for result in results]
    ratios = [{(row["name"], row["pass"]): row["ratio"] for row in peer_rows} for peer_rows in rows]
    for found, peer_rows in zip(ratios, rows, strict=True):
        found.update(((f"**{name}**", ""), mean) for name, mean in geometric_means(peer_rows))
    return [
        "## PyTorch's time over ours, by NumPy's BLAS kernels",
        "",
        "PyTorch ships its own BLAS. NumPy's OpenBLAS chooses its kernels by the processor, unless the environment",
        "variable `OPENBLAS_CORETYPE` names them. The times in the tables below belong to the first column.",
        "",
        f"| row | pass | {' | '.join(result['machine']['blas'] for result in results)} |",
        "|---|---|" + "---|" * len(results),
        *(
            f"| {name} | {kind} | {' | '.join(f'{found[name, kind]:.2f}' for found in ratios)} |"
            for name, kind in ratios[0]
        ),
        "",
    ]


def gpu_lines(result: dict[str, Any]) -> list[str]:
    """Return the description of the GPU and its measured rates."""
    found, rates = result["card"], result["rates"]
    return [
        f"GPU: {found['name']}, {found['memory']}, {found['processors']} multiprocessors at up to {found['clock']}, "
        f"driver {found['driver']} (CUDA {found['cuda_of_driver']}), CUDA {found['cuda']}.",
        f"Measured on it: {rates['float32_tflops']:g} TFLOP/s for float32 products of 8192 x 8192 matrices, "
        f"{rates['tf32_tflops']:g} with TF32, and {rates['copy_gb_s']:g} GB/s for copying. Times come from CUDA events "
        "around several calls, so the time of a small call is its launch time on the host. The column `of peak` gives "
        "the fraction of these rates: of the products for convolutions; of copying for the other layers, which read "
        "and write each of their arrays at least once. TF32 is off unless a heading says otherwise.",
        "",
    ]


def peer_table(rows: Rows, peer: str) -> list[str]:
    """Return the rows against one peer as a Markdown table, without columns that would be empty."""

    def cell(row: dict[str, Any], who: str) -> str:
        return f"{row[f'{who}_ms']:.2f} ({row[f'{who}_median_ms']:.2f})"

    def pair(row: dict[str, Any], key: str) -> str:
        return f"{row[f'ours_{key}']:g} / {row[f'peer_{key}']:g}" if f"ours_{key}" in row else ""

    def fraction_of_peak(row: dict[str, Any]) -> str:
        found = [row[name] for name in ("share_of_products", "share_of_copying") if name in row]
        return f"{found[0]:.0%}" if found else ""

    columns = {
        "row": lambda row: row["name"],
        "pass": lambda row: row["pass"],
        "dtype": lambda row: row["dtype"],
        "shapes": lambda row: SHAPES.get(row["name"], ""),
        "xpconv, ms": lambda row: cell(row, "ours"),
        f"{peer}, ms": lambda row: cell(row, "peer"),
        f"{peer} / xpconv: above 1, xpconv is faster": lambda row: f"{row['ratio']:.2f}",
        "of peak": fraction_of_peak,
        f"launches, xpconv / {peer}": lambda row: pair(row, "launches"),
        f"peak memory of a step in MiB, xpconv / {peer}": lambda row: pair(row, "peak_mib"),
    }
    filled = {heading: cells for heading, write in columns.items() if any(cells := [write(row) for row in rows])}
    return [
        f"| {' | '.join(filled)} |",
        "|" + "---|" * len(filled),
        *(f"| {' | '.join(cells)} |" for cells in zip(*filled.values(), strict=True)),
    ]


def aims_lines(rows: Rows) -> list[str]:
    """Return a table of the speed aims and the ratios reached."""
    torch = [row for row in rows if row["peer"] == "torch-cuda" and not row["tf32"]]
    ratios = {(row["peer"], row["name"]): row["ratio"] for row in rows if not row["tf32"] and row["pass"] == "step"}
    reached = dict(geometric_means(torch))
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
        (
            "pooling, norms, softmax and Adam, the lower geometric mean of forward and forward+backward",
            0.8,
            min(pools, default=None),
        ),
        (
            "a step of six convolutions at batch 512, NumPy's time over ours",
            100.0,
            ratios.get(("numpy", "six-conv step, batch 512")),
        ),
        *(
            (f"{name}, against PyTorch{' with CUDA graphs' * (peer == 'torch-graphs')}", aim, ratios.get((peer, name)))
            for (peer, name), aim in STEP_AIMS.items()
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
    *results, written = sys.argv[1:] or [""]
    if not results or not written.endswith(".md"):
        sys.exit(
            f"the last argument is {written!r}; expected RESULT.json ... PAGE.md: result files, then the page to write"
        )
    with atomic_path(written) as temporary:
        temporary.write_text(page(*(json.loads(Path(path).read_text()) for path in results)))
