"""Time xpconv and its peers alternately on the same arrays, and print times and ratios.

python -m benchmarks [--backend numpy] [--peers torch,reference] [--only NAME ...] [--json FILE]
python -m benchmarks --backend cupy --peers torch-cuda,torch-graphs,numpy --json benchmarks/results/gpu.json
"""

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from math import exp, log
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import device
from benchmarks.cases import CASES, GROUPS, Case
from benchmarks.contestants import Reference, Torch, TorchGraphs, Xpconv
from benchmarks.timing import host_ms, interleaved, repeated, summary
from xpconv.io._atomic import atomic_path
from xpconv.ops.numpy._workers import num_threads

PEERS = {
    "torch": lambda: Torch("cpu"),
    "torch-cuda": lambda: Torch("cuda"),
    "torch-graphs": lambda: TorchGraphs("cuda"),
    "reference": Reference,
    "numpy": Xpconv,
}
SLOW = {"reference": lambda case: case.small, "numpy": lambda case: case.large and case.kind == "step"}
ON_GPU = ("torch-cuda", "torch-graphs")
AGREE = {"float32": 1e-4, "float64": 1e-9, "tf32": 2e-2}  # relative to the largest value
# Relative to the gradient's norm: rounding may change which ReLU or maximum passes a gradient, above all in deep nets.
AGREE_STEP, AGREE_STEP_TF32 = 5e-2, 0.2


def main(
    backend: Annotated[str, typer.Option(help="The backend of xpconv, as in XP_BACKEND.")] = "numpy",
    peers: Annotated[
        str, typer.Option(help="Comma-separated: torch, torch-cuda, torch-graphs, reference, numpy.")
    ] = "torch,reference",
    only: Annotated[
        list[str] | None, typer.Option(help="A row to run, such as c64; may be repeated. Default: all rows.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results to this JSON file.")] = None,
) -> None:
    """Time each case, print a table, and optionally write the results as JSON.

    Example: python -m benchmarks --only c64 --only Adam --json results.json
    """
    check_choices(peers.split(","), only)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the measurements
    console = Console()
    ours = Xpconv(backend)
    gpu = device.describe() if ours.backend.library == "cupy" else {}
    rows: list[dict[str, Any]] = []
    disagreements: list[str] = []
    for peer in peers.split(","):
        contestant = PEERS[peer]()
        if peer == "torch":
            contestant.torch.set_num_threads(num_threads())
        for tf32 in (False, True) if peer in ON_GPU else (False,):
            if gpu:
                device.set_tf32(tf32)
            cases = [case for case in CASES if not only or case.name in only]
            new_rows: list[dict[str, Any]] = []
            for case in (case for case in cases if wanted(case, peer, bool(gpu), tf32)):
                try:
                    new_rows += compare(case, ours, contestant, peer, tf32=tf32, rates=gpu.get("rates", {}))
                except DisagreementError as error:
                    disagreements.append(str(error))
            show(console, new_rows, peer + " with TF32" * tf32)
            rows += new_rows
            if json_file:  # after each table, so that a later failure loses nothing
                write({**gpu, "backend": backend, "rows": rows}, json_file)
    if disagreements:
        raise SystemExit("\n".join(disagreements))


class DisagreementError(Exception):
    """The results of xpconv and a peer are not the same."""


