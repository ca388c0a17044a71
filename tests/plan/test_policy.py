"""`remat_policy="auto"`: what fits decides."""

from __future__ import annotations

import dataclasses

import jax
import mini
import pytest

from mmjax.plan import policy, topology


class Device:
    """What a policy looks at."""

    def __init__(self, kind: str, process: int = 0, slice_index: int = 0):
        self.device_kind, self.process_index, self.slice_index = kind, process, slice_index


def test_everything_is_kept_on_cpu(capsys):
    experiment = policy.resolved(mini.get_config(), jax.devices(), say=True)
    assert experiment.model.remat_policy == "none"
    assert capsys.readouterr() == ("", "")


def test_a_choice_of_the_config_stays():
    model = dataclasses.replace(mini.get_config().model, remat_policy="full")
    experiment = mini.get_config(model=model)
    assert policy.resolved(experiment, [Device("TPU v5 lite")]) == experiment


def test_the_first_that_fits_is_taken():
    """A chip whose memory shrinks keeps less and less."""
    where, experiment = topology.parse("v5e-1"), mini.get_config()
    sizes = dict(policy.sizes(experiment, where))
    assert list(sizes) == ["none", "dots", "attention", "full"]
    for size in sizes.values():
        room = int(size / policy.SPARE / where.chip.usable) + 4096
        chip = dataclasses.replace(where.chip, hbm_bytes=room)
        found, _ = policy.choose(experiment, dataclasses.replace(where, chip=chip))
        assert found == next(name for name, other in sizes.items() if other <= size + 4096)
    chip = dataclasses.replace(where.chip, hbm_bytes=1)
    found, _ = policy.choose(experiment, dataclasses.replace(where, chip=chip))
    assert found == "full"  # nothing fits


@pytest.mark.parametrize(
    ("devices", "slices", "chips"),
    [
        ([Device("TPU v5 lite", n // 4) for n in range(16)], 1, 16),
        ([Device("TPU v5 lite", n // 4, n // 8) for n in range(16)], 2, 8),
        ([Device("NVIDIA H100 80GB HBM3", n // 8) for n in range(16)], 2, 8),
    ],
)
def test_devices_are_a_topology(devices, slices, chips):
    where = policy.topology_of(devices)
    assert where is not None
    assert (where.slices, where.chips, where.num_devices) == (slices, chips, 16)


def test_a_device_of_which_nothing_is_known_is_none():
    assert policy.topology_of([Device("cpu")]) is None
