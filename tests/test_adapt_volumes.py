"""`jaxtta adapt` on volumes: masks in their place, what resets the state, streams, resumed runs, tables and maps."""

import functools

import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from folders import pixels, record, refused, succeeded, table, timeless
from scans import SHAPE, anatomy, load_canonical, save_volume, scans, volume_model

from jaxtta import checkpoint, metrics
from jaxtta.core import Output, Task
from jaxtta.data.cases import Case
from jaxtta.data.sample import Assembly
from jaxtta.data.volumes import VolumePreprocessing
from jaxtta.methods import METHODS
from jaxtta.runs import folder as run_folder
from jaxtta.runs import stream as pipeline
from jaxtta.runs import writing

pytest_plugins = ("command_line",)

SOURCE = ("--method", "source", "--no-overlays", "--quiet")
TENT = ("--method", "tent", "--set", "learning_rate=0.05", "optimiser=sgd", "--no-overlays", "--quiet")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Checkpoints and data that no test changes."""
    root = tmp_path_factory.mktemp("volumes")
    volume_model(root / "slices", seed=41)  # predicts neither all nor nothing
    volume_model(root / "windows", (4, 8, 8), activation="softmax", norm="instance", spacing=(3.0, 2.5, 2.2))
    scans(root / "north", ((7, 18, 14), (3, 18, 14), (11, 16, 20)), seed=1)
    scans(root / "south", ((5, 18, 14), (9, 12, 14)), seed=50, axes="RAS", suffix=".nii")
    return root


def adapt(command, source, out, *more, images, masks=()):
    named = ["--images", *images, *(["--masks", *masks] if masks else [])]
    return command("adapt", "--source", source, "--out", out, *named, *more)


def of(place, *names):
    """Images and masks of several folders."""
    return {kind: [place / name / kind for name in names] for kind in ("images", "masks")}


def masks_of(out):
    """Every mask below a run, canonical, by its name."""
    found = {p.relative_to(out).as_posix(): load_canonical(p) for p in sorted(out.rglob("masks/**/*.nii*"))}
    assert found
    return found


def assert_same_masks(got, expected):
    assert got.keys() == expected.keys()
    for name, mask in got.items():
        np.testing.assert_array_equal(mask, expected[name], err_msg=name)


def assert_close_rows(got, expected):
    """The same rows in the same order, seconds and domain aside, within rounding."""
    for one, other in zip(timeless(got), timeless(expected), strict=True):
        assert one.keys() == other.keys() and one["name"] == other["name"]
        numbers = [[float(v) for k, v in row.items() if k not in ("domain", "name", "event")] for row in (one, other)]
        np.testing.assert_allclose(*numbers, 1e-4, 1e-4)


ORIENTATIONS = {
    "lps": {"axes": "LPS", "suffix": ".nii"},
    "ras": {"axes": "RAS", "suffix": ".nii.gz"},
    "permuted": {"axes": "SPL", "suffix": ".nii"},
    "flipped": {"axes": "AIR", "suffix": ".nii.gz"},
    "oblique": {"axes": "LPS", "degrees": 17, "suffix": ".nii.gz"},
    "oblique_permuted": {"axes": "PSR", "degrees": 17, "suffix": ".nii"},
}


@pytest.mark.parametrize("model", ["slices", "windows"])
def test_masks_lie_where_the_images_lie(command, place, tmp_path, model):
    """One volume as six scanners store it: six masks, each on its file's grid, all the same in the patient."""
    array, labels = anatomy()
    for name, stored in ORIENTATIONS.items():
        stored = dict(stored)
        suffix = stored.pop("suffix")
        save_volume(tmp_path / "images" / f"{name}{suffix}", array, **stored)
        save_volume(tmp_path / "masks" / f"{name}{suffix}", labels, **stored)
    out = tmp_path / "out"
    data = {"images": [tmp_path / "images"], "masks": [tmp_path / "masks"]}
    succeeded(adapt(command, place / model, out, *SOURCE, "--probabilities", **data))
    canonical = []
    for name, stored in ORIENTATIONS.items():
        image = nibabel.load(tmp_path / "images" / f"{name}{stored['suffix']}")
        maps = [f"probabilities/{name}_{c}" for c in (("organ", "lesion") if model == "slices" else ("a", "b"))]
        for file in (f"masks/{name}", *maps):
            got = nibabel.load(out / f"{file}{stored['suffix']}")
            np.testing.assert_array_equal(got.affine, image.affine)
            np.testing.assert_array_equal(got.header.get_qform(), image.header.get_qform())
            assert got.shape == image.shape and got.header.get_zooms() == image.header.get_zooms()
            assert nibabel.aff2axcodes(got.affine) == nibabel.aff2axcodes(image.affine)
            assert got.get_data_dtype() == (np.uint8 if file.startswith("masks") else np.float32)
            for code in ("sform_code", "qform_code", "xyzt_units"):
                assert got.header[code] == image.header[code]
        first, second = (load_canonical(out / f"{file}{stored['suffix']}") for file in maps)
        assert min(first.min(), second.min()) >= 0 and max(first.max(), second.max()) <= 1
        mask = load_canonical(out / "masks" / f"{name}{stored['suffix']}")
        if model == "slices":
            np.testing.assert_array_equal(mask == 2, second > 0.5)
            np.testing.assert_array_equal(mask == 1, (first > 0.5) & ~(second > 0.5))
        else:
            assert np.all((first >= second)[mask == 1]) and np.all((second >= first)[mask == 2])
        canonical.append(mask)
    assert len(np.unique(canonical[0])) > 1
    for mask in canonical[1:]:
        np.testing.assert_array_equal(mask, canonical[0])
    rows = table(out)
    assert {(row["depth"], row["height"], row["width"]) for row in rows} == {tuple(map(str, SHAPE))}
    columns = [key for key in rows[0] if key.startswith(("dice", "hd95", "assd"))]
    for row in rows:  # a turned affine has its voxel sizes but for rounding
        np.testing.assert_allclose([float(row[c]) for c in columns], [float(rows[0][c]) for c in columns], rtol=1e-5)


