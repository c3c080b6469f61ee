"""Names that file systems allow come into tables and back, and no two of them make one file, on any file system."""

import csv
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from folders import nested_labels, photograph, refused, save, source_model, succeeded

from jaxtta import names
from jaxtta.core import InputError, Task
from jaxtta.data.cases import find_cases
from jaxtta.runs import results

pytest_plugins = ("command_line",)

FUNDUS = np.array((255, 128, 0), np.uint8)
NAMES = [
    "plain", "with blanks  two", " first", "a,b;\"c'", "line\u2028separator", "next\x85line", "form\x0cfeed",
    "two\nlines", "return\r", "bell\x07\x1b[31m", "=cmd()", unicodedata.normalize("NFD", "Müller"), "眼底",
    "x" * 251, "é" * 125, "back\\slash", "no\udcff\udcfeutf8", "#", "nan", "1e5",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint that no test changes."""
    return source_model(tmp_path_factory.mktemp("names") / "source")


def written(folder, *files, masks=True):
    """A folder of small images of these names, and their masks."""
    for file in files:
        save(folder / "images" / f"{file}.png", photograph(20, 24))
        if masks:
            save(folder / "masks" / f"{file}.png", FUNDUS[nested_labels(20, 24)])
    return folder


def rows_of(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_any_name_goes_into_tables_and_back(tmp_path):
    path = tmp_path / "rows.csv"
    results.write_rows(path, [{"domain": name, "name": name, "seconds": 1.5} for name in NAMES])
    assert [row["name"] for row in results.read_rows(path)] == NAMES
    assert [row["domain"] for row in rows_of(path)] == NAMES
    whole = path.read_bytes()
    for cut in range(len(whole) - 60, len(whole)):  # a run killed while it wrote
        path.write_bytes(whole[:cut])
        assert [row["name"] for row in results.read_rows(path)] == NAMES[: whole[:cut].count(b",1.5\r\n")]


def test_any_name_comes_through_a_run(command, source, tmp_path):
    data, out = written(tmp_path / "data", *NAMES), tmp_path / "out"
    call = ["adapt", "--source", source, "--method", "source", "--images", data / "images", "--masks", data / "masks"]
    call += ["--out", out, "--probabilities", "--quiet"]
    succeeded(command(*call))
    assert sorted(row["name"] for row in rows_of(out / "predictions.csv")) == sorted(NAMES)
    told = json.loads((out / "run.json").read_text())
    assert told["status"] == "finished" and len(told["cases"]) == len(NAMES)
    assert len(list((out / "probabilities").iterdir())) == 2 * len(NAMES)
    assert {path.name for path in (out / "masks").iterdir()} == {f"{names.native(name)}.png" for name in NAMES} and len(
        list((out / "overlays").iterdir())
    ) == len(NAMES)
    succeeded(command(*call, "--resume"))


@pytest.mark.slow
def test_without_a_locale(source, tmp_path):
    """The same bytes in tables and files whatever the locale says."""
    data = written(tmp_path / "眼底", "眼", "no\udcffutf8", masks=False)
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "JAX_PLATFORMS": "cpu"}
    call = [sys.executable, "-m", "jaxtta", "adapt", "--source", source, "--method", "source", "--images"]
    for more in ([], ["--resume"]):  # the second compares what it reads with what it finds
        done = subprocess.run(
            [*call, data / "images", "--out", tmp_path / "out", *more], env=environment, capture_output=True,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert {row["name"] for row in rows_of(tmp_path / "out" / "predictions.csv")} == {"眼", "no\udcffutf8"}
    assert (tmp_path / "out" / "masks" / "眼.png").is_file()


def test_a_mask_is_found_in_either_composition(tmp_path):
    for one, other in (("NFD", "NFC"), ("NFC", "NFD")):
        data = tmp_path / one
        save(data / "images" / (unicodedata.normalize(one, "Müller") + ".png"), photograph(9, 9))
        save(data / "masks" / (unicodedata.normalize(other, "Müller") + ".png"), nested_labels(9, 9))
        assert find_cases(data / "images", masks=data / "masks")[0].mask.is_file()


@pytest.mark.parametrize("files", [
    ("A", "a"), ("straße", "STRASSE"), ("Müller", unicodedata.normalize("NFD", "Müller")), ("a", "a.png/b"),
])  # fmt: skip
def test_images_whose_results_would_be_one(command, source, tmp_path, files):
    data, out = written(tmp_path, masks=False), tmp_path / "out"
    save(data / "images" / f"{files[0]}.tif", photograph(9, 9))
    save(data / "images" / f"{files[1]}.png", photograph(9, 9))
    call = ["adapt", "--source", source, "--images", data / "images", "--out", out]
    refused(command(*call), "rename", out=out)


def test_classes_keep_their_maps_apart():
    for wrong in (("a", "a"), ("a", "A"), ("../x", "b"), ("a/b", "c"), ("", "b"), ("..", "b"), ("a_b", "a-b"), (1, 2)):
        with pytest.raises(InputError, match=r"class|name"):
            Task(2, names=wrong)
    whole = {f"{image}_{names.of_class(label)}" for image in ("p1", "p1_left") for label in ("left_kidney", "kidney")}
    assert len(whole) == 4


@pytest.mark.parametrize(
    "domains", [("North", "north"), ("run.json", "b"), ("Predictions.CSV", "b"), (".hidden/..", "b")]
)
def test_domains_that_meet_another_file(command, source, tmp_path, domains):
    written(tmp_path, "0", "1", masks=False)
    rows = [f"images/{number}.png,{domain}" for number, domain in enumerate(domains)]
    (tmp_path / "list.csv").write_text("\n".join(["image,domain", *rows]) + "\n")
    call = ["adapt", "--source", source, "--images", tmp_path / "list.csv", "--out", tmp_path / "out"]
    refused(command(*call), "domain", "give", out=tmp_path / "out")


def test_labels_that_make_one_file(command, source, tmp_path):
    data, other = written(tmp_path, "0"), source_model(tmp_path / "other", seed=1)
    call = ["benchmark", "--images", data / "images", "--masks", data / "masks", "--methods", "batch_statistics"]
    for labels in (("a b", "a+b"), ("A", "a"), ("..", "+"), ("a", "a")):
        pairs = [f"{label}={path}" for label, path in zip(labels, (source, other))]
        refused(command(*call, "--sources", *pairs, "--out", tmp_path / "out"), "source", out=tmp_path / "out")


def test_lists_that_say_something_twice(command, source, tmp_path):
    written(tmp_path, "0", "1")
    out, path = tmp_path / "out", tmp_path / "list.csv"
    call = ["adapt", "--source", source, "--images", path, "--out", out]
    for text, words in (
        ("image,mask,mask\nimages/0.png,masks/0.png,masks/1.png\n", ("column mask twice",)),
        ("image,mask\nimages/0.png,masks/0.png\nimages/1.png,masks/0.png\n", ("1.png", "0.png's too")),
        ("image,mask\nimages/0.png,images/0.png\n", ("0.png's too",)),
        ("image,mask\nimages/0.png,images/../masks/0.png\nimages/1.png,masks/0.png\n", ("1.png", "one of its own")),
        ("image\nimages/\0.png\n", ("NUL",)),
    ):
        path.write_text(text)
        refused(command(*call), *words, out=out)


def test_names_in_lists(tmp_path):
    written(tmp_path, *NAMES, masks=False)
    with open(tmp_path / "list.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([["image"], *([f"images/{name}.png"] for name in NAMES)])
    cases = find_cases(tmp_path / "list.csv")
    assert [case.name for case in cases] == [f"images/{name}" for name in NAMES]
    (tmp_path / "images" / "ü.png".encode("latin-1").decode("utf-8", "surrogateescape")).write_bytes(b"")
    (tmp_path / "latin.csv").write_bytes("image\nimages/ü.png\n".encode("latin-1"))
    assert find_cases(tmp_path / "latin.csv")[0].image.is_file()


@pytest.mark.slow
def test_a_resumed_run_has_the_same_contents(command, source, tmp_path):
    data, out = written(tmp_path, "0", "1"), tmp_path / "out"
    call = [
        "adapt",
        "--source",
        source,
        "--images",
        data / "images",
        "--masks",
        data / "masks",
        "--out",
        out,
        "--quiet",
    ]
    succeeded(command(*call))
    for folder in ("images", "masks"):
        path = data / folder / "1.png"
        before, times = path.read_bytes(), path.stat()
        changed = photograph(20, 24, seed=9) if folder == "images" else FUNDUS[nested_labels(20, 24, seed=9)]
        save(path, changed)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        said = refused(command(*call, "--resume"), "contents", "1: ", "resume with the same")
        assert "0: " not in said.err
        path.write_bytes(before)
    succeeded(command(*call, "--resume"))
    manifest = json.loads((source / "manifest.json").read_text())
    other = source_model(tmp_path / "other", values=(255, 128, 0))
    assert json.loads((other / "manifest.json").read_text())["sha256"] == manifest["sha256"]
    refused(command(*call[:2], other, *call[3:], "--resume"), "another preprocessing")


def test_runs_among_the_images_are_passed_over(command, source, tmp_path):
    images = written(tmp_path, "0", masks=False) / "images"
    call = ["adapt", "--source", source, "--method", "source", "--images", images, "--quiet", "--out"]
    succeeded(command(*call, images / "one"))
    for more in (["two"], ["one", "--resume"]):
        said = command(*call, images / more[0], *more[1:])
        assert said.status == 0 and "one: a run of jaxtta" in said.err
    assert len(rows_of(images / "two" / "predictions.csv")) == 1
    (images / "one" / "run.json").write_text('{"speed": 9}')  # somebody else's
    assert len(find_cases(images)) == 3
