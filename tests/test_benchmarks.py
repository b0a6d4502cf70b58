"""The benchmarks: the work their cases count, and the pages written from their results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from benchmarks import __main__ as benchmark
from benchmarks import prove_gpu
from benchmarks.__main__ import CASES, geometric_means, wanted
from benchmarks.device import rate_fractions
from benchmarks.prove_gpu import Check
from benchmarks.report import STEP_AIMS, page

ROOT = Path(__file__).parents[1]
CASE = {case.name: case for case in CASES}


@pytest.mark.parametrize(("results", "written"), [("cpu.json", "benchmarks.md"), ("gpu.json", "benchmarks_gpu.md")])
def test_each_page_is_generated_from_its_results(results, written):
    found = json.loads((ROOT / "benchmarks/results" / results).read_text())
    text = page(found)
    assert text == (ROOT / "docs" / written).read_text()
    assert all(f"| {row['name']} | {row['pass']} |" in text for row in found["rows"])


def test_the_readme_has_the_measured_ratios_of_the_gpu():
    rows = json.loads((ROOT / "benchmarks/results/gpu.json").read_text())["rows"]
    readme = (ROOT / "README.md").read_text()
    plain, tf32 = ([row for row in rows if row["peer"] == "torch-cuda" and row["tf32"] == on] for on in (False, True))
    means, means_tf32 = dict(geometric_means(plain)), dict(geometric_means(tf32))
    for name, mean in means.items():
        ratios = [f"{mean:.2f}", f"{means_tf32[name]:.2f}" if name in means_tf32 else ""]
        assert f" | {' | '.join(ratios)} |".replace("  ", " ") in readme
    for name in ("three-layer step", "six-conv step", "six-conv step, batch 512"):
        one, other = (next(row for row in found if row["name"] == name) for found in (plain, tf32))
        assert f": {one['ours_ms']:.1f} ms" in readme
        assert f" | {one['ratio']:.2f} | {other['ratio']:.2f} |" in readme


def test_the_page_compares_ratios_across_blas_kernels():
    def result(blas, ratio):
        row = {
            "name": "c64",
            "pass": "forward",
            "dtype": "float32",
            "peer": "torch",
            "ours_ms": 1,
            "peer_ms": ratio,
            "ratio": ratio,
            "ours_median_ms": 1,
            "peer_median_ms": ratio,
        }
        return {
            "rows": [row],
            "machine": {"blas": blas, "cpu": "a CPU", "system": "Linux"},
            "versions": {},
            "threads": 2,
            "commit": "c",
            "date": "2026-01-01",
        }

    text = page(result("first", 0.5), result("second", 0.75))
    assert "| row | pass | first | second |" in text
    assert "| c64 | forward | 0.50 | 0.75 |" in text
    assert "| **conv, forward** |  | 0.50 | 0.75 |" in text


def test_flops_and_memory_traffic_follow_the_formulas():
    forward = 2 * 64 * 64 * 32 * 32 * 64 * 9
    assert CASE["c64"].flops("forward") == forward
    assert CASE["c64"].flops("forward+backward") == 3 * forward
    images = 4 * 64 * 64 * 32 * 32
    assert CASE["max pool 2x2/2"].traffic("forward") == images + images // 4
    assert CASE["batch norm"].traffic("forward+backward") == 5 * images
    assert CASE["softmax loss"].traffic("forward+backward") == 2 * 4 * 4096 * 1000
    assert CASE["Adam"].traffic("update") == 7 * 4 * 4_000_000
    assert CASE["three-layer step"].flops("step") == CASE["three-layer step"].traffic("step") == 0


def test_rate_fractions_are_work_per_time_over_the_gpus_rate():
    rates = {"float32_tflops": 50.0, "tf32_tflops": 400.0, "copy_gb_s": 4000.0}
    assert rate_fractions(CASE["c64"], "forward", 0.1, False, rates) == {
        "share_of_products": pytest.approx(0.966, abs=1e-3)
    }
    assert rate_fractions(CASE["c64"], "forward", 0.1, True, rates) == {
        "share_of_products": pytest.approx(0.121, abs=1e-3)
    }
    assert rate_fractions(CASE["Adam"], "update", 0.1, False, rates) == {"share_of_copying": pytest.approx(0.28)}
    assert rate_fractions(CASE["seed"], "forward", 0.1, False, rates) == {}


def test_large_cases_run_only_on_gpus_and_tf32_only_with_products():
    assert not any(wanted(case, "torch", False, False) for case in CASES if case.large)
    assert [case.name for case in CASES if wanted(case, "reference", False, False)] == ["seed", "course pool"]
    assert {case.kind for case in CASES if wanted(case, "torch-cuda", True, True)} == {
        *("conv", "step", "captured_step", "epoch")
    }
    assert {case.kind for case in CASES if wanted(case, "torch-graphs", True, False)} == {"captured_step"}
    assert {case.name for case in CASES if wanted(case, "numpy", True, False)} == {
        "three-layer step, batch 1024",
        "six-conv step, batch 512",
    }


def test_the_gpu_page_shows_aims_rate_fractions_launches_and_memory():
    def row(name, passes, peer="torch-cuda", ours=1.0, theirs=1.0, **more):
        return {
            "name": name,
            "pass": passes,
            "dtype": "float32",
            "peer": peer,
            "tf32": False,
            "ours_ms": ours,
            "peer_ms": theirs,
            "ratio": theirs / ours,
            "ours_median_ms": ours,
            "peer_median_ms": theirs,
            **more,
        }

    rows = [
        row("c64", "forward+backward", ours=2.0, share_of_products=0.4),
        row("Adam", "update", theirs=0.5),
        row("c64", "forward+backward", ours=0.5, tf32=True, share_of_products=0.1),
        row(
            "three-layer step",
            "step",
            theirs=1.5,
            ours_launches=40,
            peer_launches=90,
            ours_peak_mib=9.5,
            peer_peak_mib=12.0,
        ),
        row("six-conv step, batch 512", "step", peer="numpy", theirs=250.0),
    ]
    text = page(
        {
            "machine": {"cpu": "A CPU", "system": "Linux", "blas": "openblas"},
            "threads": 16,
            "date": "2030-01-01T00:00",
            "commit": "abc",
            "versions": {"cupy-cuda13x": "14.2.0"},
            "rows": rows,
            "card": {
                "name": "A GPU",
                "memory": "9 GiB",
                "processors": "8",
                "clock": "1 GHz",
                "driver": "580",
                "cuda_of_driver": "13.0",
                "cuda": "13.2",
            },
            "rates": {"float32_tflops": 50.0, "tf32_tflops": 400.0, "copy_gb_s": 4000.0},
        }
    )
    assert "GPU: A GPU, 9 GiB, 8 multiprocessors at up to 1 GHz, driver 580 (CUDA 13.0), CUDA 13.2." in text
    assert "50 TFLOP/s for float32 products" in text
    assert "| a step of ThreeLayerConvNet at batch 50, PyTorch's time over ours | 1 | 1.50 | holds |" in text
    assert "| convolutions, forward and backward, geometric mean | 0.4 | 0.50 | holds |" in text
    assert "the lower geometric mean of forward and forward+backward | 0.8 | 0.50 | falls short |" in text
    assert "NumPy's time over ours | 100 | 250.00 | holds |" in text
    assert "Slower than PyTorch: Adam, update (0.50); c64, forward+backward (0.50)." in text
    shapes = "64×64×32×32, w 64×64×3×3, padding 1"
    assert f"| c64 | forward+backward | float32 | {shapes} | 2.00 (2.00) | 1.00 (1.00) | 0.50 | 40% |" in text
    assert "| torch-cuda / xpconv: above 1, xpconv is faster |" in text
    assert "| three-layer step | step | float32 | 50×3×32×32 |" in text
    assert "| 1.50 |  | 40 / 90 | 9.5 / 12 |" in text
    assert "## Against PyTorch on the same GPU, with TF32 on both sides" in text
    assert "batch 512, PyTorch's time" not in text  # not measured, so not listed
    assert geometric_means(rows[:1]) == [("conv, forward+backward", pytest.approx(0.5))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"peers": "torch,tensorflow"},
            "there is no peer tensorflow: choose from torch, torch-cuda, torch-graphs, reference, numpy",
        ),
        ({"peers": "reference", "only": ["c64", "nope"]}, "there is no row nope: choose from seed, three, "),
        ({"peers": "torch"}, "PyTorch is not installed: pip install torch, or give --peers reference"),
    ],
)
def test_unusable_peers_and_rows_are_refused_before_anything_runs(monkeypatch, options, message):
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    with pytest.raises(typer.BadParameter, match=message):
        benchmark.main(**{"only": None, **options})


@pytest.mark.parametrize("names", [["a.json", "b.json"], ["page.md"], []])
def test_the_report_never_overwrites_a_result_file(tmp_path, names):
    (tmp_path / "b.json").write_text("results")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.report", *(str(tmp_path / name) for name in names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "expected RESULT.json ... PAGE.md" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]
    assert (tmp_path / "b.json").read_text() == "results"


def test_a_gpu_is_proven_by_checks_whose_failures_are_named(tmp_path, monkeypatch, capsys):
    first, second = (
        Check(name, (sys.executable, "-c", code), 60) for name, code in [("one", "print('2 passed')"), ("two", "1 / 0")]
    )
    third = Check("three", (), 60, obstacle="PyTorch is not installed")
    rows = [
        {"peer": peer, "name": name, "pass": "step", "tf32": False, "ratio": aim + 0.5, "ours_ms": 3.0}
        for (peer, name), aim in STEP_AIMS.items()
    ]
    rows.append({**rows[-1], "name": "six-conv step, batch 512, captured, mixed", "ours_ms": 1.0})
    monkeypatch.setattr(prove_gpu, "checks", lambda results: [first, second, third])
    (tmp_path / "benchmark.json").write_text(json.dumps({"rows": rows}))
    assert prove_gpu.main(str(tmp_path)) == 1
    assert capsys.readouterr().out.startswith("one: passed\ntwo: FAILED\nthree: PyTorch is not installed\n")
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert [result.get("last_line") for result in proof["checks"]] == [
        "2 passed",
        "ZeroDivisionError: division by zero",
        None,
    ]
    assert all(aim["holds"] for aim in proof["aims"])
    assert len(proof["aims"]) == len(STEP_AIMS) + 1
    assert proof["aims"][-1] == {
        "row": "six-conv step, batch 512, captured, mixed",
        "peer": "float32",
        "aim": 2.5,
        "reached": 3.0,
        "holds": True,
    }
    assert "ZeroDivisionError" in (tmp_path / "proof.log").read_text()


def test_the_commands_that_prove_a_gpu_exist(tmp_path):
    commands = [check.command for check in prove_gpu.checks(tmp_path / "benchmark.json")]
    assert {name for _, name in STEP_AIMS} <= {case.name for case in CASES}
    assert {name for _, name in STEP_AIMS} <= {word for command in commands for word in command}
    trainings = [command for command in commands if "benchmarks.airbench" in command]
    assert [command[3:6] for command in trainings] == [
        ("--tf32", "--min-accuracy", "0.905"),
        ("--precision", "mixed", "--tf32"),
    ]
    assert str(tmp_path / "mixed.json") in trainings[1]


def test_the_rows_that_agree_are_written_before_the_error_names_the_others(tmp_path, monkeypatch):
    measured = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())["rows"]

    def compare(case, *arguments, **options):
        if case.name == "course pool":
            raise benchmark.DisagreementError("course pool differs")
        return [row for row in measured if row["name"] == case.name]

    monkeypatch.setattr(benchmark, "compare", compare)
    with pytest.raises(SystemExit, match="course pool differs"):
        benchmark.main("numpy", "reference", ["course pool", "seed"], tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())
    assert {row["name"] for row in found["rows"]} == {"seed"}


def test_results_that_differ_are_not_timed(monkeypatch):
    monkeypatch.setitem(benchmark.AGREE, "float32", -1.0)
    ours = benchmark.Xpconv("numpy")
    with pytest.raises(benchmark.DisagreementError, match=r"gelu: xpconv and numpy differ by \S+, more than -1"):
        benchmark.compare(CASE["gelu"], ours, ours, "numpy", tf32=False, rates={})
