"""`jaxtta adapt` as a user runs it: what is written, domains, lists, options, and what becomes of a stopped run."""

import functools
import itertools
import json
import os

import numpy as np
import pytest
from folders import (
    dataset,
    mixed,
    photograph,
    pixels,
    record,
    refused,
    same_pictures,
    save,
    source_model,
    succeeded,
    table,
    timeless,
)
from toys import has_state, info_of

from jaxtta import metrics
from jaxtta.data.overlays import shown_size
from jaxtta.methods import METHODS
from jaxtta.objectives import OBJECTIVES
from jaxtta.runs import folder as run_folder
from jaxtta.runs import options as options_module
from jaxtta.runs import stream, writing
from jaxtta.written import LIST

pytest_plugins = ("command_line",)

# The same options wherever a method runs, so that it is compiled once.
GRATA = ("--method", "grata", "--set", "learning_rate=0.01")
TENT = ("--method", "tent", "--set", "learning_rate=0.05")
# Methods whose folders are looked at; those of the others with -m slow.
WHOLE = ("tent",)
TEXTS = ("domain", "name", "event")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Checkpoints and data that no test changes."""
    root = tmp_path_factory.mktemp("adapt")
    source_model(root / "nested")
    source_model(root / "exclusive", activation="softmax")
    source_model(root / "valued", activation="softmax", values=(7, 40, 900))
    source_model(root / "bare", heads=("segmentation",))
    dataset(root / "north", 3)
    dataset(root / "south", 2, seed=50)
    dataset(root / "classes", 3, values=(0, 1, 2))
    root.joinpath("sizes.json").write_text(json.dumps(mixed(root / "mixed")))
    return root


@pytest.fixture
def sizes(place):
    return {name: tuple(size) for name, size in json.loads((place / "sizes.json").read_text()).items()}


def files(out, suffix=".png"):
    """Everything below a folder with this suffix, relative to it."""
    return {p.relative_to(out).with_suffix("").as_posix() for p in out.rglob(f"*{suffix}")}


@pytest.mark.parametrize(  # of a calibrated source does test_calibrate.py
    "method",
    [pytest.param(name, marks=() if name in WHOLE else pytest.mark.slow) for name in METHODS if name != "calibrated"],
)
def test_every_method_writes_a_folder_of_mixed_images(command, place, sizes, tmp_path, method):
    out = tmp_path / "out"
    folder = place / "mixed"
    options = {"grata": GRATA, "tent": TENT}.get(method, ("--method", method))
    call = ["adapt", "--source", place / "nested", *options, "--images", folder / "images"]
    said = succeeded(command(*call, "--masks", folder / "masks", "--out", out))
    assert "Dice" in said.out and str(out) in said.out
    assert files(out) == {f"{kind}/{name}" for kind in ("masks", "overlays") for name in sizes}
    for name, size in sizes.items():
        mask = pixels(out / "masks" / f"{name}.png")
        assert mask.shape == size and set(np.unique(mask)) <= {0, 128, 255}
        shown, overlay = shown_size(*size), pixels(out / "overlays" / f"{name}.png").shape
        assert overlay[1:] == (shown[1], 3) and overlay[0] > shown[0]  # with a legend
    rows = table(out)
    assert [row["name"] for row in rows] == list(sizes)
    assert [(int(row["height"]), int(row["width"])) for row in rows] == list(sizes.values())
    columns = {"domain", "name", "height", "width", "seconds", "skipped", "event", "dice"}
    columns |= {"moved", "agreement"} if has_state(method) else set()
    columns |= {f"{m}_{c}" for m in ("dice", "asd", "assd", "hd95") for c in ("disc", "cup")}
    assert set(rows[0]) == columns | info_of(method)
    numbers = [{k: float(v) for k, v in row.items() if k not in ("domain", "name", "event")} for row in rows]
    assert all(row["skipped"] == 0 and row["seconds"] > 0 for row in numbers)
    if method == "grata":
        assert all(-1 <= row["cosine"] <= 1 and 0 <= row["rate_factor"] <= 1 for row in numbers)
        assert len({row["cosine"] for row in numbers}) == len(numbers)


def test_run_json_tells_everything_needed_to_repeat_the_run(command, place, tmp_path):
    out = tmp_path / "out"
    arguments = [*GRATA, "rate=quadratic", "--seed", 5, "--quiet"]
    folder = place / "north"
    succeeded(command("adapt", "--source", place / "nested", "--images", folder / "images", "--out", out, *arguments))
    run = record(out)
    assert run["status"] == "finished"
    assert (run["method"], run["seed"], run["repeat"], run["episodic"]) == ("grata", 5, 1, False)
    assert run["settings"] == {"learning_rate": "0.01", "rate": "quadratic"}
    assert run["source_sha256"] == json.loads((place / "nested" / "manifest.json").read_text())["sha256"]
    assert {"jaxtta", "python", "jax", "jaxlib", "numpy"} <= set(run["versions"])
    assert len(run["devices"]) == run["places"] == 1
    assert run["source"] == str(place / "nested") and run["images"] == [str(folder / "images")]
    assert run["bad"] == [] and run["cases"] == ["images/0", "images/1", "images/2"]
    assert run["domains"]["images"]["images"] == 3 and "dice" not in run
    cosines = [float(row["cosine"]) for row in table(out)]
    assert run["domains"]["images"]["cosine"] == pytest.approx(np.mean(cosines))


def test_scores_are_those_of_the_written_masks(command, place, tmp_path):
    out, folder = tmp_path / "out", place / "classes"
    succeeded(
        command("adapt", "--source", place / "exclusive", "--method", "tent", "--images", folder / "images",
                "--masks", folder / "masks", "--out", out)
    )  # fmt: skip
    rows = table(out)
    for row in rows:
        got, truth = (pixels(root / "masks" / f"{row['name']}.png") for root in (out, folder))
        dice = [100 * metrics.dice(got == k, truth == k) for k in (1, 2)]
        np.testing.assert_allclose([float(row["dice_a"]), float(row["dice_b"])], dice, rtol=1e-9)
        assert float(row["dice"]) == pytest.approx(np.nanmean(dice))
        expected = metrics.average_symmetric_surface_distance(got == 1, truth == 1, spacing=1.0)
        np.testing.assert_allclose(float(row["assd_a"]), expected, rtol=1e-9)
        assert "dice_none" not in row
    means = record(out)["domains"]["images"]
    assert means["dice_a"] == pytest.approx(np.mean([float(row["dice_a"]) for row in rows]))
    assert record(out)["dice"] == pytest.approx((means["dice_a"] + means["dice_b"]) / 2)


def test_masks_have_the_values_that_the_source_was_trained_on(command, place, tmp_path):
    out = tmp_path / "out"
    images = place / "classes" / "images"
    arguments = ["--method", "source", "--images", images, "--out", out, "--no-overlays", "--probabilities"]
    succeeded(command("adapt", "--source", place / "valued", *arguments))
    masks = [pixels(path) for path in sorted((out / "masks").glob("*.png"))]
    assert set(np.unique(np.concatenate([mask.ravel() for mask in masks]))) <= {7, 40, 900}
    assert not (out / "overlays").exists()
    assert {p.name for p in (out / "probabilities").iterdir()} == {f"{i}_{c}.png" for i in range(3) for c in "ab"}
    for i, mask in enumerate(masks):
        a, b = (pixels(out / "probabilities" / f"{i}_{c}.png") for c in "ab")
        assert a.dtype == np.uint16 and a.shape == mask.shape
        first = (a > b) & (a > 65535 - a.astype(np.int64) - b)
        assert np.all(mask[first] == 40)
        assert np.all(a[mask == 40] >= 65535 // 3)


def test_each_domain_starts_from_the_source(command, place, tmp_path):
    """TENT draws nothing, so the second of two domains is the same as that domain alone."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    data = ["--images", place / "south" / "images", "--masks", place / "south" / "masks"]
    arguments = ["adapt", "--source", place / "nested", *TENT]
    joined = ["--images", place / "north/images", place / "south/images", "--masks", place / "north/masks"]
    said = succeeded(command(*arguments, *joined, place / "south/masks", "--out", both))
    assert "mean of domains" in said.out
    succeeded(command(*arguments, *data, "--out", alone))
    rows = table(both)
    assert [row["domain"] for row in rows] == ["north"] * 3 + ["south"] * 2
    second = [{k: v for k, v in row.items() if k != "domain"} for row in timeless(rows)[3:]]
    first = [{k: v for k, v in row.items() if k != "domain"} for row in timeless(table(alone))]
    assert second == first
    assert same_pictures(both / "south", alone) == 2
    expected = {"north", "south", "predictions.csv", "report.html", "run.json", LIST}
    assert {p.name for p in both.iterdir()} == expected
    run = record(both)
    assert list(run["domains"]) == ["north", "south"] and run["domains"]["south"]["images"] == 2
    # Three images here and two there weigh the same.
    assert run["dice"] == pytest.approx(np.mean([run["domains"][name]["dice"] for name in ("north", "south")]))