KNOWN = [
    pytest.param({"size": (18, 14), "intensity": "minmax"}, marks=pytest.mark.slow),
    {"size": (8, 14), "axis": "sagittal", "spacing": (3.0, 1.5), "intensity": "minmax"},
    {"size": (8, 8, 8), "intensity": "minmax"},
]


@pytest.mark.parametrize("values", KNOWN, ids=str)
def test_every_label_comes_from_its_own_voxel(command, tmp_path, monkeypatch, values):
    """A network that answers with its input gives the thresholded volume back."""

    @functools.wraps(METHODS["source"])
    def echo(model, task):
        def answer(images):
            return 20 * (jnp.concatenate([images, images - 0.25], axis=-1) - 0.5)

        def step(key, source, state, images):
            return state, Output(answer(images), {})

        return METHODS["tent"](model, task)._replace(
            init=lambda source, images: (), step=step, predict=lambda source, state, images: answer(images)
        )

    monkeypatch.setitem(METHODS, "source", echo)
    scans(tmp_path, ((7, 18, 14), (5, 18, 14), (1, 18, 14)), axes="PIR")
    volume_model(tmp_path / "model", **values)
    for batch in (1, 3):
        out = tmp_path / f"out{batch}"
        succeeded(adapt(command, tmp_path / "model", out, *SOURCE, "--batch", batch, images=[tmp_path / "images"]))
        for i in range(3):
            image = load_canonical(tmp_path / "images" / f"{i}.nii.gz").astype(np.float64)
            scaled = (image - image.min()) / (image.max() - image.min())
            expected = (scaled > 0.5).astype(int) + (scaled > 0.75)
            near = np.minimum(abs(scaled - 0.5), abs(scaled - 0.75)) < 1e-5
            assert np.all((load_canonical(out / "masks" / f"{i}.nii.gz") == expected) | near)


@pytest.mark.parametrize("model", ["slices", pytest.param("windows", marks=pytest.mark.slow)])
def test_the_source_gives_one_answer_however_it_is_served(command, place, tmp_path, model):
    data = of(place, "north", "south")
    succeeded(adapt(command, place / model, tmp_path / "plain", *SOURCE, **data))
    plain, rows = masks_of(tmp_path / "plain"), table(tmp_path / "plain")
    assert [row["domain"] for row in rows] == ["north"] * 3 + ["south"] * 2
    assert {name.split("/")[0] for name in plain} == {"north", "south"}
    assert (tmp_path / "plain" / "south" / "masks" / "0.nii").is_file()
    assert record(tmp_path / "plain")["batch"] == (8 if model == "slices" else 1)
    ways = [("--batch", 3), ("--batch", 3, "--streams", 3, "--reset", "volume"), ("--batch", 3, "--reset", "never")]
    for i, way in enumerate(ways):
        out = tmp_path / str(i)
        succeeded(adapt(command, place / model, out, *SOURCE, *way, **data))
        assert_same_masks(masks_of(out), plain)
        assert_close_rows(table(out), rows)


