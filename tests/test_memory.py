"""What a large CT volume costs in memory, beside what the program needs anyway."""

import subprocess
import sys

import numpy as np
import pytest
from scans import volume_model

from jaxtta.data import nifti

GIGABYTE = 2**30


def peak(*arguments):
    """The greatest resident memory of a run of the command line, in bytes."""
    program = (
        "import resource, sys; from jaxtta.cli import main; status = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
def test_a_ct_volume_of_512_x_512_x_400_stays_below_two_gigabytes(tmp_path):
    model = volume_model(tmp_path / "model", size=(256, 256))
    affine = np.diag([0.8, 0.8, 1.0, 1.0])
    rng = np.random.default_rng(0)
    for name, depth in (("small", 8), ("large", 400)):
        plane = np.hypot(*(np.mgrid[-1:1:512j, -1:1:512j])) < 0.8
        volume = np.where(plane, 40, -1000).astype(np.int16) + rng.integers(-20, 20, (depth, 512, 512), np.int16)
        mask = np.broadcast_to(np.hypot(*(np.mgrid[-1:1:512j, -1:1:512j])) < 0.2, volume.shape).astype(np.uint8)
        nifti.write_new(tmp_path / name / "images" / "ct.nii.gz", volume, affine=affine)
        nifti.write_new(tmp_path / name / "masks" / "ct.nii.gz", mask, affine=affine)
        del volume, mask
    used = {}
    for name in ("small", "large"):
        data = ["--images", tmp_path / name / "images", "--masks", tmp_path / name / "masks"]
        call = ["adapt", "--source", model, *data, "--method", "source", "--quiet"]
        used[name] = peak(*call, "--out", tmp_path / f"{name}_out")
    assert used["large"] - used["small"] < 2 * GIGABYTE, used
