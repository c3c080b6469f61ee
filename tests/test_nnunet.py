"""nnU-Net's preparation of volumes and what it makes of logits, against goldens of nnU-Net's own code."""

import nibabel
import numpy as np
import pytest
from nnunet_goldens import GOLDENS, MADE, WINDOWS, labels_of, logits_for, plans_of, write
from scans import load_canonical

from jaxtta.core import InputError
from jaxtta.data import kinds, nnunet_arrays, nnunet_plans
from jaxtta.data.cases import find_cases
from jaxtta.data.sample import Assembly
from jaxtta.data.windows import Blend

KEPT = np.load(GOLDENS)


def opened(folder, name):
    """The task and the sample of one of the volumes."""
    made = MADE[name]
    task, values = nnunet_plans.labels_of(labels_of(made))
    plans = plans_of(made)
    merged = nnunet_plans.configuration(plans, "of_it")
    given = nnunet_plans.preprocessing(plans, merged, channels=len(made.schemes), mask_values=values)
    given = kinds.from_dict(kinds.to_dict(given))
    files = write(folder, name)
    (case,) = find_cases(files[0].parent, kind=given.files, modalities=given.modalities, numbered=given.numbered)
    assert case.name == name
    return task, given.open(case, task), values


def whole(sample):
    """All blocks, `[channels, *space]` as nnU-Net has them."""
    blocks = np.stack([sample.prepared(number) for number in range(sample.blocks)])
    return np.moveaxis(blocks if sample.axis is not None else blocks[0], -1, 0)


