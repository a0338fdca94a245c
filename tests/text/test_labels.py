import pytest
import torch

from ldm.interfaces import Conditioning
from ldm.text.labels import ClassLabels


def test_names_become_their_numbers_and_the_empty_caption_the_null_class():
    encoder = ClassLabels(names=["cat", "dog", "great grey owl"])
    assert encoder.num_classes == 3
    assert encoder(["dog", "", " cat ", "great grey owl"]).labels.tolist() == [1, 3, 0, 2]


def test_without_names_captions_are_numbers():
    assert ClassLabels(num_classes=12)(["11", "0", ""]).labels.tolist() == [11, 0, 12]


def test_names_from_a_file(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("tench\ngoldfish\n\ngreat white shark\n")
    assert ClassLabels(names=str(file), num_classes=3)(["great white shark"]).labels.tolist() == [2]


def test_conditionings_of_labels_are_stacked_and_cut_like_any_other():
    encoder = ClassLabels(num_classes=5)
    both = Conditioning.concatenate([encoder(["1", "2"]), encoder(["", ""])])
    assert both.labels.tolist() == [1, 2, 5, 5] and both.tokens.shape == (4, 1, 0)
    assert both[1:3].labels.tolist() == [2, 5]


def test_there_is_nothing_to_train_and_nothing_to_save():
    encoder = ClassLabels(num_classes=5)
    assert not list(encoder.parameters()) and not encoder.state_dict()
    assert encoder.to("meta").here.device == torch.device("meta")


def test_an_unknown_class_is_named_with_its_nearest():
    encoder = ClassLabels(names=["cat", "dog", "owl", "fox", "bee"])
    with pytest.raises(ValueError, match="'dgo' names none of the 5 classes; did you mean 'dog'"):
        encoder(["cat", "dgo"])
    with pytest.raises(ValueError, match="they are cat, dog, owl, fox and 1 more"):
        encoder(["?"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "num_classes=None: give the number of classes, or their names"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_classes": 3, "names": ["a", "b"]}, "num_classes=3, but 2 names"),
        ({"names": ["a", "b", "a"]}, "'a' is empty or stands twice"),
        ({"names": ["a", ""]}, "'' is empty"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClassLabels(**options)


def test_a_missing_file_is_refused():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt: there is no such file"):
        ClassLabels(names="nowhere.txt")
