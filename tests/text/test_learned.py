import pytest
import torch

from ldm.text.learned import LearnedTextEncoder, buckets, words


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return LearnedTextEncoder(width=16, depth=2, num_heads=2, length=8, num_buckets=64).eval()


def test_words():
    assert words("A red  ring, Café!") == ["a", "red", "ring", ",", "café", "!"]


def test_hashes_are_stable_over_processes_and_rarely_collide():
    assert buckets("circle", 4096) == (
        957,
        2331,
    )  # the value itself is part of trained weights: must never change
    pairs = {buckets(f"word{i}", 4096) for i in range(20_000)}
    assert len(pairs) > 19_950


def test_every_batch_has_the_same_length_and_rows_do_not_see_each_other(encoder):
    captions = ["a red circle", "", "two blue squares above a very long row of other words"]
    together = encoder(captions)
    assert together.tokens.shape == (3, 8, 16) and together.mask.sum(1).tolist() == [4, 1, 8]
    for row, caption in enumerate(captions):
        alone = encoder([caption])
        torch.testing.assert_close(alone.tokens[0], together.tokens[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.pooled[0], together.pooled[row], rtol=1e-4, atol=1e-5)


def test_order_and_words_matter(encoder):
    pooled = encoder(["red circle left of blue ring", "blue circle left of red ring", "red circle"]).pooled
    assert torch.cdist(pooled, pooled).add(torch.eye(3)).min() > 1e-3


def test_padding_has_no_influence(encoder):
    short = encoder(["a ring"])
    with torch.no_grad():
        encoder.embedding.weight[0] += 100.0  # row 0 is what padding points to
    if 0 not in {row for word in ("a", "ring") for row in buckets(word, 64)}:
        torch.testing.assert_close(encoder(["a ring"]).pooled, short.pooled)


def test_a_length_without_room_is_refused():
    with pytest.raises(ValueError, match="length=1 leaves no room"):
        LearnedTextEncoder(width=16, length=1)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        LearnedTextEncoder(width=16, kernel_size=4)


def test_a_convolution_hears_the_words_around_and_no_others():
    torch.manual_seed(0)
    near = LearnedTextEncoder(
        width=16, num_convolutions=2, kernel_size=3, depth=0, length=12, num_buckets=64
    ).eval()
    heard = near(["a b c d e f g h", "a b c d e f g x"])  # the last word differs: two steps away it is heard
    differ = (heard.tokens[0] - heard.tokens[1]).abs().amax(-1) > 1e-6
    assert differ[heard.mask[0]].tolist() == [False] * 6 + [True] * 3