@pytest.mark.parametrize("name", MADE)
def test_a_volume_is_prepared_as_nnunet_does(tmp_path, name):
    _, sample, _ = opened(tmp_path, name)
    prepared, expected = whole(sample), KEPT[f"{name}/prepared"]
    assert prepared.dtype == np.float32 and prepared.shape == expected.shape
    np.testing.assert_allclose(prepared, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", MADE)
def test_logits_become_the_file_that_nnunet_writes(tmp_path, name):
    task, sample, values = opened(tmp_path, name)
    assembly, logits = Assembly(sample, task, keep=True), np.moveaxis(logits_for(KEPT[f"{name}/prepared"]), 0, -1)
    for number in range(sample.blocks):
        assembly._finish(number, _padded(sample, logits[number] if sample.axis is not None else logits))
    sample.write_labels(tmp_path / "found", assembly.labels, values)
    stored = np.asarray(nibabel.load(tmp_path / "found.nii.gz").dataobj).transpose()
    expected = KEPT[f"{name}/labels"]
    if MADE[name].reader == "NibabelIOWithReorient":  # nnU-Net turns it back as it writes
        np.testing.assert_array_equal(load_canonical(tmp_path / "found.nii.gz"), expected[:, ::-1, ::-1])
    else:
        np.testing.assert_array_equal(stored, expected)
    if task.activation == "softmax":
        outside = assembly.probabilities[assembly.labels == 0].sum(-1)
        assert np.all(np.isclose(outside, 1, atol=1e-5) | (outside == 0))  # 0: a slice outside the box


def _padded(sample, logits):
    """A block's logits on the padded grid."""
    missing = [length - there for length, there in zip(sample.padded, logits.shape)]
    return np.pad(logits, [(n // 2, n - n // 2) for n in missing] + [(0, 0)])


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_lie_and_weigh_as_in_nnunet(name):
    shape, window = WINDOWS[name]
    expected = np.meshgrid(*(KEPT[f"{name}/steps{axis}"] for axis in range(len(shape))), indexing="ij")
    assert nnunet_arrays.window_positions(shape, window) == list(zip(*(each.ravel().tolist() for each in expected)))
    weights = nnunet_arrays.window_weights(window)
    assert weights.dtype == np.float16
    np.testing.assert_array_equal(weights, KEPT[f"{name}/weights"])


def test_sums_of_float16_stop_at_its_limits():
    rng = np.random.default_rng(0)
    weights = nnunet_arrays.window_weights((4,))
    blend = Blend((6,), (4,), 2, weights=weights)
    blend.add((0,), np.full((4, 2), 1e6, np.float32))
    predicted = rng.normal(size=(4, 2)).astype(np.float32)
    blend.add((2,), predicted)
    found = blend.result()
    assert found.dtype == np.float16 and np.all(np.isfinite(found))
    np.testing.assert_allclose(found[4:], predicted[2:], rtol=3e-3)


def test_an_empty_volume_is_refused(tmp_path):
    made = MADE["isotropic"]
    _, sample, _ = opened(tmp_path, "isotropic")
    with pytest.raises(InputError, match="every voxel is 0"):
        nnunet_arrays.nonzero_box([np.zeros(sample.shape)])
    assert made.schemes[0] in nnunet_arrays.SCHEMES


def plans_with(**changed):
    """Plans of which a configuration's entries, or their own, are others."""
    plans = plans_of(MADE["isotropic"])
    own = {key: value for key, value in changed.items() if key in plans}
    plans["configurations"]["of_it"] |= {key: value for key, value in changed.items() if key not in plans}
    return plans | own


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
        ({"inherits_from": "gone"}, "no configuration gone; they have of_it"),
        ({"preprocessor_name": "Mine"}, "prepared by Mine"),
        ({"resampling_fn_data": "resample_torch"}, "resampling_fn_data is resample_torch"),
        ({"normalization_schemes": ["Mine"]}, "channel 0 is normalised by 'Mine'"),
        ({"image_reader_writer": "Tiff3DIO"}, "read by 'Tiff3DIO'"),
        ({"transpose_forward": [0, 1, 1]}, "transposed by (0, 1, 1)"),
        ({"use_mask_for_norm": []}, "1 channels, but 1 and 0 and 1"),
        ({"spacing": [1.0]}, "the patch is (8, 8, 8)"),
        (
            {"normalization_schemes": ["CTNormalization"], "foreground_intensity_properties_per_channel": {}},
            "intensities are not known",
        ),
    ],
)
def test_plans_that_are_not_known_are_refused_in_one_line(changed, said):
    plans = plans_with(**changed)
    with pytest.raises(InputError) as error:
        merged = nnunet_plans.configuration(plans, "of_it")
        nnunet_plans.preprocessing(plans, merged, channels=1, mask_values=(0, 1, 2))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_configuration_inherits():
    plans = plans_of(MADE["isotropic"])
    plans["configurations"]["mine"] = {"inherits_from": "of_it", "spacing": [3.0, 3.0, 3.0]}
    merged = nnunet_plans.configuration(plans, "mine")
    assert merged["spacing"] == [3.0, 3.0, 3.0] and merged["normalization_schemes"] == ["ZScoreNormalization"]


def test_plans_without_an_entry_are_refused():
    plans = plans_of(MADE["isotropic"])
    del plans["configurations"]["of_it"]["patch_size"]
    with pytest.raises(InputError, match="the plans have no patch_size"):
        nnunet_plans.preprocessing(plans, plans["configurations"]["of_it"], channels=1, mask_values=(0, 1))


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ({"labels": {"organ": 1}}, "the background as 0"),
        ({"labels": {"background": 0, "organ": 2}}, "one class for each number"),
        ({"labels": {"background": 0, "a": [1, 2], "b": [2]}}, "written in the order []"),
        ({"labels": {"background": 0, "a": [1, 2], "b": [3]}, "regions_class_order": [1, 3]}, "holds those after it"),
    ],
)
def test_labels_that_are_not_known_are_refused_in_one_line(dataset, said):
    with pytest.raises(InputError) as error:
        nnunet_plans.labels_of(dataset)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_labels_and_regions_become_tasks():
    labels = {"labels": {"background": 0, "lesion": 2, "organ": 1, "ignore": 3}}
    task, values = nnunet_plans.labels_of(labels)
    assert (task.names, task.activation, values) == (("background", "organ", "lesion"), "softmax", (0, 1, 2))
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    task, values = nnunet_plans.labels_of({"labels": regions, "regions_class_order": [1, 2, 3]})
    assert (task.names, task.activation, values) == (("whole", "core", "enhancing"), "sigmoid", (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), ("{", "no JSON"), ("{}", "has no configurations")]
)
def test_a_folder_that_is_no_nnunet_is_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "plans.json").write_text(content)
    with pytest.raises(InputError, match=said):
        nnunet_plans.read(tmp_path)
