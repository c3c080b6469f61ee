"""Finding images and masks: folders and lists as people have them, and one clear line for each way they go wrong."""

import pytest

from jaxtta.core import InputError
from jaxtta.data.cases import Case, find_cases


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def refused(*parts, images, **options):
    with pytest.raises(InputError) as caught:
        find_cases(images, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, f"{part} is not in: {message}"


def test_folder(tmp_path):
    folder = tmp_path / "Drishti"
    touch(
        folder,
        "eye10.png",
        "eye2.JPG",
        "eye1.tiff",
        "b/left.eye.bmp",
        "notes.txt",
        ".hidden.png",
        ".cache/a.png",
        "x.nii.gz",
    )
    cases = find_cases(folder)
    assert [case.name for case in cases] == ["b/left.eye", "eye1", "eye2", "eye10"]
    assert cases[0] == Case("b/left.eye", folder / "b" / "left.eye.bmp", None, "Drishti")
    assert {case.domain for case in find_cases(folder, domain="site A")} == {"site A"}


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "elsewhere", "a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "images")
    assert [case.name for case in find_cases(tmp_path / "images")] == ["linked/a"]


def test_folder_with_masks(tmp_path):
    touch(tmp_path / "images", "a.jpg", "sub/b.png")
    touch(tmp_path / "masks", "a.bmp", "sub/b.TIF", "no_image.png")
    cases = find_cases(tmp_path / "images", masks=tmp_path / "masks")
    assert [case.mask for case in cases] == [tmp_path / "masks" / "a.bmp", tmp_path / "masks" / "sub" / "b.TIF"]


def test_masks_inside_the_images_folder(tmp_path):
    touch(tmp_path, "a.jpg", "masks/a.png")
    cases = find_cases(tmp_path, masks=tmp_path / "masks")
    assert [(case.name, case.mask) for case in cases] == [("a", tmp_path / "masks" / "a.png")]
    refused(tmp_path, "folder of their own", images=tmp_path, masks=tmp_path)


def test_folders_that_go_wrong(tmp_path):
    refused(tmp_path / "absent", "no such folder", images=tmp_path / "absent")
    touch(tmp_path / "empty", "volume.nii.gz")
    refused(tmp_path / "empty", "no images", ".png .jpg .jpeg .tif .tiff .bmp", images=tmp_path / "empty")
    touch(tmp_path / "twins", "a.png", "a.jpg")
    refused("a.png", "a.jpg", "rename or remove", images=tmp_path / "twins")
    touch(tmp_path / "images", "a.png", "b.png")
    refused(tmp_path / "nowhere", "check the path", images=tmp_path / "images", masks=tmp_path / "nowhere")
    touch(tmp_path / "masks", "a_mask.png")
    expected = (tmp_path / "images" / "a.png", "has no mask", tmp_path / "masks" / "a", "a_mask.png", "image,mask")
    refused(*expected, images=tmp_path / "images", masks=tmp_path / "masks")
    touch(tmp_path / "double", "a.png", "a.bmp", "b.png")
    refused("a.bmp", "rename or remove", images=tmp_path / "images", masks=tmp_path / "double")
    refused("takes no root", images=tmp_path / "images", root=tmp_path)
    refused("a.png", "single image", images=tmp_path / "images" / "a.png")


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def test_list_in_the_reference_form(tmp_path):
    touch(tmp_path, "A/image/2.png", "A/image/10.png", "A/mask/2.bmp", "A/mask/10.bmp")
    text = "image,mask\nA/image/10.png,A/mask/10.bmp\n\nA/image/2.png,A\\mask\\2.bmp\n"
    cases = find_cases(write(tmp_path / "A_test.csv", text))
    assert cases == [
        Case("A/image/10", tmp_path / "A/image/10.png", tmp_path / "A/mask/10.bmp", "A_test"),
        Case("A/image/2", tmp_path / "A/image/2.png", tmp_path / "A/mask/2.bmp", "A_test"),
    ]
    (tmp_path / "lists").mkdir()
    moved = write(tmp_path / "lists" / "A.csv", text)
    assert [case.name for case in find_cases(moved, root=tmp_path)] == ["A/image/10", "A/image/2"]


def test_list_as_a_spreadsheet_writes_it(tmp_path):
    touch(tmp_path, "Müller, left.png", "b.png")
    path = write(tmp_path / "l.csv", 'Image , DOMAIN, age\r\n"Müller, left.png",site 1,71\r\nb.png,,\r\n', "utf-8-sig")
    cases = find_cases(path)
    assert [(case.name, case.domain, case.mask) for case in cases] == [
        ("Müller, left", "site 1", None),
        ("b", "l", None),
    ]
    assert [case.domain for case in find_cases(path, domain="all")] == ["all", "all"]


def test_names_stay_inside_the_output_folder(tmp_path):
    touch(tmp_path, "images/a.png", "lists/empty", "outside/b.png")
    text = f"image\n../images/a.png\n{tmp_path / 'outside' / 'b.png'}\n"
    names = [case.name for case in find_cases(write(tmp_path / "lists" / "l.csv", text))]
    assert names == ["images/a", "b"]


def test_list_with_a_folder_of_masks(tmp_path):
    touch(tmp_path, "a.png", "m/a.png", "m/b.png")
    case = find_cases(write(tmp_path / "l.csv", "image\na.png\n"), masks=tmp_path / "m")[0]
    assert case.mask == tmp_path / "m" / "a.png"
    both = write(tmp_path / "both.csv", "image,mask\na.png,m/a.png\n")
    refused(both, tmp_path / "m", "leave one out", images=both, masks=tmp_path / "m")


def test_lists_that_go_wrong(tmp_path):
    touch(tmp_path, "a.png", "a.jpg", "m.png")
    path = tmp_path / "list.csv"
    for text, parts in [
        ("", ["(none)", "expected image"]),
        ("image;mask\na.png;m.png\n", ["image;mask", "commas"]),
        ("picture,mask\na.png,m.png\n", ["picture, mask", "expected image"]),
        ("image,mask\n\n", ["no rows"]),
        ("image\na.png\n\nb.png\n", ["line 4", tmp_path / "b.png", "root"]),
        ("image,mask\na.png,n.png\n", ["line 2", tmp_path / "n.png"]),
        ("image,mask\na.png,\n", ["line 2", "no mask"]),
        ("image,mask\na.png\n", ["line 2", "no mask"]),
        ("mask,image\nm.png\n", ["line 2", "no image"]),
        ("image\na.png\na.jpg\n", ["lines 2 and 3", "case a twice"]),
    ]:
        refused(path, *parts, images=write(path, text))
    path.write_bytes("image\nMüller.png\n".encode("utf-16"))
    refused(path, "not a readable list", "UTF-8", images=path)


def test_absolute_paths_of_a_list_are_named_from_where_they_part(tmp_path):
    for name in ("far/a/1.png", "far/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    listed = tmp_path / "list.csv"
    listed.write_text(f"image\n{tmp_path}/far/a/1.png\n{tmp_path}/far/b/1.png\n")
    assert [case.name for case in find_cases(listed)] == ["a/1", "b/1"]
