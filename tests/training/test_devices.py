"""What a machine cannot do is said before anything is built."""

import pytest
import torch

from ldm.training.devices import check_devices

ON_CPU = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "batch_size": 32}


@pytest.mark.parametrize(
    ("asked", "processes"),
    [({}, 1), ({"devices": 2}, 2), ({"devices": 4, "num_nodes": 2}, 8), ({"devices": "auto"}, 1)],
)
def test_processes_are_devices_times_nodes(asked, processes):
    assert check_devices(**{**ON_CPU, **asked}) == processes


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"batch_size": 0}, "data.batch_size=0 must be at least 1"),
        ({"devices": 5}, "use 30 or 35"),
        ({"devices": 8, "num_nodes": 8}, "use 64"),
        ({"devices": 0}, "names no device"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(asked, said):
    with pytest.raises(ValueError, match=said):
        check_devices(**{**ON_CPU, **asked})


def test_a_missing_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="sees no GPU"):
        check_devices(accelerator="gpu", devices=1, num_nodes=1, batch_size=8)


@pytest.mark.parametrize("devices", [4, "0,1,2,3", [0, 1, 2, 3]])
def test_more_gpus_than_there_are_are_refused(monkeypatch, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="asks for 4 GPUs, but this machine has 2"):
        check_devices(accelerator="cuda", devices=devices, num_nodes=1, batch_size=8)