def test_a_list_names_domains_and_masks(command, place, tmp_path):
    lines = ["image,mask,domain"]
    for k, i in itertools.product(("north", "south"), range(2)):
        lines.append(f"{k}/images/{i}.png,{k}/masks/{i}.png,{'left' if i else 'right'}")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    arguments = ["--method", "source", "--images", tmp_path / "all.csv", "--root", place, "--out", out]
    succeeded(command("adapt", "--source", place / "nested", *arguments))
    rows = table(out)
    assert [row["domain"] for row in rows] == ["right", "right", "left", "left"]
    assert files(out / "left" / "masks") == {"north/images/1", "south/images/1"}
    assert all(row["dice"] for row in rows)


def test_a_list_without_masks_is_one_domain_named_after_its_file(command, place, tmp_path):
    (place / "short.csv").write_text("image\nsouth/images/1.png\nsouth/images/0.png\n")
    out = tmp_path / "out"
    arguments = ["--method", "source", "--images", place / "short.csv", "--out", out]
    succeeded(command("adapt", "--source", place / "nested", *arguments))
    rows = table(out)
    assert [row["name"] for row in rows] == ["south/images/1", "south/images/0"]
    assert {row["domain"] for row in rows} == {"short"}
    assert "dice" not in table(out)[0]
    assert files(out / "masks") == {"south/images/0", "south/images/1"}


