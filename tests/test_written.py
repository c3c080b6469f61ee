"""The list of what was written into a folder, files that are whole or not there, and arrays with their room on disk."""

import errno
import os
import threading

import numpy as np
import pytest

from jaxtta import trees, written
from jaxtta.core import InputError
from jaxtta.written import LIST, Written, foreign, listed, mapped, note, read_json, replacing


class Killed(BaseException):
    """The process ends."""


@pytest.fixture
def folder(tmp_path):
    """A folder that is being written into."""
    one = Written(tmp_path)
    yield one
    one.close()


def write(path, text="text"):
    with replacing(path) as part:
        part.write_text(text)


NAMES = [
    "a.txt",
    "deep/er/a.txt",
    "line\nbreak",
    "nel\x85 and\u2028",
    "tab\t",
    "ä",
    "a\u0308",
    "\udce9 of latin-1",
    255 * "n",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_of_any_name_is_known_again(folder, tmp_path, name):
    write(tmp_path / name)
    assert foreign(tmp_path) is None and name in listed(tmp_path)
    (tmp_path / f"b{name[1:]}").parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / f"b{name[1:]}").touch()
    assert foreign(tmp_path) == tmp_path / f"b{name[1:]}"
    folder.remove()
    assert (tmp_path / f"b{name[1:]}").exists() and not (tmp_path / name).exists()


def test_a_name_is_on_the_list_before_its_file_is_there(folder, tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as part:
        assert "a" in listed(tmp_path) and part.parent == tmp_path
        part.write_text("half")
        raise RuntimeError
    assert {path.name for path in tmp_path.iterdir()} == {LIST}
    note(tmp_path / "b")
    written.temporary(tmp_path / "b").write_text("half a file of a killed run")
    (tmp_path / ".c.tmp").write_text("of somebody else")
    folder.remove(temporary_alone=True)
    assert {path.name for path in tmp_path.iterdir()} == {LIST, ".c.tmp"}


def test_lists_of_inner_folders_count_and_whole_folders_too(folder, tmp_path):
    (tmp_path / "inner").mkdir()
    inner = Written(tmp_path / "inner")
    write(tmp_path / "inner" / "a")
    note(tmp_path / "whole", whole=True)
    (tmp_path / "whole" / "deep").mkdir(parents=True)
    (tmp_path / "whole" / "deep" / "b").touch()
    inner.close()
    write(tmp_path / "inner" / "c")
    assert {"inner/a", "inner/c", f"inner/{LIST}"} <= listed(tmp_path)
    assert "c" not in listed(tmp_path / "inner") and foreign(tmp_path) is None
    folder.remove("whole")
    assert {path.name for path in tmp_path.iterdir()} == {LIST, "inner"}


def test_what_orbax_had_not_finished_is_of_the_run_and_goes(folder, tmp_path, monkeypatch):
    left = tmp_path / "state" / "tree.orbax-checkpoint-tmp" / "d"

    def killed(*_):
        assert foreign(tmp_path) is None
        left.parent.mkdir(parents=True)
        left.touch()
        assert foreign(tmp_path) is None
        raise Killed

    monkeypatch.setattr(trees.ocp, "save", killed)
    monkeypatch.setattr(trees, "_remove", lambda *_, **__: None)  # a killed run cleans nothing up
    with pytest.raises(Killed):
        trees.save_tree(tmp_path / "state", {"a": np.ones(3)}, {})
    folder.remove(temporary_alone=True)
    assert not left.exists() and foreign(tmp_path) is None


def test_a_list_that_was_cut_off_is_gone_on_with(folder, tmp_path):
    write(tmp_path / "a")
    folder.close()
    with open(tmp_path / LIST, "ab") as file:
        file.write(b'"cut o')
    again = Written(tmp_path)
    write(tmp_path / "b")
    again.close()
    assert listed(tmp_path) == {LIST, "a", "b"}
    written._at_work[folder.folder] = folder  # for the fixture
    folder._file = os.open(tmp_path / LIST, os.O_RDONLY)


def test_many_threads_write_into_one_list(folder, tmp_path):
    threads = [threading.Thread(target=write, args=(tmp_path / f"{n % 20}",)) for n in range(20)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len((tmp_path / LIST).read_text().splitlines()) == 20 and foreign(tmp_path) is None


def test_one_run_writes_into_a_folder(folder, tmp_path):
    with pytest.raises(InputError, match="another run is at work"):
        Written(tmp_path)


def test_an_array_has_its_room_before_it_is_written(tmp_path, monkeypatch):
    array = mapped(tmp_path / "deep" / "a.npy", np.float32, (3, 500))
    assert array.shape == (3, 500) and not array.any()
    assert os.stat(tmp_path / "deep" / "a.npy").st_blocks * 512 >= array.nbytes
    array[1] = 7
    array.flush()
    assert (np.load(tmp_path / "deep" / "a.npy")[1] == 7).all()

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*b\.npy"):
        mapped(tmp_path / "b.npy", np.uint8, (10,))
    assert not (tmp_path / "b.npy").exists()
    monkeypatch.delattr(os, "posix_fallocate")  # as on a system that has none
    assert not mapped(tmp_path / "c.npy", np.uint8, (3, 100_000)).any()


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"null"])
def test_what_is_no_object_is_said_in_a_line(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(InputError, match=r"a\.json: not readable \(.*\)$"):
        read_json(tmp_path / "a.json")
