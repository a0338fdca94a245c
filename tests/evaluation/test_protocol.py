from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from ldm.evaluation.protocol import RECORDED, MixedProtocols, Protocol, differences, refuse_mixed
from ldm.evaluation.scores import (
    PerSample,
    Score,
    find_score,
    newest,
    read_per_sample,
    read_scores,
    write_score,
)

PROTOCOL = Protocol(
    metric="kid",
    reference="data/shapes/val, 1,000 pictures",
    reference_hash="ab" * 32,
    prompts_hash="cd" * 32,
    num_images=500,
    resize="bicubic 299",
    features="inception",
    features_hash="ef" * 32,
    sampler={"_target_": "ldm.sampling.samplers.Euler"},
    grid={"_target_": "ldm.sampling.grids.Uniform"},
    num_steps=25,
    guidance={"_target_": "ldm.sampling.guidance.ClassifierFree", "scale": 2.0, "interval": [0.0, 1.0]},
    weights="ema",
    ema_width=0.998,
    codec_hash="01" * 32,
    precision="bf16",
    seeds=(0, 1),
    details={"degree": 3},
    made_with={"commit": "4c48311", "torch": "2.9"},
)

OTHERWISE = {
    "metric": "fid",
    "version": 2,
    "reference": "data/emoji/val",
    "reference_hash": "ba" * 32,
    "prompts_hash": "dc" * 32,
    "num_images": 501,
    "resize": "bilinear 299",
    "features": "dinov2",
    "features_hash": "fe" * 32,
    "sampler": {"_target_": "ldm.sampling.samplers.Heun"},
    "grid": {"_target_": "ldm.sampling.grids.Karras"},
    "num_steps": 26,
    "guidance": {**PROTOCOL.guidance, "scale": 2.5},
    "weights": "online",
    "ema_width": 0.999,
    "codec_hash": "10" * 32,
    "precision": "float32",
    "seeds": (0, 2),
    "details": {"degree": 2},
}


def score(protocol=PROTOCOL, *, run="shapes_dit/a", value=0.5, images_seen=1000, **others) -> Score:
    return Score(
        protocol=protocol,
        value=value,
        low=value - 0.1,
        high=value + 0.1,
        interval="BCa",
        num=500,
        per_seed=(value, value),
        run=run,
        checkpoint=f"images_{images_seen:09d}",
        checkpoint_hash=f"{images_seen:064x}",
        images_seen=images_seen,
        **others,
    )


def test_every_field_has_another_value_below():
    assert {entry.name for entry in dataclasses.fields(Protocol)} == {*OTHERWISE, *RECORDED}


@pytest.mark.parametrize("name", [name for name in OTHERWISE if name != "metric"])
def test_each_single_changed_field_is_refused_and_named(name):
    other = dataclasses.replace(PROTOCOL, **{name: OTHERWISE[name]})
    assert other.hash != PROTOCOL.hash
    with pytest.raises(
        MixedProtocols, match=rf"kid of shapes_dit/a and of shapes_dit/b .* {name}[ .]"
    ) as caught:
        refuse_mixed([score(), score(other, run="shapes_dit/b")])
    others = [field for field in OTHERWISE if field != name and f" {field} (" in str(caught.value)]
    assert not others, "only what differs is named"


def test_another_metric_never_meets():
    other = dataclasses.replace(PROTOCOL, metric="fid", resize="none")
    assert other.hash != PROTOCOL.hash
    refuse_mixed([score(), score(other)])


def test_who_measured_it_with_what_is_recorded_and_not_hashed():
    other = dataclasses.replace(PROTOCOL, made_with={"commit": "other"})
    assert other.hash == PROTOCOL.hash and other.to_plain()["made_with"] == {"commit": "other"}
    refuse_mixed([score(), score(other)])


def test_what_is_to_be_compared_may_differ_and_nothing_else():
    stronger = dataclasses.replace(PROTOCOL, guidance=OTHERWISE["guidance"])
    for across in (["guidance"], ["guidance.scale"]):
        refuse_mixed([score(), score(stronger)], across=across)
    for across in (["guidance.interval"], ["guid"]):
        with pytest.raises(MixedProtocols, match=r"guidance\.scale \(2 / 2\.5\)"):
            refuse_mixed([score(), score(stronger)], across=across)
    longer = dataclasses.replace(stronger, num_steps=50)
    with pytest.raises(MixedProtocols, match=r"in num_steps \(25 / 50\);"):
        refuse_mixed([score(), score(longer)], across=["guidance"])


def test_the_hash_knows_neither_the_order_of_keys_nor_how_a_number_was_written():
    turned = dict(reversed(PROTOCOL.guidance.items())) | {"interval": (0, 1), "scale": 2}
    same = dataclasses.replace(PROTOCOL, guidance=turned)
    assert same == PROTOCOL and same.hash == PROTOCOL.hash and not list(differences(PROTOCOL, same))


def test_what_is_written_is_read_again(tmp_path):
    first, second = score(), score(images_seen=2000, extra={"kernel": "cubic"}, lower_is_better=None)
    path = write_score(tmp_path, second)
    write_score(tmp_path, first)
    assert path.parent == tmp_path / "evaluation" / "scores"
    assert path.name == f"kid-images_000002000-{PROTOCOL.hash[:8]}.json"
    assert json.loads(path.read_text())["protocol_hash"] == PROTOCOL.hash
    assert read_scores(tmp_path) == [first, second]
    assert newest(read_scores(tmp_path)) == {"kid": second}
    assert find_score(tmp_path, PROTOCOL, second.checkpoint_hash) == second
    assert find_score(tmp_path, dataclasses.replace(PROTOCOL, version=2), second.checkpoint_hash) is None
    assert not list(tmp_path.rglob(".*"))


def test_the_same_measurement_is_replaced_and_another_one_stands_beside_it(tmp_path):
    write_score(tmp_path, score(value=0.5))
    write_score(tmp_path, score(value=0.6))
    write_score(tmp_path, score(dataclasses.replace(PROTOCOL, num_steps=50), value=0.7))
    assert sorted(one.value for one in read_scores(tmp_path)) == [0.6, 0.7]


def test_values_of_single_samples_stand_beside_the_record(tmp_path):
    kept = PerSample(("a", "ü/b"), np.array([[1.0, np.nan], [2.0, 3.0]]), ("-1", "+1"))
    write_score(tmp_path, score(), per_sample=kept)
    found = read_per_sample(tmp_path, score())
    assert found is not None and (found.keys, found.columns) == (kept.keys, kept.columns)
    np.testing.assert_array_equal(found.values, kept.values)
    assert read_per_sample(tmp_path, score(images_seen=5)) is None


def test_a_record_changed_by_hand_is_refused_and_named(tmp_path):
    path = write_score(tmp_path, score())
    path.write_text(path.read_text().replace('"num_steps": 25', '"num_steps": 50'))
    with pytest.raises(ValueError, match=rf"{path.name}.*changed by hand.*delete it"):
        read_scores(tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=path.name):
        read_scores(tmp_path)


def test_what_no_table_could_show_is_refused():
    with pytest.raises(ValueError, match="finite"):
        score(value=float("nan"))
    with pytest.raises(ValueError, match="plain data"):
        dataclasses.replace(PROTOCOL, details={"network": object()})
    with pytest.raises(ValueError, match="cannot be called 'A metric'"):
        Protocol(metric="A metric")
    with pytest.raises(ValueError, match="a key stands there twice"):
        PerSample(("a", "a"), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="protocol this version"):
        Protocol.from_plain({"metric": "kid", "colour": "red"})
