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
        self.platform = "tpu" if kind.startswith("TPU") else "gpu"


def test_everything_is_kept_on_cpu(capsys):
    experiment = policy.resolved(mini.get_config(), jax.devices(), say=True)
    assert experiment.model.remat_policy == "none"
    assert capsys.readouterr() == ("", "")


def test_a_choice_of_the_config_stays():
    model = dataclasses.replace(mini.get_config().model, remat_policy="full")
    experiment = mini.get_config(model=model)
    assert policy.resolved(experiment, [Device("TPU v5 lite")]) == experiment


@pytest.mark.slow
def test_the_quickest_that_fits_is_taken():
    """A chip whose memory shrinks keeps less and less."""
    where, experiment = topology.parse("v5e-1"), mini.get_config()
    found = {f.policy: f for f in policy.estimates(experiment, where)}
    assert list(found) == ["none", "dots", "attention", "full"]
    assert found["none"].size > found["full"].size
    for one in found.values():
        room = int(one.size / policy.SPARE / where.chip.usable) + 4096
        chip = dataclasses.replace(where.chip, hbm_bytes=room)
        taken = policy.choose(experiment, dataclasses.replace(where, chip=chip))
        fits = [f for f in found.values() if f.size <= one.size + 4096]
        assert taken.seconds == min(f.seconds for f in fits)
        assert taken.size <= one.size + 4096


def test_where_nothing_fits_the_least_is_taken():
    where = topology.parse("v5e-1")
    nothing = dataclasses.replace(where, chip=dataclasses.replace(where.chip, hbm_bytes=1))
    found = policy.choose(mini.get_config(), nothing)
    assert found.size == min(f.size for f in policy.estimates(mini.get_config(), where))


@pytest.mark.parametrize(
    ("devices", "slices", "chips"),
    [
        ([Device("TPU v5 lite", n // 4) for n in range(16)], 1, 16),
        ([Device("TPU v5 lite", n // 4, n // 8) for n in range(16)], 2, 8),
        ([Device("NVIDIA H100 80GB HBM3", n // 8) for n in range(16)], 2, 8),
        ([Device("NVIDIA H100 80GB HBM3", n, n // 8) for n in range(16)], 2, 8),
    ],
)
def test_devices_are_a_topology(devices, slices, chips):
    where = policy.topology_of(devices)
    assert where is not None
    assert (where.slices, where.chips, where.num_devices) == (slices, chips, 16)


def test_a_device_of_which_nothing_is_known_is_none():
    assert policy.topology_of([Device("cpu")]) is None
