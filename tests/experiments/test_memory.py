"""The report of memory for meshes that are not there."""

import re

import pytest

from experiments import memory
from paradigms.core.errors import InputError


def report(python, mesh, *options):
    done = python("-m", "experiments", "memory", "digits_mlp", "--mesh", mesh, *options)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(.*?)\s+([\d.]+) MiB$", done.stdout, re.MULTILINE)
    return {what.strip(): float(size) for what, size in found}


def test_state_and_data_take_what_can_be_counted_by_hand(python):
    """On 64 devices, which no machine of ours has; `fsdp` shares out the two large kernels."""
    found = report(python, "data=16,fsdp=4")
    seeds, mib = 3, 2**20
    kernels = (64 * 256 + 256 * 256) / 4
    parameters = 4 * seeds * (kernels + 256 * 10 + 256 + 256 + 10)
    assert found["parameters"] == pytest.approx(parameters / mib, abs=0.005)
    # Two moments, and a few numbers.
    others = found["optimiser and all else of the state"]
    assert others == pytest.approx(2 * parameters / mib, abs=0.005)
    # 1,100 images of 8x8 bytes and their labels, in all of the runs' one copy.
    assert found["data"] == pytest.approx(1100 * (64 + 4) / mib, abs=0.005)
    assert found["temporaries"] > 0
    assert found["in all"] == pytest.approx(sum(found.values()) - found["in all"], abs=0.03)


@pytest.mark.slow
def test_parts_of_a_batch_take_less(python):
    """Of 1,024 images at once the activations are most of it; the state is what it was."""
    whole, in_parts = (
        report(python, "data=2", "--batch-size", "1024", "--accumulate", parts)
        for parts in ("1", "8")
    )
    assert in_parts["temporaries"] < whole["temporaries"] / 2
    assert in_parts["parameters"] == whole["parameters"]


def test_a_bad_mesh_or_name_is_one_line_before_anything_is_compiled():
    with pytest.raises(InputError, match="mesh 'rows=3': unknown axis 'rows'"):
        memory.report("digits_mlp", "rows=3", ())
    with pytest.raises(InputError, match="there is no experiment 'digits'"):
        memory.report("digits", "data=2", ())