PREDICT = {"predict": "before"}
SGD = {"optimiser": "sgd", "learning_rate": "0.01", "select": "everything", **PREDICT}
SETTINGS = {
    "grata": {
        "auxiliary": "reconstruction",
        "pseudo": "rotation",
        "rate": "fixed",
        "optimiser": "sgd",
        "learning_rate": "1e-3",
        "select": "encoder.*scale",
        **PREDICT,
    },
    "sar": {"margin": "0.6", "radius": "0.1", "reset": "0", **SGD},
    "cotta": {"threshold": "1", "restore": "0", "teacher_rate": "0.01", **SGD},
}
# What they do to a column of the table.
SEEN = {"grata": ("rate_factor", 1.0), "sar": ("returned", 0.0), "cotta": ("averaged", 1.0)}


@pytest.mark.parametrize(
    "method", ["grata", *(pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS if name != "grata")]
)
def test_settings_reach_the_method_and_count(command, place, tmp_path, method):
    assert set(options_module.method_options(method)) == set(SETTINGS[method])
    arguments = ["adapt", "--source", place / "nested", "--method", method, "--images", place / "south" / "images"]
    pairs = [word for key, value in SETTINGS[method].items() for word in ("--set", f"{key}={value}")]
    succeeded(command(*arguments, "--out", tmp_path / "set", *pairs))
    assert record(tmp_path / "set")["settings"] == SETTINGS[method]
    column, value = SEEN[method]
    assert {float(row[column]) for row in table(tmp_path / "set")} == {value}


