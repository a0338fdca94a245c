import copy

import pytest
import torch
from torch import nn

from ldm.interfaces import Conditioning
from ldm.nn.blocks import Execution, blocks_of, checkpoint_blocks, compile_blocks
from ldm.nn.dit import DiT


def network():
    torch.manual_seed(0)
    made = DiT(in_channels=4, patch_size=2, width=16, depth=3, num_heads=2, num_classes=3)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def outputs_and_gradients(made, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 4, 4, 4, generator=generator), torch.tensor([0.2, 0.7])
    nothing = torch.zeros(2, 1, 0)
    cond = Conditioning(nothing, torch.ones(2, 1, dtype=torch.bool), nothing[:, 0], torch.tensor([0, 3]))
    made.zero_grad()
    out = made.to(device)(x.to(device), t.to(device), cond.to(device))
    out.square().sum().backward()
    return [out.detach(), *(p.grad for p in made.parameters())]


def wrap(how):
    made = network()
    how(made)
    return made


@pytest.mark.parametrize(
    "how",
    [
        checkpoint_blocks,
        lambda made: compile_blocks(made, backend="aot_eager"),
        lambda made: (checkpoint_blocks(made), compile_blocks(made, backend="aot_eager")),
    ],
    ids=["checkpointed", "compiled", "both"],
)
def test_names_outputs_and_gradients_stay(how):
    plain, wrapped = network(), wrap(how)
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in wrapped.named_parameters()] == [name for name, _ in plain.named_parameters()]
    wrapped.load_state_dict(plain.state_dict())
    for ours, reference in zip(outputs_and_gradients(wrapped), outputs_and_gradients(plain), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiling for the CPU takes a minute")
def test_the_real_compiler_gives_the_same():
    made = wrap(lambda made: Execution(compile=True)(made))
    for ours, reference in zip(*(outputs_and_gradients(x, "cuda") for x in (made, network())), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-3)


def calls_of_a_step(made):
    """How often the first block's feed-forward is computed in one forward and backward pass."""
    calls = []
    made.blocks[0].feed_forward.register_forward_hook(lambda *_: calls.append(1))
    outputs_and_gradients(made)
    return len(calls)


def test_a_checkpointed_block_is_computed_again_and_only_once_more():
    assert calls_of_a_step(network()) == 1
    assert calls_of_a_step(wrap(checkpoint_blocks)) == 2
    assert calls_of_a_step(wrap(lambda made: (checkpoint_blocks(made), checkpoint_blocks(made)))) == 2


def test_a_copy_computes_with_its_own_parameters():
    """Averages are deep copies, and a copy's block must not call the block it was copied from."""
    for how in (checkpoint_blocks, lambda made: compile_blocks(made, backend="aot_eager")):
        first = wrap(how)
        second = copy.deepcopy(first)
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.zero_()
        torch.testing.assert_close(outputs_and_gradients(second)[0], outputs_and_gradients(network())[0])


def test_convolutions_become_channels_last_and_give_the_same():
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 6, 6)
    before = convolutions(x)
    Execution(channels_last=True)(convolutions)
    assert convolutions[0].weight.is_contiguous(memory_format=torch.channels_last)
    after = convolutions(x)
    assert after.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_by_default_nothing_changes():
    made = wrap(Execution())
    assert all("forward" not in vars(block) for block in blocks_of(made))
    assert all(block._compiled_call_impl is None for block in blocks_of(made))


def test_a_network_that_lists_no_blocks_is_refused():
    with pytest.raises(ValueError, match=r"Linear does not list its blocks.*task\.execution\.compile=false"):
        Execution(compile=True)(nn.Linear(2, 2))
