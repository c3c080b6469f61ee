"""`jaxtta calibrate` and `adapt` after it, on the quick start's source and photographs that are drawn."""

import json

import numpy as np
import pytest
from folders import refused, succeeded

import jaxtta
from jaxtta import checkpoint
from jaxtta.calibration import arms
from jaxtta.core import InputError
from jaxtta.runs import results
from jaxtta.workflows import questions
from jaxtta.workflows.demo import demo_checkpoint

pytest_plugins = ("command_line",)


@pytest.fixture(scope="module", autouse=True)
def few_arms():
    """Of all arms some, so that less is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        kept = ("source", "flips", "step", "statistics_0.25")
        patch.setattr(arms, "ARMS", {name: parts for name, parts in arms.ARMS.items() if name in kept})
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Eight photographs of the source's own centre."""
    out = tmp_path_factory.mktemp("home")
    jaxtta.synthesize(out=out, centres=("alder", "dogwood"), count=8, size=128, seed=2)
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The quick start's source, as it was before it was calibrated."""
    loaded, path = checkpoint.load(demo_checkpoint()), tmp_path_factory.mktemp("plain") / "source"
    parts = (loaded.model, loaded.source._replace(calibration={}), loaded.task, loaded.preprocessing)
    checkpoint.save(path, *parts, provenance={})
    return path


@pytest.fixture(scope="module")
def calibrated(plain, home, tmp_path_factory):
    """It, calibrated on few changes."""
    out = tmp_path_factory.mktemp("calibrated") / "source"
    alder = home / "alder"
    record = jaxtta.calibrate(
        source=plain, images=alder / "images", masks=alder / "masks", out=out, draws=4, quiet=True
    )
    return out, record


def test_a_calibrated_source_is_the_source_with_what_it_said(calibrated, plain):
    out, record = calibrated
    before, after = checkpoint.load(plain), checkpoint.load(out)
    np.testing.assert_array_equal(
        after.source.params["segmentation"]["kernel"], before.source.params["segmentation"]["kernel"]
    )
    assert set(after.source.calibration) == {"home", "gate"} and not before.source.calibration
    assert record["rows"] == 8 * 5 and record["dice"] > 80
    rows = results.read_rows(out / "calibration.csv")
    assert len(rows) == 40 and rows[0]["family"] == "home" and {row["grade"] for row in rows} > {"mild", "severe"}
    assert all(0 <= row["dice_source"] <= 100 and np.isfinite(row["distance"]) for row in rows)
    assert after.manifest["provenance"]["calibration"]["margin"] == record["margin"]
    assert "Gain of every arm" in (out / "report.html").read_text()


@pytest.mark.slow
def test_it_is_adapted_by_what_it_was_calibrated_for_unless_told_otherwise(command, calibrated, home, tmp_path):
    out, _ = calibrated
    call = ("adapt", "--source", out, "--images", home / "dogwood" / "images", "--out", tmp_path / "run")
    said = succeeded(command(*call)).out
    assert "by calibrated, as no method was named" in said and "predictions taken" in said and "expected gain" in said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    rows = results.read_rows(tmp_path / "run" / "predictions.csv")
    assert record["method"] == "calibrated" and sum(record["taken"].values()) == len(rows) == 8
    for row in rows:
        assert row["arm"] == "source" or row["expected_gain"] > 0
        assert row["changed"] == 0 or row["arm"] != "source"
        assert 0 <= row["largest_loss"] <= 100