def test_the_help_names_every_setting_and_objective(command):
    help_text = command("adapt", "--help").out
    keys = {key for name in METHODS for key in options_module.method_options(name)}
    assert not [word for word in (*keys, *OBJECTIVES) if word not in help_text]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, changes", [(["--episodic"], "later"), pytest.param(["--repeat", "3"], "all", marks=pytest.mark.slow)]
)
def test_episodic_and_repeat_reach_the_method(command, place, tmp_path, arguments, changes):
    call = ["adapt", "--source", place / "nested", *TENT, "--no-overlays"]
    call += ["--images", place / "north" / "images"]
    succeeded(command(*call, "--out", tmp_path / "plain"))
    succeeded(command(*call, *arguments, "--out", tmp_path / "other"))
    plain, other = ([row["loss"] for row in table(tmp_path / name)] for name in ("plain", "other"))
    assert (plain[0] == other[0]) == (changes == "later")
    assert all(a != b for a, b in zip(plain[1:], other[1:]))
    run = record(tmp_path / "other")
    assert (run["episodic"], run["repeat"]) == ((True, 1) if changes == "later" else (False, 3))


@pytest.mark.slow
def test_predicting_before_the_update_is_predicting_with_what_came_before(command, place, tmp_path, optimised):
    """The first image as by its statistics alone; the updates the same, so the losses too."""
    call = ["adapt", "--source", place / "nested", "--probabilities", "--no-overlays"]
    call += ["--images", place / "north" / "images"]
    succeeded(command(*call, "--method", "batch_statistics", "--out", tmp_path / "alone"))
    for when in ("before", "after"):
        succeeded(command(*call, *TENT, f"predict={when}", "--out", tmp_path / when))
    for column in ("loss", "gradient_norm"):
        assert [row[column] for row in table(tmp_path / "before")] == [row[column] for row in table(tmp_path / "after")]
    alone, before, after = (
        [pixels(path).astype(int) for path in sorted((tmp_path / name / "probabilities").glob("*_disc.png"))]
        for name in ("alone", "before", "after")
    )
    apart = [[np.abs(one - other).max() for one, other in zip(own, alone)] for own in (before, after)]
    assert apart[0][0] <= 1 and min(apart[0][1:]) > 100 and min(apart[1]) > 100


def test_one_program_for_a_stream_of_mixed_sizes(command, place, tmp_path, monkeypatch):
    """The step is traced once to check it and once to compile it, whatever the images' sizes and domains."""
    traces = []
    tent = METHODS["tent"]

    @functools.wraps(tent)
    def counted(model, task, **keywords):
        method = tent(model, task, **keywords)

        def step(*arguments):
            traces.append(1)
            return method.step(*arguments)

        return method._replace(step=step)

    monkeypatch.setitem(METHODS, "tent", counted)
    images = [place / "mixed" / "images", place / "south" / "images", place / "north" / "images"]
    call = ["adapt", "--source", place / "nested", *TENT, "--images", *images, "--out", tmp_path / "out"]
    succeeded(command(*call))
    assert len(table(tmp_path / "out")) == 9
    assert len(traces) == 1


@pytest.mark.slow
def test_same_seed_same_result(command, place, tmp_path):
    call = ["adapt", "--source", place / "nested", *GRATA, "--images", place / "south" / "images", "--no-overlays"]
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        succeeded(command(*call, "--seed", seed, "--out", tmp_path / name))
    one, two, three = (timeless(table(tmp_path / name)) for name in ("one", "two", "three"))
    assert one == two
    assert [row["pseudo_loss"] for row in one] != [row["pseudo_loss"] for row in three]


