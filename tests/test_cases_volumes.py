"""Finding volumes: nnU-Net's names, modalities in files of their own, lists of them, and what goes wrong with them."""

import pytest
from test_cases import refused, touch, write

from jaxtta.data.cases import find_cases, kind_of


def found(images, modalities=1, **options):
    return find_cases(images, kind="volume", modalities=modalities, **options)


def refused_volumes(*parts, images, modalities=1, **options):
    refused(*parts, images=images, kind="volume", modalities=modalities, **options)


def test_a_folder_of_volumes(tmp_path):
    touch(tmp_path, "b/scan10.nii.gz", "b/scan2.NII", "v1.5.nii", ".x.nii", "a.png", "a.hdr", "a.img", "a.nii.json")
    cases = found(tmp_path)
    assert [case.name for case in cases] == ["b/scan2", "b/scan10", "v1.5"]
    assert [case.image.name for case in cases] == ["scan2.NII", "scan10.nii.gz", "v1.5.nii"]
    assert all(case.more == () and case.patient == "" and case.files == [case.image] for case in cases)


def test_masks_bear_the_name_with_any_suffix_and_without_nnu_nets_number(tmp_path):
    touch(tmp_path / "images", "a_0000.nii.gz", "b.nii", "sub/c_0000.nii")
    touch(tmp_path / "masks", "a.nii", "b.nii.gz", "sub/c_0000.nii.gz", "sub/c.nii", "other.nii")
    cases = found(tmp_path / "images", masks=tmp_path / "masks")
    assert [case.name for case in cases] == ["a_0000", "b", "sub/c_0000"]
    assert [case.mask.name for case in cases] == ["a.nii", "b.nii.gz", "c_0000.nii.gz"]
    touch(tmp_path / "images", "d_0001.nii")
    refused_volumes("d_0001.nii", "has no mask", ".nii.gz", images=tmp_path / "images", masks=tmp_path / "masks")


def test_modalities_in_files_of_their_own(tmp_path):
    touch(tmp_path / "images", *(f"{name}_{m:04d}.nii.gz" for name in ("p10", "p2", "x/p1") for m in (1, 0, 2)))
    touch(tmp_path / "masks", "p2.nii.gz", "p10.nii.gz", "x/p1.nii")
    cases = found(tmp_path / "images", 3, masks=tmp_path / "masks")
    assert [case.name for case in cases] == ["p2", "p10", "x/p1"]
    files = [tmp_path / "images" / f"p2_{m:04d}.nii.gz" for m in range(3)]
    assert [cases[0].image, *cases[0].more] == files
    assert cases[0].files == [*files, tmp_path / "masks" / "p2.nii.gz"]


def test_modalities_in_one_file(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii")
    assert [(case.name, case.more) for case in found(tmp_path, 4)] == [("a", ()), ("b", ())]


def test_modalities_that_are_missing_or_too_many(tmp_path):
    touch(tmp_path / "one", "a_0000.nii", "a_0001.nii", "b_0000.nii")
    refused_volumes(
        tmp_path / "one" / "b", "_0000", "_0001", "add the missing file", images=tmp_path / "one", modalities=2
    )
    touch(tmp_path / "gap", "a_0000.nii", "a_0002.nii")
    refused_volumes(tmp_path / "gap" / "a", "_0000 _0002", images=tmp_path / "gap", modalities=2)
    refused_volumes(tmp_path / "one" / "a", "_0002", images=tmp_path / "one", modalities=3)
    touch(tmp_path / "mixed", "a_0000.nii", "a_0001.nii", "b.nii")
    refused_volumes(tmp_path / "mixed" / "b.nii", "2 modalities", "b_0000", images=tmp_path / "mixed", modalities=2)


def test_one_name_with_both_suffixes(tmp_path):
    touch(tmp_path / "images", "a.nii", "a.nii.gz")
    for count in (1, 2):
        refused_volumes("a.nii", "a.nii.gz", "rename or remove", images=tmp_path / "images", modalities=count)
    touch(tmp_path / "single", "a.nii")
    refused_volumes("a.nii.gz", "rename", images=tmp_path / "single", masks=tmp_path / "images")
    refused_volumes("a.nii", "single image", "folder", images=tmp_path / "single" / "a.nii")
    touch(tmp_path / "pictures", "a.png")
    refused_volumes(tmp_path / "pictures", ".nii .nii.gz", images=tmp_path / "pictures")
    refused(tmp_path / "single", ".png", images=tmp_path / "single")


def test_a_list_of_modalities_and_patients(tmp_path):
    touch(tmp_path, *(f"{m}/{i}.nii.gz" for m in ("t1", "t2", "masks") for i in range(2)))
    rows = [f"t1/{i}.nii.gz,t2/{i}.nii.gz,masks/{i}.nii.gz,site,p{i}" for i in (1, 0)]
    path = write(tmp_path / "l.csv", "\n".join(["image,image2,mask,domain,patient", *rows]))
    cases = found(path, 2)
    assert [(case.name, case.patient, case.domain) for case in cases] == [
        ("t1/1", "p1", "site"),
        ("t1/0", "p0", "site"),
    ]
    assert cases[0].files == [tmp_path / part / "1.nii.gz" for part in ("t1", "t2", "masks")]
    refused_volumes(path, "no column image3", "3 modalities", images=path, modalities=3)
    refused_volumes(path, "column image2", "`channels`", images=path, modalities=1)
    write(path, "image,image2\nt1/0.nii.gz,\n")
    refused_volumes(path, "line 2", "no image2", images=path, modalities=2)
    write(path, "image,image2\nt1/0.nii.gz,t2/9.nii.gz\n")
    refused_volumes("line 2", tmp_path / "t2/9.nii.gz", images=path, modalities=2)
    write(path, "image\nt1/0.nii.gz\nt1/0.nii.gz\n")
    refused_volumes("lines 2 and 3", "t1/0 twice", images=path)


def test_a_list_of_one_file_of_several_modalities(tmp_path):
    touch(tmp_path, "a.nii.gz")
    assert found(write(tmp_path / "l.csv", "image\na.nii.gz\n"), 2)[0].more == ()


def test_the_kind_of_a_folder_or_list(tmp_path):
    touch(tmp_path / "volumes", "deep/er/a.NII.GZ", "b.png")
    touch(tmp_path / "pictures", "b.png", "notes.txt")
    assert kind_of(tmp_path / "volumes") == "volume" and kind_of(tmp_path / "pictures") == "image"
    assert kind_of(tmp_path / "volumes" / "deep" / "er" / "a.NII.GZ") == "volume"
    assert kind_of(tmp_path / "nowhere") == kind_of(tmp_path / "pictures" / "b.png") == "image"
    path = tmp_path / "l.csv"
    assert kind_of(write(path, "mask,image\nm.png,v.nii\n")) == "volume"
    assert kind_of(write(path, "mask,image\nm.nii,v.png\n")) == "image"


@pytest.mark.parametrize("text", ["mask,image\nm.nii\n", "image,mask\n,m.nii\n"])
def test_a_first_line_without_an_image_is_told_of_by_who_reads_the_list(tmp_path, text):
    path = write(tmp_path / "l.csv", text)
    assert kind_of(path) == "image"
    refused_volumes(path, "line 2", "no image", images=path)