@pytest.mark.slow
def test_a_calibration_that_is_stopped_goes_on_and_ends_the_same(calibrated, plain, home, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    whole, seen = questions.RunFolder.save, []

    def stop(self, *arguments, **options):
        whole(self, *arguments, **options)
        seen.append(1)
        raise StoppedError

    alder = home / "alder"
    plan = {"source": plain, "images": alder / "images", "masks": alder / "masks", "out": tmp_path / "run", "draws": 4}
    monkeypatch.setattr(questions.RunFolder, "due", lambda self, **_: not seen)
    monkeypatch.setattr(questions.RunFolder, "save", stop)
    with pytest.raises(StoppedError):
        jaxtta.calibrate(**plan, quiet=True)
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(tmp_path / "run")
    monkeypatch.setattr(questions.RunFolder, "save", whole)
    jaxtta.calibrate(**plan, quiet=True, resume=True)
    assert (tmp_path / "run" / "calibration.csv").read_text() == (calibrated[0] / "calibration.csv").read_text()
    assert checkpoint.load(tmp_path / "run").manifest["sha256"] == checkpoint.load(calibrated[0]).manifest["sha256"]


@pytest.mark.slow
def test_a_few_labelled_images_of_the_target_choose_for_all(command, plain, home, tmp_path):
    dogwood, out = home / "dogwood", tmp_path / "target"
    call = ("calibrate", "--source", plain, "--target", dogwood / "images", "--masks", dogwood / "masks", "--out", out)
    said = succeeded(command(*call))
    record = json.loads((out / "run.json").read_text())
    assert (
        record["chosen"] in said.out
        and record["rows"] == 8
        and list(checkpoint.load(out).source.calibration["settled"])
    )
    assert record["chosen"] in succeeded(command(*call, "--resume")).out
    adapted = jaxtta.adapt(source=out, images=dogwood / "images", out=tmp_path / "run", quiet=True)
    assert adapted["taken"] == {record["chosen"]: 8}


def test_what_makes_no_sense_is_said_in_a_line(command, plain, calibrated, home, tmp_path):
    alder, out = home / "alder", tmp_path / "out"
    call, given = ("calibrate", "--source", plain, "--out", out), ("--images", alder / "images")
    masks = ("--masks", alder / "masks")
    refused(command(*call), "--images", "--target")
    refused(command(*call, *given), "has no mask")
    refused(command(*call, *given, "--target", alder / "images", *masks), "given as --images and as --target")
    few = tmp_path / "few.csv"
    rows = [{"image": str(p), "mask": str(alder / "masks" / p.name)} for p in sorted((alder / "images").iterdir())[:5]]
    results.write_rows(few, rows)
    refused(command(*call, "--images", few), "5 images to calibrate on; give 8 or more")
    adapting = ("adapt", "--source", plain, "--method", "calibrated", *given, "--out", out)
    refused(command(*adapting), "not calibrated", "jaxtta calibrate")
    assert not out.exists()


def test_images_of_another_task_are_told_by_the_sources_dice(plain, home, tmp_path):
    alder = home / "alder"
    for mask in (alder / "masks").iterdir():
        turned = tmp_path / "masks" / mask.name
        turned.parent.mkdir(exist_ok=True)
        pixels = jaxtta.data.images.read_mask(mask)
        jaxtta.data.images.write_png(turned, np.roll(pixels, 64, axis=(0, 1)).astype(np.uint8))
    with pytest.raises(InputError, match="its own domain and task"):
        jaxtta.calibrate(
            source=plain, images=alder / "images", masks=tmp_path / "masks", out=tmp_path / "out", draws=1, quiet=True
        )


@pytest.mark.slow
def test_a_training_calibrates_its_best_on_what_it_kept_aside(home, tmp_path, as_a_user):
    images, masks = ([home / centre / kind for centre in ("alder", "dogwood")] for kind in ("images", "masks"))
    plan = {
        "images": images, "masks": masks, "mask_values": "fundus", "size": (32, 32), "heads": ("none",), "epochs": 1,
        "architecture": "unet", "features": (4, 8), "optimiser": "adam", "validation": 0.5, "quiet": True,
    }  # fmt: skip
    record = jaxtta.train(**plan, out=tmp_path / "run")
    assert record["calibration"]["rows"] == 8 * 46 and (tmp_path / "run" / "calibration" / "report.html").is_file()
    assert checkpoint.load(tmp_path / "run" / "best").source.calibration
    assert not checkpoint.load(tmp_path / "run" / "last").source.calibration
    few = jaxtta.train(**plan | {"validation": 0.25}, out=tmp_path / "few")
    assert "8 are needed" in few["calibration"]["skipped"]
    without = jaxtta.train(**plan, calibration=False, out=tmp_path / "without")
    assert "calibration" not in without and not checkpoint.load(tmp_path / "without" / "best").source.calibration
