"""The parts of FLUX's attention that differ where a gradient is wanted, or on some cards."""

import pytest
import torch


def numbers(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_positions_by_the_fused_kernel_have_the_gradient_of_the_plain_operations(pack):
    from comfy.ldm.flux.layers import EmbedND
    from comfy.ldm.flux.math import _apply_rope

    pe = EmbedND(dim=16, theta=10000, axes_dim=[4, 6, 6])(numbers(0, 1, 10, 3).abs() * 20)
    q, k = (numbers(seed, 2, 3, 10, 16).float().requires_grad_() for seed in (1, 2))
    gradients = numbers(3, 2, 3, 10, 16).float(), numbers(4, 2, 3, 10, 16).float()
    ours = pack("nodes.host.gradients.attention")._Rotated.apply(q, k, pe)
    with pack("nodes.host.gradients.differentiable").in_training():
        theirs = _apply_rope(q, k, pe)
    for found, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    back = [torch.autograd.grad(rotated, (q, k), gradients) for rotated in (ours, theirs)]
    for found, expected in zip(*back, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "capability, compiled, first",
    [((9, 0), False, "CUDNN_ATTENTION"), ((9, 0), True, "FLASH_ATTENTION"), ((8, 9), False, "FLASH_ATTENTION")],
)
def test_the_quicker_attention_of_a_card_comes_first_for_a_while(pack, monkeypatch, capability, compiled, first):
    import comfy.ops
    from torch.nn.attention import SDPBackend

    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    monkeypatch.setattr(comfy.ops, "SDPA_BACKEND_PRIORITY", list(order), raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(KeyError), pack("nodes.host.gradients.attention").quickest(torch.device("cuda"), compiled):
        assert comfy.ops.SDPA_BACKEND_PRIORITY[0].name == first
        assert set(comfy.ops.SDPA_BACKEND_PRIORITY) == set(order)
        raise KeyError
    assert comfy.ops.SDPA_BACKEND_PRIORITY == order
