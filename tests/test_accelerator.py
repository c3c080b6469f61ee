"""The prepared measurement for an accelerator: what it counts, keeps and says; its parts at the smallest size."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.accelerator import __main__ as accelerator
from experiments.accelerator.correctness import _distance
from experiments.accelerator.counts import kernels
from experiments.accelerator.record import Record, read
from experiments.accelerator.report import headline

# As XLA writes programs for a GPU: a convolution and its two gradients by cuDNN, a fused product, a branch.
GPU = """
%branch_small (p: f32[4]) -> f32[4] {
  ROOT %small.1 = f32[4]{0} fusion(%p), kind=kLoop, calls=%nothing
}
%branch_large (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %large.1 = f32[4000]{0} fusion(%p), kind=kLoop, calls=%nothing
  ROOT %large.2 = f32[4]{0} fusion(%large.1), kind=kLoop, calls=%nothing
}
%gemm_fusion_dot_computation (a: bf16[10,8], b: bf16[8,6]) -> bf16[10,6] {
  %a = bf16[10,8]{1,0} parameter(0)
  %b = bf16[8,6]{1,0} parameter(1)
  ROOT %dot.1 = bf16[10,6]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
ENTRY %main (x: f32[1,8,8,3], w: f32[5,3,3,3], g: f32[1,8,8,5], which: pred[]) -> f32[4] {
  %x = f32[1,8,8,3]{3,2,1,0} parameter(0)
  %w = f32[5,3,3,3]{3,2,1,0} parameter(1)
  %g = f32[1,8,8,5]{3,2,1,0} parameter(2)
  %which = pred[] parameter(3)
  %conv.1 = (f32[1,8,8,5]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/stem/conv"}
  %conv.2 = (f32[1,8,8,3]{3,2,1,0}, u8[0]{0}) custom-call(%g, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %conv.3 = (f32[5,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%x, %g), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %a = bf16[10,8]{1,0} constant(0)
  %b = bf16[8,6]{1,0} constant(0)
  %gemm.1 = bf16[10,6]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm_fusion_dot_computation
  ROOT %choice = f32[4]{0} conditional(%which, %x, %x), true_computation=%branch_small, false_computation=%branch_large
}
"""


def test_bytes_and_flop_of_a_program_for_a_gpu():
    found = {kernel.name: kernel for kernel in kernels(GPU)}
    convolution = 2 * 8 * 8 * 5 * 3 * 3 * 3
    assert {name: found[name].flop for name in ("conv.1", "conv.2", "conv.3")} == dict.fromkeys(
        ("conv.1", "conv.2", "conv.3"), convolution
    )
    assert found["conv.1"].bytes == 4 * (8 * 8 * 3 + 5 * 27 + 8 * 8 * 5) and found["conv.1"].what == "jit(f)/stem/conv"
    assert found["gemm.1"].flop == 2 * 10 * 8 * 6 and found["gemm.1"].bytes == 2 * (80 + 48 + 60)
    assert "small.1" in found and "large.1" not in found  # of a branch the cheaper side


def test_counts_of_a_compiled_program_here():
    def program(x, kernel, matrix):
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y, jax.lax.fori_loop(0, 7, lambda _, m: m @ matrix, matrix)

    shapes = (1, 16, 16, 3), (3, 3, 3, 8), (32, 32)
    text = jax.jit(program).lower(*(jnp.zeros(shape) for shape in shapes)).compile().as_text()
    assert sum(k.flop * k.times for k in kernels(text)) == 2 * 8 * 8 * 8 * 27 + 7 * 2 * 32**3
    assert sum(k.bytes * k.times for k in kernels(text)) >= 4 * (16 * 16 * 3 + 3 * 3 * 3 * 8 + 7 * 3 * 32 * 32)


def test_what_was_found_is_on_disk_after_every_row(tmp_path):
    record = Record(tmp_path / "part.json", seconds=60)
    assert 59 < record.left() <= 60 and read(tmp_path / "part.json")["status"] == "running"
    record.row("streams", streams=1, value=2.5)
    record.note("said")
    there = read(tmp_path / "part.json")
    assert there["rows"] == {"streams": [{"streams": 1, "value": 2.5}]} and there["notes"] == ["said"]
    record.write("finished")
    assert read(tmp_path / "part.json")["status"] == "finished" and [p.name for p in tmp_path.iterdir()] == [
        "part.json"
    ]


def test_distances_see_what_is_wrong():
    values = np.array([3.0, 4.0])
    assert _distance(values, values) == 0
    assert _distance(values + [0, 0.5], values) == pytest.approx(0.1)
    assert _distance(values * np.nan, values) == np.inf
    assert _distance(values, np.zeros(2)) == 5  # nothing should have moved, and it did


def test_the_headline_compares_one_stream_and_many_with_the_fastest_of_pytorch():
    rates = {"of the product": 0.5, "of the copy": 0.25}
    streams = [
        {"precision": "float32", "streams": n, "ms/image": ms, "images/s": 1e3 / ms, **rates}
        for n, ms in ((64, 4.0), (1, 10.0), (8, 5.0))  # in the order in which they were measured
    ]
    theirs = [
        {"pytorch": name, "precision": "float32", "ms/image": ms}
        for name, ms in (("eager", 80.0), ("compiled", 40.0), ("compiled, one CUDA graph", 30.0))
    ]
    said = headline({"streams": streams, "pytorch": theirs, "correctness": [{"equal": "yes"}, {"equal": "NO"}]})
    assert "1 of 2" in said and "10 ms an image with 1 stream, 250 images a second with 64" in said
    assert "eager, float32: 80 ms an image; that is 8 with 1, 20 with 64 times ours" in said
    assert "one CUDA graph, float32: 30 ms an image; that is 3 with 1, 7.5 with 64 times ours" in said
    assert headline({}) == "Nothing has been timed yet."


def measured(out, *arguments):
    command = [sys.executable, "-m", "experiments.accelerator", "--small", "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900).stdout


@pytest.mark.slow
def test_a_part_and_its_report(tmp_path, capsys):
    said = measured(tmp_path, "--parts", "views", "--minutes", "5")
    record = read(tmp_path / "views.json")
    assert record["status"] == "finished", said
    assert {row["views"] for row in record["rows"]["views"]} == {"batch", "loop", "map"}
    accelerator.main(["--report", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "## views" in printed and printed.strip() in said


@pytest.mark.slow
def test_a_part_that_takes_too_long_keeps_what_it_has(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "GRACE", 0.0)
    accelerator.main(["--small", "--out", str(tmp_path), "--parts", "streams", "--minutes", str(4 / 60)])
    assert "streams ended early: out of time" in capsys.readouterr().out
    assert read(tmp_path / "streams.json")["status"] == "running"


@pytest.mark.slow
def test_everything_small(tmp_path):
    said = measured(tmp_path, "--minutes", "10")
    for part in accelerator.PARTS:
        there = read(tmp_path / f"{part}.json")
        assert there["status"] == "finished", (part, said, (tmp_path / f"{part}.log").read_text())
    expensive = [row for row in read(tmp_path / "profile.json")["rows"]["kernels"] if row["streams"] == 1]
    assert len(expensive) == 10 and any(row["GFLOP"] > 0 for row in expensive)
    assert all(row["MB"] > 0 and row["ms/step"] > 0 for row in expensive)
    assert [row["ms/step"] for row in expensive] == sorted((row["ms/step"] for row in expensive), reverse=True)
    checked = read(tmp_path / "correctness.json")["rows"]["correctness"]
    assert {row["equal"] for row in checked} == {"yes"} and len(checked) == 6
    rows = read(tmp_path / "streams.json")["rows"]
    assert {(row["precision"], row["streams"]) for row in rows["streams"]} == {
        (precision, n) for precision in ("float32", "bfloat16") for n in (1, 2)
    }
    assert all(row["images/s"] > 0 and row["GFLOP/image"] > 0 and row["of the copy"] > 0 for row in rows["streams"])
    assert len(read(tmp_path / "files.json")["rows"]["files"]) == 3
    assert read(tmp_path / "volume.json")["rows"]["volume"]
    with Image.open(tmp_path / "report.png") as figure:
        figure.load()
        assert figure.format == "PNG" and figure.size[0] > 600
    assert "images a second" in (tmp_path / "report.md").read_text()