def test_objectives_that_need_a_missing_head_are_refused_before_anything_is_written(command, place, tmp_path):
    out = tmp_path / "out"
    call = ["adapt", "--source", place / "bare", "--images", place / "south" / "images", "--out", out]
    for key, name in (("auxiliary", "reconstruction"), ("pseudo", "rotation")):
        refused(command(*call, "--set", f"{key}={name}"), f"no {name} head", "segmentation", out=out)
    succeeded(command(*call, "--method", "source"))


def test_a_constant_image_is_predicted_not_adapted_to_and_told_of(command, place, tmp_path):
    save(tmp_path / "images" / "a.png", np.full((20, 18, 3), 90, np.uint8))
    save(tmp_path / "images" / "b.png", photograph(20, 18))
    save(tmp_path / "images" / "c.png", np.full((20, 18, 3), 255, np.uint8))
    save(tmp_path / "images" / "d.png", np.full((20, 18, 3), 0, np.uint8))
    call = ["adapt", "--source", place / "nested", *GRATA, "--images", tmp_path / "images"]
    said = command(*call, "--out", tmp_path / "out")
    assert said.status == 0 and said.err.count("predicted, not adapted to") == 2  # when it begins, not at each image
    assert "noticed by the monitor: constant 3" in said.out
    rows = table(tmp_path / "out")
    assert [row["event"] for row in rows] == ["constant", "none", "constant", "constant"]
    assert [float(row["skipped"]) for row in rows] == [1, 0, 1, 1]
    assert record(tmp_path / "out")["events"] == {"constant": ["images/a", "images/c", "images/d"]}
    assert all(np.isfinite(float(v)) for row in rows for k, v in row.items() if k not in ("domain", "name", "event"))
    assert record(tmp_path / "out")["status"] == "finished"


def test_a_run_that_skipped_every_update_ends_with_status_2_when_all_is_written(command, place, tmp_path):
    save(tmp_path / "images" / "a.png", np.full((20, 18, 3), 90, np.uint8))
    call = ["adapt", "--source", place / "nested", *TENT, "--images", tmp_path / "images", "--out", tmp_path / "out"]
    for more in ([], ["--resume"]):
        said = command(*call, "--quiet", *more)
        refused(said, tmp_path / "out", "every update was skipped", "constant 1")
    assert record(tmp_path / "out")["status"] == "finished" and files(tmp_path / "out") >= {"masks/a"}


@pytest.mark.slow
def test_without_a_monitor_everything_is_adapted_to_and_nothing_else_changes(command, place, tmp_path, optimised):
    call = ["adapt", "--source", place / "nested", *TENT, "--images", place / "north" / "images"]
    for name, more in (("on", []), ("off", ["--monitor", "off"])):
        succeeded(command(*call, *more, "--out", tmp_path / name))
    on, off = (timeless(table(tmp_path / name)) for name in ("on", "off"))
    assert [{k: v for k, v in row.items() if k in off[0]} for row in on] == off
    assert set(on[0]) - set(off[0]) == {"event", "moved", "agreement"} and "events" not in record(tmp_path / "off")
    assert same_pictures(tmp_path / "on", tmp_path / "off") == 3


def turned(walk, turn, *where, **options):
    for parent, folders, names in walk(*where, **options):
        names.sort(reverse=turn)
        yield parent, folders, names


@pytest.mark.slow
def test_same_bytes_whatever_the_threads_and_the_order_on_disk(command, place, tmp_path, monkeypatch):
    call = ["adapt", "--source", place / "nested", *TENT, "--probabilities"]
    names = sorted((place / "north" / "images").iterdir())
    for out, order, threads in (("one", names, 1), ("two", names[::-1], 7)):
        for path in order:
            save(tmp_path / f"to_{out}" / "images" / path.name, pixels(path))
        monkeypatch.setattr(os, "walk", functools.partial(turned, os.walk, threads > 1))
        monkeypatch.setattr(stream, "READERS", threads)
        monkeypatch.setattr(stream, "FINISHERS", threads)
        succeeded(command(*call, "--images", tmp_path / f"to_{out}" / "images", "--out", tmp_path / out))
        monkeypatch.undo()
    assert timeless(table(tmp_path / "one")) == timeless(table(tmp_path / "two"))
    written = [p.relative_to(tmp_path / "one") for p in sorted((tmp_path / "one").rglob("*.png"))]
    assert len(written) == 3 * 4
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in written)