def listed(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_reset_volume_is_each_volume_alone(command, place, tmp_path):
    data = of(place, "north")
    succeeded(adapt(command, place / "slices", tmp_path / "each", *TENT, "--reset", "volume", **data))
    succeeded(adapt(command, place / "slices", tmp_path / "on", *TENT, **data))
    rows, carried = timeless(table(tmp_path / "each")), timeless(table(tmp_path / "on"))
    assert rows[0] == carried[0] and rows[1]["loss"] != carried[1]["loss"] and rows[2]["loss"] != carried[2]["loss"]
    for i in (1, 2):
        alone = tmp_path / f"alone{i}"
        one = listed(tmp_path / f"{i}.csv", "image,mask", f"images/{i}.nii.gz,masks/{i}.nii.gz")
        succeeded(adapt(command, place / "slices", alone, *TENT, "--root", place / "north", images=[one]))
        (row,) = timeless(table(alone))
        assert {**row, "name": str(i), "domain": "images"} == rows[i]
        mask = load_canonical(alone / "masks" / "images" / f"{i}.nii.gz")
        np.testing.assert_array_equal(mask, load_canonical(tmp_path / "each" / "masks" / f"{i}.nii.gz"))
    said = adapt(command, place / "slices", tmp_path / "on", *TENT, "--reset", "volume", "--resume", **data)
    refused(said, "reset", "site", "volume")


@pytest.mark.slow
def test_a_patient_is_followed_and_never_across_sites(command, place, tmp_path):
    files = ["north/images/0.nii.gz", "north/images/1.nii.gz", "north/images/2.nii.gz", "south/images/0.nii"]

    def run(name, *rows, reset):
        path = listed(tmp_path / f"{name}.csv", "image,patient,domain", *rows)
        out = tmp_path / name
        succeeded(adapt(command, place / "slices", out, *TENT, "--root", place, "--reset", reset, images=[path]))
        return {row["name"]: row["loss"] for row in table(out)}

    names = [file.split(".")[0] for file in files]
    patients = run(
        "patients", *(f"{f},{p},{d}" for f, p, d in zip(files, "pqpp", ("a", "a", "a", "b"))), reset="patient"
    )
    together = run("p", f"{files[0]},p,a", f"{files[2]},p,a", reset="never")
    alone = run("alone", f"{files[1]},q,a", f"{files[3]},p,b", reset="volume")
    assert patients == {**together, **alone}
    sites = run("sites", *(f"{f},,{d}" for f, d in zip(files[2:], "ab")), reset="site")
    assert sites[names[3]] == alone[names[3]]
    never = run("never", *(f"{f},,{d}" for f, d in zip(files[2:], "ab")), reset="never")
    one_site = run("one_site", *(f"{f},,a" for f in files[2:]), reset="site")
    assert never == one_site and never[names[3]] != sites[names[3]]


@pytest.mark.slow
def test_volumes_side_by_side_are_the_same_as_one_after_the_other(command, place, tmp_path):
    data = of(place, "north", "south")
    call = functools.partial(adapt, command, place / "slices")
    options = (*TENT, "--batch", 4, "--reset", "volume")
    succeeded(call(tmp_path / "one", *options, **data))
    succeeded(call(tmp_path / "three", *options, "--streams", 3, **data))
    assert record(tmp_path / "three")["places"] == 3
    assert_close_rows(table(tmp_path / "three"), table(tmp_path / "one"))
    assert_same_masks(masks_of(tmp_path / "three"), masks_of(tmp_path / "one"))


def stopped(monkeypatch, command, call, *, at):
    """Runs and is interrupted as the prediction of the step of that number arrives."""
    add, seen = pipeline.Assembly.add, []

    def counted(self, step, probabilities):
        if len(seen) == at:
            raise KeyboardInterrupt
        seen.append(step)
        add(self, step, probabilities)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Assembly, "add", counted)
        assert call().status == 130


