"""Write the page of the benchmarks from the figures: ``python -m benchmarks.report FILE.json docs/benchmarks.md``."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.__main__ import means
from xpconv.files import atomic_path

HEADINGS = {"torch": "Against PyTorch", "reference": "Against the loop versions"}


def page(result: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    machine, versions = result["machine"], result["versions"]
    lines = [
        "# Benchmarks", "",
        "Times of xpconv and of a peer on the same arrays, in one process and interleaved, after a check that their",
        "results agree. A shared machine's noise only adds time, so the best call counts; medians stand in brackets.",
        "A ratio above 1 means that xpconv is faster.", "",
        "    python -m benchmarks --json benchmarks/results/cpu.json",
        "    python -m benchmarks.report benchmarks/results/cpu.json docs/benchmarks.md", "",
        f"Machine: {machine['cpu']}, {result['threads']} threads, {machine['system']}, BLAS {machine['blas']}. "
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}. "
        f"Commit {result['commit']}, {result['date'][:10]}.", "",
    ]
    def cell(row: dict[str, Any], who: str) -> str:
        return f"{row[f'{who}_ms']:.2f} ({row[f'{who}_median_ms']:.2f})"

    for peer in dict.fromkeys(row["peer"] for row in result["rows"]):
        lines += [f"## {HEADINGS.get(peer, peer)}", "", f"| row | pass | dtype | xpconv, ms | {peer}, ms | ratio |",
                  "|---|---|---|---|---|---|"]
        lines += [f"| {row['name']} | {row['pass']} | {row['dtype']} | {cell(row, 'ours')} | {cell(row, 'peer')} "
                  f"| {row['ratio']:.2f} |"
                  for row in result["rows"] if row["peer"] == peer]
        lines += ["", *(f"- {name}: geometric mean {mean:.2f}" for name, mean in means(result["rows"], peer)), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    with atomic_path(sys.argv[2]) as temporary:
        temporary.write_text(page(json.loads(Path(sys.argv[1]).read_text())))
