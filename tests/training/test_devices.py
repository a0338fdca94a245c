"""What a machine cannot do is said before anything is built."""

import pytest
import torch

from ldm.training import devices
from ldm.training.devices import check_devices, choose_precision

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
        ({"devices": 2, "pieces": 3}, "each in 3 pieces .*: use 30 or 36"),
        ({"pieces": 0}, "accumulate_grad_batches=0"),
        ({"sharded": True}, "there is only one: use trainer=gpu"),
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


@pytest.fixture
def units(monkeypatch):
    """Say which devices have units for bfloat16."""
    having: set[str] = set()
    monkeypatch.setattr(devices, "has_bfloat16_units", lambda device: device in having)
    return having


def test_left_open_it_is_bfloat16_only_where_hardware_multiplies_it(units):
    assert choose_precision(None, accelerator="cpu") == "32-true"
    assert choose_precision(None, accelerator="gpu") == "32-true"
    units |= {"cpu", "cuda"}
    assert choose_precision(None, accelerator="cpu") == "bf16-mixed"
    assert choose_precision(None, accelerator="gpu") == "bf16-mixed"


def test_what_is_named_is_taken(units, caplog):
    for precision in ("32-true", "16-mixed", "64-true", 32):
        assert choose_precision(precision, accelerator="cpu") == str(precision)
    assert not caplog.records
    assert choose_precision("bf16-mixed", accelerator="cpu") == "bf16-mixed"
    assert "far slower than 32-true" in caplog.text


def test_a_precision_the_gpu_lacks_is_refused(units, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ValueError, match=r"Tesla T4 has no bfloat16: use trainer\.precision=32-true"):
        choose_precision("bf16-mixed", accelerator="cuda")


def test_a_precision_that_nothing_has_and_one_that_fsdp_has_not():
    with pytest.raises(ValueError, match=r"trainer\.precision=bf17 is not known"):
        choose_precision("bf17", accelerator="cpu")
    with pytest.raises(ValueError, match="16-mixed does not go with trainer=fsdp"):
        choose_precision("16-mixed", accelerator="cpu", sharded=True)


def test_gathering_in_bfloat16_needs_a_step_in_bfloat16(units):
    fsdp = {"accelerator": "cpu", "sharded": True, "gather_bf16": True}
    with pytest.raises(ValueError, match=r"gather_bf16=true .* left open, which here means 32-true"):
        choose_precision(None, **fsdp)
    with pytest.raises(
        ValueError, match=r"gather_bf16=true .* set to 32-true: use trainer\.precision=bf16-mixed"
    ):
        choose_precision("32-true", **fsdp)
    assert choose_precision("bf16-mixed", **fsdp) == "bf16-mixed"
    units.add("cpu")
    assert choose_precision(None, **fsdp) == "bf16-mixed"


def test_more_processes_than_cores_are_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(devices, "available_cores", lambda: 2)
    assert check_devices(**{**ON_CPU, "devices": 2}) == 2 and not caplog.records
    assert check_devices(**{**ON_CPU, "devices": 4}) == 4
    assert (
        "4 processes" in caplog.text and "2 CPU cores" in caplog.text and "trainer.devices=2" in caplog.text
    )