@pytest.mark.slow
@pytest.mark.parametrize("at, streams", [(1, 1), (8, 1), (7, 2)])
def test_a_killed_run_is_resumed_to_the_same_results(command, place, tmp_path, monkeypatch, at, streams):
    """Batches of 4: the volumes take 2, 1, 3 and 2, 3 steps."""
    data, options = of(place, "north", "south"), (*TENT, "--batch", 4)
    call = functools.partial(adapt, command, place / "slices", **data)
    whole = place / "whole"
    if not whole.exists():
        succeeded(call(whole, *options))
    out = tmp_path / "out"
    monkeypatch.setattr(run_folder, "SAVE_SECONDS", 0.0)
    saves, save = [], checkpoint.save_state

    def saved(path, state, metadata):
        saves.append((metadata["ticks"], metadata["rows"]))
        save(path, state, metadata)

    monkeypatch.setattr(checkpoint, "save_state", saved)
    options += ("--streams", streams)
    stopped(monkeypatch, command, functools.partial(call, out, *options), at=at)
    # Saved between cases alone: side by side, where both streams have just ended one.
    ends = {1: {(2, 1), (3, 2), (6, 3), (8, 4)}, 2: {(2, 2)}}[streams]
    assert set(saves) <= ends
    assert record(out)["status"] == "running" and (out / "resume").is_dir() == bool(saves)
    kept, left, finish = (saves or [(0, 0)])[-1], [], writing.finish

    def noted(assembly, *arguments, **keywords):
        left.append(assembly.sample.case.name)
        return finish(assembly, *arguments, **keywords)

    monkeypatch.setattr(writing, "finish", noted)
    succeeded(call(out, *options, "--resume"))
    assert len(left) == 5 - kept[1]
    if streams == 1:
        assert kept[1] <= {1: 0, 8: 4}[at]
        assert timeless(table(out)) == timeless(table(whole))
    assert_close_rows(table(out), table(whole))
    assert_same_masks(masks_of(out), masks_of(whole))
    assert record(out)["status"] == "finished" and not (out / "resume").exists()


def test_a_finished_run_of_volumes_is_resumed_without_computing_anything(command, place, tmp_path, monkeypatch):
    data = of(place, "south")
    succeeded(adapt(command, place / "slices", tmp_path, *SOURCE, **data))
    monkeypatch.setattr(pipeline.Assembly, "add", None)
    succeeded(adapt(command, place / "slices", tmp_path, *SOURCE, "--resume", **data))
    refused(adapt(command, place / "slices", tmp_path, *SOURCE, "--resume", "--batch", 2, **data), "batch", "8", "2")