def write(result: dict[str, Any], path: Path) -> None:
    """Write results as JSON, with the machine, the versions, the commit and the date."""
    where = {"machine": machine(), "versions": versions(), "commit": commit(), "threads": num_threads()}
    where["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**where, **result}, indent=1) + "\n")


def check_choices(peers: list[str], only: list[str] | None) -> None:
    """Raise an error for an unknown peer or row, or if PyTorch is needed but not installed."""
    for what, given, known in (("peer", peers, PEERS), ("row", only or [], [case.name for case in CASES])):
        if unknown := [name for name in given if name not in known]:
            raise typer.BadParameter(f"there is no {what} {', '.join(unknown)}: choose from {', '.join(known)}.")
    if {"torch", *ON_GPU} & set(peers) and find_spec("torch") is None:
        raise typer.BadParameter("PyTorch is not installed: pip install torch, or give --peers reference.")


def show(console: Console, rows: list[dict[str, Any]], peer: str) -> None:
    """Print the rows against one peer, and their geometric means."""
    console.print(comparison_table(rows, peer))
    for name, mean in geometric_means(rows):
        console.print(f"{name}: geometric mean {mean:.2f}", highlight=False)


def wanted(case: Case, peer: str, gpu: bool, tf32: bool) -> bool:
    """Return whether a case is worth measuring against this peer."""
    if (peer == "torch-graphs" and case.kind != "captured_step") or (peer == "numpy" and case.kind == "captured_step"):
        return False
    if (case.large and not gpu) or (peer in SLOW and not SLOW[peer](case)):
        return False
    return not tf32 or (
        case.kind in ("conv", "step", "captured_step", "epoch") and case.dtype != "float64"
    )  # TF32 affects only these


def compare(
    case: Case, ours: Xpconv, contestant: Any, peer: str, *, tf32: bool, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Check that both agree, then time every pass.

    Given the peak `rates` of a GPU, also return the fraction of them that each pass reaches.
    """
    passes, check = ours.prepare(case)
    peer_passes, peer_check = contestant.prepare(case)
    norm, limit = (
        (np.linalg.norm, AGREE_STEP_TF32 if tf32 else AGREE_STEP)
        if case.kind in ("step", "epoch")
        else (_max_abs, AGREE["tf32" if tf32 else case.dtype])
    )
    difference = max(
        (float(norm(a - b) / max(norm(b), 1e-30)) for a, b in zip(check(), peer_check(), strict=True)), default=0.0
    )
    if difference > limit:
        versus = f"{case.name}: xpconv and {peer}{' with TF32' * tf32}"
        raise DisagreementError(f"{versus} differ by {difference:.1e}, more than {limit:g} (relative)")
    rows = []
    measure = device.device_ms if rates else host_ms
    for name in (name for name in passes if name != "check"):
        our_times, peer_times = (
            (repeated(passes[name], 20, measure), repeated(peer_passes[name]))
            if peer in SLOW
            else interleaved(passes[name], peer_passes[name], measure=measure)
        )
        (best, middle), (peer_best, peer_middle) = summary(our_times), summary(peer_times)
        rows.append(
            {
                "name": case.name,
                "pass": name,
                "dtype": case.dtype,
                "peer": peer,
                "tf32": tf32,
                "ours_ms": round(best, 4),
                "peer_ms": round(peer_best, 4),
                "ratio": round(peer_best / best, 3),
                "ours_median_ms": round(middle, 4),
                "peer_median_ms": round(peer_middle, 4),
                "max_rel_difference": difference,
            }
        )
        if rates:
            rows[-1].update(device.rate_fractions(case, name, best, tf32, rates))
        if peer == "torch-cuda" and case.kind == "step":
            rows[-1].update(device.launches_and_memory(passes[name], peer_passes[name], ours.peak, contestant.peak))
    return rows


def _max_abs(a: np.ndarray) -> float:
    return float(np.max(np.abs(a)))


def comparison_table(rows: list[dict[str, Any]], peer: str) -> Table:
    """Return the rows against one peer as a table."""
    result = Table("row", "pass", "dtype", title=f"best times in ms (medians), and ratio = {peer} / xpconv")
    for heading in ("xpconv", peer, "ratio", "difference"):
        result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(
            row["name"],
            row["pass"],
            row["dtype"],
            f"{row['ours_ms']:.2f} ({row['ours_median_ms']:.2f})",
            f"{row['peer_ms']:.2f} ({row['peer_median_ms']:.2f})",
            f"{row['ratio']:.2f}",
            f"{row['max_rel_difference']:.0e}",
        )
    return result


def geometric_means(rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Return the geometric mean of the ratios for each group and pass; all rows are against one peer."""
    result = []
    for group, names in GROUPS.items():
        for name in ("forward", "forward+backward"):
            kinds = (name, "update", "step") if name == "forward+backward" else (name,)
            ratios = [row["ratio"] for row in rows if row["name"] in names and row["pass"] in kinds]
            if ratios:
                result.append((f"{group}, {name}", exp(sum(map(log, ratios)) / len(ratios))))
    return result


def machine() -> dict[str, str]:
    """Describe the processor, the operating system and NumPy's BLAS."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "blas": ", ".join(blas_kernels()),
    }


def blas_kernels() -> list[str]:
    """Return NumPy's BLAS libraries and the kernels they chose, such as ``openblas 0.3.31 Haswell``."""
    from threadpoolctl import threadpool_info

    return [
        f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}".strip()
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries measured."""
    found = {"python": platform.python_version()}
    for package in ("xpconv", "numpy", "torch", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit measured, with ``-dirty`` if the working tree has changes."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    typer.run(main)
