"""The synthetic CT volumes: reproducible, in Hounsfield units, anatomy where it belongs, files that read back."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy import ndimage

from jaxtta import synthesize
from jaxtta.core import InputError
from jaxtta.data import nifti
from jaxtta.synthetic.abdomen import CENTRES, LABELS, Centre, abdomen
from jaxtta.synthetic.phantoms import Phantom

COUNT = 4
LIVER, SPLEEN, KIDNEYS, AORTA = range(1, 5)
every_centre = pytest.mark.parametrize("name", CENTRES)
first_centre = pytest.mark.parametrize(  # the others with -m slow
    "name", [pytest.param(name, marks=pytest.mark.slow if number else ()) for number, name in enumerate(CENTRES)]
)


@functools.cache
def made(name) -> list[Phantom]:
    return [abdomen(CENTRES[name], seed=3, index=index) for index in range(COUNT)]


def middle(volume: Phantom, mask: np.ndarray) -> np.ndarray:
    """Of a mask, in millimetres from the corner."""
    return np.array(ndimage.center_of_mass(mask)) * volume.spacing


def air_behind(plane: np.ndarray) -> float:
    """The share of air in the back half of the body."""
    body = ndimage.binary_fill_holes(plane > -300)
    row = int(ndimage.center_of_mass(body)[0])
    return np.mean(plane[row:][body[row:]] < -600)


def core(volume: Phantom, label: int) -> np.ndarray:
    """The voxels of an organ that no border touches in their slice."""
    return volume.array[ndimage.binary_erosion(volume.labels == label, np.ones((1, 3, 3)))]


def test_centres_under_their_names():
    assert list(CENTRES) == ["fjord", "heath", "marsh"] and LABELS[LIVER] == "liver" and LABELS[AORTA] == "aorta"
    assert all(isinstance(centre, Centre) and centre.name == name for name, centre in CENTRES.items())
    assert all(16 <= centre.slices <= 24 for centre in CENTRES.values())


@first_centre
def test_deterministic(name):
    state = np.random.get_state()[1].copy()
    for first, second in zip(abdomen(CENTRES[name], seed=3, index=1), made(name)[1]):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(state, np.random.get_state()[1])


def test_index_seed_and_centre_each_make_another_patient():
    centre = CENTRES["fjord"]
    reference = abdomen(centre, seed=0, index=0, size=32).labels
    renamed = dataclasses.replace(centre, name="other")
    for other, seed, index in ((centre, 0, 1), (centre, 1, 0), (renamed, 0, 0)):
        assert np.mean(abdomen(other, seed=seed, index=index, size=32).labels != reference) > 0.01


@every_centre
def test_shapes_types_and_hounsfield_units(name):
    centre = CENTRES[name]
    for volume in made(name):
        assert volume.array.shape == volume.labels.shape == (centre.slices, 96, 96)
        assert volume.array.dtype == np.int16 and volume.labels.dtype == np.uint8 and volume.slope == 1
        assert volume.spacing == (centre.step, centre.field / 96, centre.field / 96)
        assert set(np.unique(volume.labels)) == set(range(len(LABELS)))
        assert -1024 <= volume.array.min() < -950 and 500 < volume.array.max() < 1500
        corners = volume.array[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert np.median(corners) == pytest.approx(-1000, abs=15)
        values = volume.array[volume.array > -300]
        fat, soft = np.mean((values > -160) & (values < -50)), np.mean((values > 0) & (values < 150))
        assert 0.1 < fat < 0.6 and 0.3 < soft < 0.8 and 0.01 < np.mean(values > 300) < 0.15


@every_centre
def test_organs_are_whole_of_usual_size_and_where_they_belong(name):
    usual = {LIVER: (700, 2300), SPLEEN: (70, 350), KIDNEYS: (120, 450), AORTA: (25, 120)}  # millilitres
    for volume in made(name):
        litre = np.prod(volume.spacing) / 1000
        for label, (low, high) in usual.items():
            mask = volume.labels == label
            assert low < mask.sum() * litre < high, LABELS[label]
            pieces = np.sort(np.bincount(ndimage.label(mask)[0].ravel())[1:])
            assert pieces[-2 if label == KIDNEYS else -1 :].sum() > 0.97 * mask.sum(), LABELS[label]
        liver, spleen, kidneys, aorta = (middle(volume, volume.labels == label) for label in range(1, 5))
        spine = middle(volume, volume.array > 400)
        assert liver[2] + 30 < spine[2] < spleen[2] - 50  # the patient's left is the image's right
        assert kidneys[0] < min(liver[0], spleen[0]) and liver[1] < kidneys[1]
        assert aorta[1] < spine[1] and abs(aorta[2] - spine[2]) < 30
        left = volume.labels * (np.arange(96) * volume.spacing[2] > aorta[2]) == KIDNEYS
        assert 0.25 < left.sum() / np.sum(volume.labels == KIDNEYS) < 0.75
        assert np.all(np.any(volume.labels == AORTA, axis=(1, 2)))  # in every slice
        bottom, top = (air_behind(plane) for plane in volume.array[[0, -1]])
        assert bottom < 0.06 and top > 0.12  # lungs above alone


@every_centre
def test_organs_have_the_values_of_their_phase(name):
    tissues = CENTRES[name].tissues
    for volume in made(name):
        liver, spleen, kidneys, aorta = (np.median(core(volume, label)) for label in range(1, 5))
        assert liver == pytest.approx(tissues.liver, abs=40) and spleen == pytest.approx(tissues.spleen, abs=30)
        assert min(tissues.medulla, tissues.cortex) - 20 < kidneys < tissues.cortex + 20
        assert aorta == pytest.approx(tissues.aorta, abs=25)
        if name != "marsh":
            assert aorta > liver and min(liver, spleen) > 30


def test_centres_differ_in_contrast_and_noise():
    def looks(name):
        medians = [[np.median(core(volume, label)) for label in (LIVER, KIDNEYS, AORTA)] for volume in made(name)]
        grain = []
        for volume in made(name):
            inside = ndimage.binary_erosion(volume.labels == LIVER, np.ones((1, 7, 7)))
            grain.append(np.std(volume.array[inside] - ndimage.uniform_filter(volume.array, (0, 5, 5))[inside]))
        return (*np.mean(medians, axis=0), np.mean(grain))

    (liver, kidneys, _, grain), early, plain = (looks(name) for name in ("fjord", "heath", "marsh"))
    assert early[2] > 250 and early[0] < liver - 15 and early[3] > 1.3 * grain
    assert max(plain[:3]) < 75 and kidneys > plain[1] + 90


@first_centre
def test_anatomy_does_not_depend_on_the_size(name):
    fine, coarse = abdomen(CENTRES[name], seed=3, index=0, size=192), made(name)[0]
    shares = fine.labels.reshape(-1, 96, 2, 96, 2)
    for label in range(1, 5):
        first, second = (shares == label).mean(axis=(2, 4)) >= 0.5, coarse.labels == label
        assert 2 * np.sum(first & second) / (first.sum() + second.sum()) > 0.9, LABELS[label]
    halved = fine.array.reshape(-1, 96, 2, 96, 2).mean(axis=(2, 4))
    assert np.corrcoef(halved.ravel(), coarse.array.ravel())[0, 1] > 0.99


@every_centre
def test_what_is_read_is_what_was_drawn(name, tmp_path):
    (folder,) = synthesize(out=tmp_path / "out", kind="abdomen", centres=(name,), count=1, size=40, seed=3, quiet=True)
    drawn, volume = abdomen(CENTRES[name], seed=3, index=0, size=40), nifti.read_volume(folder / "images/0000.nii.gz")
    np.testing.assert_array_equal(volume.array[..., 0], drawn.array)
    assert volume.array.dtype == np.int16 and (volume.slope, volume.intercept) == (1, 0)
    assert volume.geometry.spacing == pytest.approx(drawn.spacing, rel=1e-5)
    np.testing.assert_allclose(volume.geometry.affine, drawn.affine, atol=1e-4)
    centre = drawn.affine @ [*(np.array(drawn.array.shape[::-1]) - 1) / 2, 1]
    np.testing.assert_allclose(centre, [0, 0, 0, 1], atol=1e-9)
    steps = np.array(drawn.spacing[::-1]) * [1 if letter in "RAS" else -1 for letter in CENTRES[name].axes]
    np.testing.assert_allclose(drawn.affine[:3, :3], np.diag(steps))
    mask = nifti.read_labels(folder / "masks/0000.nii.gz", volume.geometry)
    np.testing.assert_array_equal(mask, drawn.labels)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"index": -1}, {"size": 16}])
def test_bad_numbers_are_named(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}"):
        abdomen(CENTRES["fjord"], **({"seed": 0, "index": 0} | wrong))


@pytest.mark.parametrize("size", [32, 75])
def test_any_size(size):
    assert set(np.unique(abdomen(CENTRES["heath"], seed=0, index=0, size=size).labels)) == set(range(5))