NETWORKS = [
    ((16, 16), "softmax", "instance"),
    pytest.param((4, 8, 8), "sigmoid", "group", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("size, activation, norm", NETWORKS, ids=str)
def test_two_modalities_in_two_files_are_the_same_as_in_one(command, tmp_path, size, activation, norm):
    volume_model(tmp_path / "model", size, activation=activation, norm=norm, channels=2)
    shapes = ((5, 18, 14), (3, 14, 16))
    results = []
    for layout in ("axis", "files"):
        data = scans(tmp_path / layout, shapes, modalities=layout)
        out = tmp_path / f"out_{layout}"
        both = {"images": [data / "images"], "masks": [data / "masks"]}
        succeeded(adapt(command, tmp_path / "model", out, *TENT, **both))
        rows = [{k: v for k, v in row.items() if k != "domain"} for row in timeless(table(out))]
        assert [row["name"] for row in rows] == ["0", "1"] and all(np.isfinite(float(row["loss"])) for row in rows)
        assert all(float(row["gradient_norm"]) > 0 and float(row["skipped"]) == 0 for row in rows)
        masks = masks_of(out)
        assert {mask.shape for mask in masks.values()} == set(shapes)
        results.append((rows, masks))
    assert results[0][0] == results[1][0]
    assert_same_masks(results[0][1], results[1][1])


def test_batch_statistics_of_an_instance_norm_network_are_refused(command, place, tmp_path):
    data, out = of(place, "north"), tmp_path / "out"
    for method in ("batch_statistics", "progressive_bn"):
        call = ("--method", method, "--quiet")
        refused(adapt(command, place / "windows", out, *call, **data), method.split("_")[0], "batch norm", out=out)


def test_tables_for_slices_and_scores_in_millimetres(command, tmp_path):
    """The same voxels with other spacings: the same Dice, distances as long as the voxels make them."""
    shape, scores = (6, 18, 14), {}
    volume_model(tmp_path / "model", (18, 14), axis="sagittal", seed=31)
    for name, spacing in (("fine", (1.0, 1.0, 1.0)), ("thick", (5.0, 1.0, 1.0)), ("double", (2.0, 2.0, 2.0))):
        data, out = scans(tmp_path / name, (shape,), spacing=spacing), tmp_path / f"out_{name}"
        both = {"images": [data / "images"], "masks": [data / "masks"]}
        options = ("--method", "source", "--probabilities", "--quiet")
        succeeded(adapt(command, tmp_path / "model", out, *options, **both))
        (row,) = table(out)
        truth, channels = load_canonical(data / "masks" / "0.nii.gz"), []
        for k, structure in enumerate(("organ", "lesion")):
            channels.append(load_canonical(out / "probabilities" / f"0_{structure}.nii.gz") > 0.5)
            assert 0.01 < channels[k].mean() < 0.99
            expected = metrics.score(channels[k], truth > k, spacing=spacing)
            for metric, value in expected.items():
                np.testing.assert_allclose(float(row[f"{metric}_{structure}"]), value, rtol=1e-5)
        scores[name] = {key: float(value) for key, value in row.items() if key.endswith("_organ")}
        rows = table(out / "slices", "0.csv")
        assert [row["slice"] for row in rows] == [str(n) for n in range(14)]  # sagittal ones
        for number, row in enumerate(rows):
            parts = channels[0][..., number], truth[..., number] > 0
            np.testing.assert_allclose(float(row["dice_organ"]), 100 * metrics.dice(*parts), rtol=1e-9)
        panels = pixels(out / "overlays" / "0.png")
        assert panels.ndim == 3 and panels.dtype == np.uint8 and len(np.unique(panels)) > 8
        assert panels.shape[1] <= 4 * 330
        # A sagittal slice is shown as wide as it is in the patient.
        height, width = 6 * spacing[0], 18 * spacing[1]
        assert panels.shape[0] == pytest.approx(2 * 320 * min(1, height / width) + 2, abs=130)  # title and legend
    assert scores["fine"]["dice_organ"] == scores["thick"]["dice_organ"] == scores["double"]["dice_organ"]
    assert scores["thick"]["hd95_organ"] > scores["fine"]["hd95_organ"] > 0
    assert scores["double"]["hd95_organ"] == pytest.approx(2 * scores["fine"]["hd95_organ"], rel=1e-5)


@pytest.mark.parametrize("axis", ["coronal", "sagittal"])
def test_overlays_show_the_head_above_the_feet(tmp_path, axis):
    array, labels = np.full((16, 16, 12), 100, np.int16), np.zeros((16, 16, 12), np.uint8)
    array[12:] = 1000  # superior
    labels[2:5, 4:9, 4:9] = 1
    image, mask = (save_volume(tmp_path / f"{i}.nii", one, spacing=(1, 1, 1)) for i, one in enumerate((array, labels)))
    study = VolumePreprocessing((16, 16), axis=axis).open(Case("a", image, mask, ""), Task(2))
    width = 20 * (12 if axis == "coronal" else 16)
    panel = study.picture(Assembly(study, Task(2), keep=False))[:320, :width]
    assert panel.shape[0] == 320 and panel[:60, 60:].min() > 200 and panel[100:200].max() < 50
    coloured = np.flatnonzero(np.ptp(panel[30:], axis=-1).any(axis=1)) + 30
    assert coloured.min() > 20 * 10 and coloured.max() < 20 * 15  # the reference's contour, too


def test_without_masks_there_are_no_scores(command, place, tmp_path):
    said = succeeded(adapt(command, place / "slices", tmp_path, *SOURCE, images=[place / "south" / "images"]))
    assert "Dice" not in said.out and not (tmp_path / "slices").exists()
    assert "dice" not in table(tmp_path)[0] and "dice" not in record(tmp_path)
    assert not (tmp_path / "overlays").exists()


def test_a_list_of_modalities_and_sites(command, tmp_path):
    folder = scans(tmp_path / "data", modalities="files")
    rows = [f"images/{i}_0000.nii.gz,images/{i}_0001.nii.gz,masks/{i}.nii.gz,site{i}" for i in (1, 0)]
    path = listed(folder / "all.csv", "image,image2,mask,domain", *rows)
    volume_model(tmp_path / "model", activation="softmax", norm="instance", channels=2)
    succeeded(adapt(command, tmp_path / "model", tmp_path / "out", *TENT, images=[path]))
    assert list(masks_of(tmp_path / "out")) == [f"site{i}/masks/images/{i}_0000.nii.gz" for i in range(2)]
    assert [row["domain"] for row in table(tmp_path / "out")] == ["site1", "site0"]
    assert record(tmp_path / "out")["domains"]["site1"]["images"] == 1