class Kill:
    """Stops a run after so many images are finished, as Ctrl-C does."""

    def __init__(self, monkeypatch, after):
        self.left, self.finish = after, writing.finish
        monkeypatch.setattr(writing, "finish", self)

    def __call__(self, *arguments, **keywords):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.finish(*arguments, **keywords)


def grata_call(place, out, *more):
    domains = [place / "north", place / "south"]
    data = [*(d / "images" for d in domains)], [*(d / "masks" for d in domains)]
    call = ["adapt", "--source", place / "nested", "--images", *data[0], "--masks", *data[1]]
    return [*call, *GRATA, "--out", out, *more]


@pytest.fixture(scope="module")
def whole(place):
    """Where the run that nobody stops goes; the first test that needs it runs it."""
    return place / "whole"


@pytest.mark.parametrize(
    "after, saving",
    [
        pytest.param(2, True, marks=pytest.mark.slow),
        pytest.param(3, True, marks=pytest.mark.slow),
        pytest.param(4, True, marks=pytest.mark.slow),
        pytest.param(4, False, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_is_resumed_to_the_same_results(command, place, whole, tmp_path, monkeypatch, after, saving):
    out = tmp_path / "out"
    if not whole.exists():
        succeeded(command(*grata_call(place, whole)))
    if saving:
        monkeypatch.setattr(run_folder, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        Kill(patch, after)
        said = command(*grata_call(place, out))
    assert said.status == 130 and "--resume" in said.err
    assert record(out)["status"] == "running"
    assert (out / "resume").is_dir() == saving
    done = len(table(out))
    assert done == after if saving else done <= after
    # Resumed, it computes the images that are left and no other.
    left, finish = [], writing.finish

    def noted(assembly, *arguments, **keywords):
        left.append(assembly.sample.case.name)
        return finish(assembly, *arguments, **keywords)

    monkeypatch.setattr(writing, "finish", noted)
    succeeded(command(*grata_call(place, out, "--resume")))
    assert len(left) == (5 - after if saving else 5)
    assert timeless(table(out)) == timeless(table(whole))
    assert same_pictures(out, whole) == 5 and same_pictures(out, whole, "overlays") == 5
    again, once = record(out), record(whole)
    assert again["status"] == "finished" and again["dice"] == pytest.approx(once["dice"], rel=1e-8)


def test_a_finished_run_is_resumed_without_computing_anything(command, place, tmp_path, monkeypatch):
    out, images = tmp_path / "out", place / "south" / "images"
    call = ["adapt", "--source", place / "nested", *TENT, "--images", images, "--out", out]
    succeeded(command(*call))
    before = (out / "predictions.csv").read_bytes()
    with monkeypatch.context() as patch:
        Kill(patch, 0)
        succeeded(command(*call, "--resume"))
    assert (out / "predictions.csv").read_bytes() == before
    assert record(out)["status"] == "finished"


def unfinished(out):
    """As if the run had been stopped before its end."""
    (out / "run.json").write_text(json.dumps({**record(out), "status": "running"}))


def test_a_last_line_that_was_cut_is_computed_again(command, place, tmp_path):
    call = ["adapt", "--source", place / "nested", "--method", "source", "--images", place / "north" / "images"]
    succeeded(command(*call, "--out", tmp_path / "out"))
    whole = table(tmp_path / "out")
    text = (tmp_path / "out" / "predictions.csv").read_text()
    (tmp_path / "out" / "predictions.csv").write_text(text[:-2])
    unfinished(tmp_path / "out")
    succeeded(command(*call, "--out", tmp_path / "out", "--resume"))
    assert timeless(table(tmp_path / "out")) == timeless(whole)


@pytest.mark.slow
def test_resume_refuses_another_run_and_names_what_differs(command, place, tmp_path):
    out = tmp_path / "out"
    south = ["--images", place / "south" / "images"]

    def call(*more, images=south, source="nested", method="tent"):
        return command("adapt", "--source", place / source, "--method", method, *images, "--out", out, *more)

    succeeded(call())
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    refused(call("--resume", "--seed", 1), "seed")
    refused(call("--resume", "--episodic"), "episodic")
    refused(call("--resume", "--repeat", 2), "repeat")
    refused(call("--resume", "--set", "select=everything"), "settings")
    refused(call("--resume", method="source"), "method")
    refused(call("--resume", source="bare"), "source_sha256")
    refused(call("--resume", images=["--images", place / "north" / "images"]), "cases")
    refused(call("--resume", "--masks", place / "south" / "masks"), "scored")
    refused(call("--resume", "--probabilities"), "probabilities")
    refused(call("--resume", "--overwrite"), "--overwrite and --resume")
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_run_is_replaced_only_with_overwrite_and_then_wholly(command, place, tmp_path):
    out = tmp_path / "out"
    call = ["adapt", "--source", place / "nested", "--method", "source", "--out", out, "--images"]
    succeeded(command(*call, place / "north" / "images"))
    refused(command(*call, place / "south" / "images"), out, "--overwrite", "--resume")
    assert len(table(out)) == 3
    succeeded(command(*call, place / "south" / "images", "--overwrite"))
    assert len(table(out)) == 2 and files(out / "masks") == {"0", "1"}


def test_overwrite_never_removes_what_the_run_reads(command, place, tmp_path):
    """A checkpoint or images inside OUT, as after a training, would be gone before they are used."""
    run = tmp_path / "training"
    source_model(run / "best")
    (run / "run.json").write_text("{}")
    (run / LIST).write_text('"run.json"\n"best/"\n')
    images = place / "south" / "images"
    call = ["adapt", "--source", run / "best", "--method", "source", "--images", images, "--out", run, "--overwrite"]
    refused(command(*call), run / "best", "--overwrite")
    assert (run / "best" / "manifest.json").is_file()
    dataset(run / "data", 1)
    call[call.index(run / "best")], call[call.index(images)] = place / "nested", run / "data" / "images"
    refused(command(*call), run / "data" / "images" / "0.png")


def test_resume_begins_a_run_that_is_not_there(command, place, tmp_path):
    call = ["adapt", "--source", place / "nested", "--method", "source", "--images", place / "south" / "images"]
    succeeded(command(*call, "--out", tmp_path / "new" / "folder", "--resume"))
    assert len(table(tmp_path / "new" / "folder")) == 2


def three_domains(place, out, *more):
    """A run over domains of three, two and four images."""
    folders = [place / name for name in ("north", "south", "mixed")]
    call = ["adapt", "--source", place / "nested", "--images", *(folder / "images" for folder in folders)]
    return [*call, "--masks", *(folder / "masks" for folder in folders), "--out", out, *more]


def same_run(out, expected, count=9):
    """The same rows, seconds aside, within rounding, and the same masks."""
    got, want = timeless(table(out)), timeless(table(expected))
    assert [list(row) for row in got] == [list(row) for row in want]
    for a, b in zip(got, want):
        assert [a.pop(key) for key in TEXTS] == [b.pop(key) for key in TEXTS]
        np.testing.assert_allclose([float(v) for v in a.values()], [float(v) for v in b.values()], 1e-5, 1e-5)
    assert same_pictures(out, expected) == count


@pytest.mark.slow
@pytest.mark.parametrize("method, layout", [(GRATA, (2, 1)), (TENT, (2, 2))])
def test_domains_side_by_side_give_the_same_as_one_after_the_other(command, place, tmp_path, method, layout):
    alone = place / f"alone-{method[1]}"
    if not alone.exists():
        succeeded(command(*three_domains(place, alone, *method)))
    streams, devices = layout
    layout = ("--streams", streams, "--devices", devices)
    succeeded(command(*three_domains(place, tmp_path / "out", *method, *layout)))
    same_run(tmp_path / "out", alone)
    run, once = record(tmp_path / "out"), record(alone)
    assert run["streams"] == streams and len(run["devices"]) == devices and run["places"] == 2
    assert run["dice"] == pytest.approx(once["dice"], rel=1e-5) and run["cases"] == once["cases"]


@pytest.mark.slow
def test_domains_of_a_list_side_by_side(command, place, tmp_path):
    lines = ["image,mask,domain"]
    for k, i in itertools.product(("north", "south"), range(2)):
        lines.append(f"{k}/images/{i}.png,{k}/masks/{i}.png,{'left' if i else 'right'}")
    lines.append("north/images/2.png,north/masks/2.png,right")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    call = ["adapt", "--source", place / "nested", *TENT, "--images", tmp_path / "all.csv", "--root", place]
    succeeded(command(*call, "--out", tmp_path / "one"))
    succeeded(command(*call, "--out", tmp_path / "two", "--streams", 5))
    assert [row["domain"] for row in table(tmp_path / "two")] == ["right"] * 3 + ["left"] * 2
    same_run(tmp_path / "two", tmp_path / "one", 5)
    assert record(tmp_path / "two")["places"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("after, devices", [pytest.param(2, 1, marks=pytest.mark.slow), (6, 2)])
def test_killed_streams_are_resumed_to_the_same_results(command, place, tmp_path, monkeypatch, after, devices):
    layout = (*TENT, "--streams", 2, "--devices", devices)
    out = tmp_path / "out"
    monkeypatch.setattr(run_folder, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        Kill(patch, after)
        assert command(*three_domains(place, out, *layout)).status == 130
    assert record(out)["status"] == "running" and (out / "resume").is_dir()
    left, finish = [], writing.finish

    def noted(assembly, *arguments, **keywords):
        left.append(assembly.sample.case.name)
        return finish(assembly, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "finish", noted)
        succeeded(command(*three_domains(place, out, *layout, "--resume")))
    assert len(left) <= 9 - after + 1  # a tick of two may have been cut in half
    alone = place / "alone-tent"
    if not alone.exists():
        succeeded(command(*three_domains(place, alone, *TENT)))
    same_run(out, alone)
    assert record(out)["status"] == "finished" and not (out / "resume").exists()
    refused(command(*three_domains(place, out, *TENT, "--streams", 3, "--resume")), "streams")


@pytest.mark.slow
def test_precision_reaches_the_network_and_is_one_of_the_choices(command, place, tmp_path):
    call = ["adapt", "--source", place / "nested", *TENT, "--images", place / "south" / "images", "--no-overlays"]
    succeeded(command(*call, "--out", tmp_path / "narrow", "--precision", "bfloat16"))
    succeeded(command(*call, "--out", tmp_path / "plain"))
    assert record(tmp_path / "narrow")["precision"] == "bfloat16"
    narrow, plain = ([float(row["loss"]) for row in table(tmp_path / name)] for name in ("narrow", "plain"))
    assert narrow != plain
    np.testing.assert_allclose(narrow, plain, rtol=0.05)
    said = command(*call, "--out", tmp_path / "none", "--precision", "float8")
    refused(said, "float8", "float32, highest, bfloat16", out=tmp_path / "none")


def test_devices_that_are_not_there_are_refused(command, place, tmp_path):
    call = ["adapt", "--source", place / "nested", *TENT, "--images", place / "south" / "images", "--devices", 99]
    refused(command(*call, "--out", tmp_path / "out"), "99 devices", "1 to 4", out=tmp_path / "out")
