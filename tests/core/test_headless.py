"""The diffusers backend, against diffusers called by hand."""

import copy
import functools
import math

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from torch.nn import Linear

from srpo_core.algorithm.noise_levels import shift
from srpo_core.algorithm.objective import Objective
from srpo_core.algorithm.terms import Term
from srpo_core.headless.decoder import DiffusersDecoder
from srpo_core.headless.flux import FluxFlow, image_ids, pack, unpack
from srpo_core.headless.prompts import ClipPrompts
from srpo_core.run.draws import Batching
from srpo_core.run.loop import train
from srpo_core.run.run import Run
from srpo_core.run.settings import Settings
from srpo_core.run.training import Training
from srpo_core.toy import models
from srpo_core.toy.world import toy_world, world_of

FLUX = dict(
    in_channels=16,
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=8,
    pooled_projection_dim=6,
    guidance_embeds=True,
    axes_dims_rope=(4, 6, 6),
)
CHANNELS = 4
HEIGHT = 4
WIDTH = 6
SIGMA = torch.tensor([0.9643, 0.7512], dtype=torch.float64)


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def new_flux(**changes):
    return seeded(lambda: FluxTransformer2DModel(**FLUX | changes))


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = normal(1, 2, CHANNELS, HEIGHT, WIDTH)
COND = {"context": normal(2, 2, 5, 8), "pooled": normal(3, 2, 6)}


def by_hand(transformer, x, sigma, guidance, cond=COND):
    """Velocity as FluxPipeline asks for it."""
    b, c, h, w = x.shape
    tokens = transformer(
        hidden_states=FluxPipeline._pack_latents(x, b, c, h, w),
        encoder_hidden_states=cond["context"],
        pooled_projections=cond["pooled"],
        timestep=sigma.float(),
        guidance=torch.full((b,), guidance) if transformer.config.guidance_embeds else None,
        img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
        txt_ids=torch.zeros(5, 3),
    ).sample
    return FluxPipeline._unpack_latents(tokens, h * 8, w * 8, 8)


def moved(flow, seed=9):
    """Give the adapter, which starts at zero, something to do."""
    for i, parameter in enumerate(flow.parameters.values()):
        parameter.data += 0.2 * normal(seed + i, *parameter.shape).to(parameter)
    return flow


def gradients(flow):
    return {name: parameter.grad.clone() for name, parameter in flow.parameters.items()}


def block_linears(transformer):
    blocks = (transformer.transformer_blocks, transformer.single_transformer_blocks)
    return [module for block in blocks for module in block.modules() if isinstance(module, Linear)]


# FLUX


def test_packing_is_the_pipelines():
    x = normal(0, 2, CHANNELS, HEIGHT, WIDTH)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, CHANNELS, HEIGHT, WIDTH))
    assert torch.equal(unpack(pack(x), HEIGHT, WIDTH), x)
    ids = FluxPipeline._prepare_latent_image_ids(1, HEIGHT // 2, WIDTH // 2, "cpu", torch.float32)
    assert torch.equal(image_ids(HEIGHT, WIDTH), ids)


@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_velocity_is_the_transformers(guidance_embeds):
    flow = moved(FluxFlow(new_flux(guidance_embeds=guidance_embeds), rank=2, guidance=2.5))
    found = flow.velocity(X, SIGMA, COND).value
    with torch.no_grad():
        torch.testing.assert_close(found, by_hand(flow.transformer, X, SIGMA, 2.5), rtol=0, atol=1e-6)
    assert found.dtype == torch.float32 and not found.requires_grad


def test_time_is_embedded_exactly_in_bf16():
    flow = FluxFlow(new_flux().bfloat16(), rank=2)
    seen = []
    flow.transformer.time_text_embed.time_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    flow.velocity(X, SIGMA, COND)
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0], 1000 * SIGMA.float())
    assert len(flow.transformer.time_text_embed._forward_pre_hooks) == 0


def test_bf16_model_has_an_fp32_adapter_and_fp32_latents():
    flow = moved(FluxFlow(new_flux().bfloat16(), rank=2))
    assert {parameter.dtype for parameter in flow.parameters.values()} == {torch.float32}
    pulled = flow.velocity(X, SIGMA, COND)
    assert pulled.value.dtype == torch.float32
    # bf16 turns 1000 times the guidance 3.5 into 3504, in ComfyUI as in diffusers
    exact = moved(FluxFlow(new_flux(), rank=2, guidance=3.504)).velocity(X, SIGMA, COND).value
    assert (pulled.value - exact).norm() / exact.norm() < 0.03
    pulled.pull(torch.ones_like(X))
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in flow.parameters.values())
    assert flow.rollout(X, COND).dtype == torch.float32


@pytest.mark.parametrize("checkpointing", [True, False])
def test_pull_is_straight_autograd(checkpointing):
    flow = moved(FluxFlow(new_flux(), rank=2, checkpointing=checkpointing))
    assert flow.transformer.is_gradient_checkpointing == checkpointing
    gradient = normal(4, *X.shape)
    straight = (by_hand(flow.transformer, X, SIGMA, 3.5) * gradient).sum()
    expected = torch.autograd.grad(straight, list(flow.parameters.values()))
    pulled = flow.velocity(X, SIGMA, COND)
    pulled.pull(gradient)
    once = gradients(flow)
    for name, value in zip(flow.parameters, expected):
        assert value.abs().max() > 0
        torch.testing.assert_close(once[name], value, rtol=1e-5, atol=1e-6)

    pulled.pull(gradient)  # a second time: recomputed, and added
    for name, value in gradients(flow).items():
        torch.testing.assert_close(value, 2 * once[name], rtol=1e-5, atol=1e-6)


def test_checkpointing_changes_nothing_but_memory():
    found = []
    saved = []
    for checkpointing in (True, False):
        flow = moved(FluxFlow(new_flux(), rank=2, checkpointing=checkpointing))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            pulled = flow.velocity(X, SIGMA, COND)
        pulled.pull(normal(4, *X.shape))
        found.append({"velocity": pulled.value} | gradients(flow))
        saved.append(sum(kept))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    assert saved[0] < saved[1] / 3


def test_a_batch_is_its_samples():
    flow = moved(FluxFlow(new_flux(), rank=2))
    together = flow.velocity(X, SIGMA, COND).value
    for i in range(2):
        part = slice(i, i + 1)
        alone = flow.velocity(X[part], SIGMA[part], {name: value[part] for name, value in COND.items()}).value
        torch.testing.assert_close(alone, together[part], rtol=0, atol=1e-5)


def test_nothing_flows_to_the_latent():
    x = X.clone().requires_grad_()
    flow = moved(FluxFlow(new_flux(), rank=2))
    flow.velocity(x, SIGMA, COND).pull(torch.ones_like(x))
    assert x.grad is None


# The adapter


@pytest.mark.parametrize("blocks", [(1, 2), (12, 13)], ids=["tiny", "deep"])
def test_adapter_sits_on_every_linear_of_the_blocks_and_nowhere_else(blocks):
    small = dict(num_layers=blocks[0], num_single_layers=blocks[1], attention_head_dim=8, axes_dims_rope=(2, 2, 4))
    transformer = new_flux(**small, num_attention_heads=1)
    wanted = {module: (module.in_features, module.out_features) for module in block_linears(transformer)}
    assert len(wanted) == 14 * blocks[0] + 6 * blocks[1]
    flow = FluxFlow(transformer, rank=3)
    adapted = [module for module in transformer.modules() if hasattr(module, "lora_A")]
    assert {module.base_layer for module in adapted} == wanted.keys()
    assert len(flow.parameters) == 2 * len(wanted)
    trainable = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in flow.parameters.values()}
    for module in adapted:
        into, out = wanted[module.base_layer]
        assert module.lora_A["default"].weight.shape == (3, into) and module.lora_B["default"].weight.shape == (out, 3)


def test_adapter_starts_at_zero():
    transformer = new_flux()
    with torch.no_grad():
        expected = by_hand(transformer, X, SIGMA, 3.5)
    assert torch.equal(FluxFlow(transformer, rank=2).velocity(X, SIGMA, COND).value, expected)


def test_adapter_is_drawn_from_its_seed_alone():
    before = torch.get_rng_state()
    first = FluxFlow(new_flux(), rank=4, seed=3).parameters
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = (FluxFlow(new_flux(), rank=4, seed=seed).parameters for seed in (3, 4))
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name])
        if "lora_B" in name:
            assert (parameter == 0).all()
        else:
            assert not torch.equal(parameter, other[name])
            bound = parameter.shape[1] ** -0.5
            assert 0.8 * bound < parameter.abs().max() <= bound


def test_base_is_untouched_by_training():
    transformer = new_flux()
    base = copy.deepcopy(transformer.state_dict())
    with torch.no_grad():
        velocity = by_hand(transformer, X, SIGMA, 3.5)
    flow = FluxFlow(transformer, rank=2)
    optimizer = torch.optim.AdamW(flow.parameters.values(), lr=0.1)
    for _ in range(3):
        flow.velocity(X, SIGMA, COND).pull(X)
        optimizer.step()
    state = {name.replace(".base_layer.", "."): value for name, value in transformer.state_dict().items()}
    assert all(torch.equal(state[name], value) for name, value in base.items())
    frozen = [p for name, p in transformer.named_parameters() if "lora_" not in name]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert not torch.equal(flow.velocity(X, SIGMA, COND).value, velocity)
    with flow.without_adapter():
        assert torch.equal(flow.velocity(X, SIGMA, COND).value, velocity)


def test_without_adapter_puts_it_back():
    flow = moved(FluxFlow(new_flux(), rank=2, steps=2))
    before = flow.velocity(X, SIGMA, COND).value
    sample = flow.rollout(X, COND)
    with pytest.raises(KeyError), flow.without_adapter():
        assert not torch.equal(flow.rollout(X, COND), sample)
        raise KeyError
    assert torch.equal(flow.velocity(X, SIGMA, COND).value, before)
    assert all(parameter.requires_grad for parameter in flow.parameters.values())


# The rollout


def test_rollout_is_euler_on_the_shifted_sigmas():
    flow = moved(FluxFlow(new_flux(), rank=2, steps=5, guidance=3.5, rollout_guidance=1.5))
    sigmas = [shift(1 - i / 5, math.exp(1.15)) for i in range(6)]
    x = X
    with torch.no_grad():
        for sigma, below in zip(sigmas, sigmas[1:]):
            x = x + (below - sigma) * by_hand(flow.transformer, x, torch.full((2,), sigma), 1.5)
    found = flow.rollout(X, COND)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
    assert not found.requires_grad
    assert torch.equal(flow.rollout(X, COND), found)
    other = moved(FluxFlow(new_flux(), rank=2, steps=5, rollout_guidance=1.5, shift=3.0))
    assert (other.rollout(X, COND) - found).abs().max() > 1e-2


# The file


def saved(tmp_path):
    flow = moved(FluxFlow(new_flux(), rank=2, alpha=6.0))
    flow.save_lora(tmp_path / "lora.safetensors")
    return flow, load_file(tmp_path / "lora.safetensors")


def test_lora_file_holds_each_linear_with_its_alpha(tmp_path):
    flow, tensors = saved(tmp_path)
    modules = {name.split(".lora_")[0] for name in flow.parameters}
    ends = (".lora_A.weight", ".lora_B.weight", ".alpha")
    assert tensors.keys() == {f"transformer.{module}{end}" for module in modules for end in ends}
    assert all(tensors[f"transformer.{module}.alpha"] == 6 for module in modules)
    assert not list(tmp_path.glob("*.tmp"))


def test_lora_file_merged_by_hand_is_the_trained_model(tmp_path):
    """As ComfyUI reads it: weight + alpha / rank * B A."""
    flow, tensors = saved(tmp_path)
    plain = new_flux()
    with torch.no_grad():
        for name, module in plain.named_modules():
            key = f"transformer.{name}"
            if f"{key}.alpha" in tensors:
                down = tensors[f"{key}.lora_A.weight"]
                up = tensors[f"{key}.lora_B.weight"]
                module.weight += tensors[f"{key}.alpha"] / len(down) * up @ down
        merged = by_hand(plain, X, SIGMA, 3.5)
    torch.testing.assert_close(merged, flow.velocity(X, SIGMA, COND).value, rtol=1e-4, atol=1e-5)


def test_lora_file_is_loaded_by_diffusers(tmp_path):
    flow, _ = saved(tmp_path)
    plain = new_flux()
    state, alphas = FluxPipeline.lora_state_dict(tmp_path / "lora.safetensors", return_alphas=True)
    FluxPipeline.load_lora_into_transformer(state, alphas, plain)
    with torch.no_grad():
        loaded = by_hand(plain, X, SIGMA, 3.5)
    torch.testing.assert_close(loaded, flow.velocity(X, SIGMA, COND).value, rtol=1e-4, atol=1e-5)


# The decoders


def new_tiny():
    channels = dict(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8))
    blocks = dict(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    return seeded(lambda: AutoencoderTiny(latent_channels=CHANNELS, upsampling_scaling_factor=2, **channels, **blocks))


def new_kl(shift_factor=0.1159):
    ends = dict(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    widths = dict(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=CHANNELS, use_quant_conv=False)
    factors = dict(scaling_factor=0.3611, shift_factor=shift_factor, use_post_quant_conv=False)
    return seeded(lambda: AutoencoderKL(**ends, **widths, **factors))


def decoded_by_hand(vae, latent):
    raw = latent / 0.3611 + 0.1159 if isinstance(vae, AutoencoderKL) else latent
    return vae.decode(raw, return_dict=False)[0] / 2 + 0.5


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("make", [new_tiny, new_kl])
def test_decoder_is_straight_autograd(make, checkpointing):
    vae = make()
    latent = (3 * X).requires_grad_()
    expected = decoded_by_hand(vae, latent)
    gradient = normal(5, *expected.shape)
    (expected_gradient,) = torch.autograd.grad(expected, latent, gradient)

    decoder = DiffusersDecoder(vae, checkpointing)
    assert vae.is_gradient_checkpointing == checkpointing
    pulled = decoder.decode(latent)
    assert pulled.value.shape == (2, 3, 2 * HEIGHT, 2 * WIDTH) and not pulled.value.requires_grad
    torch.testing.assert_close(pulled.value, expected.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(pulled.pull(gradient), expected_gradient, rtol=1e-4, atol=1e-6)
    assert latent.grad is None
    assert all(p.grad is None and not p.requires_grad for p in vae.parameters())


def test_decoder_of_a_vae_without_shift():
    latent = DiffusersDecoder(new_kl(shift_factor=None)).decode(X).value
    shifted = DiffusersDecoder(new_kl()).decode(X - 0.1159 * 0.3611).value
    torch.testing.assert_close(latent, shifted, rtol=0, atol=1e-5)


def test_decoded_image_is_not_clamped():
    image = DiffusersDecoder(new_kl()).decode(50 * X).value
    assert image.min() < 0 or image.max() > 1


def test_decoder_of_a_bf16_vae_keeps_the_type_of_the_latent():
    pulled = DiffusersDecoder(new_kl().bfloat16()).decode(X)
    assert pulled.value.dtype == pulled.pull(torch.ones_like(pulled.value)).dtype == torch.float32


# Prompts, and all together


PROMPTS = ["a red circle on grass", "a blue star on snow", "a green square on sand"]


@functools.cache
def frozen_toys():
    return seeded(models.new_vae), seeded(models.new_clip), models.load_tokenizer()


def random_world(**options):
    """The toy models with random weights, and a smaller FLUX."""
    widths = dict(joint_attention_dim=models.TEXT_WIDTH, pooled_projection_dim=models.TEXT_WIDTH)
    vae, clip, tokenizer = frozen_toys()
    flux = new_flux(in_channels=64, **widths)
    return world_of(flux=flux, vae=vae, clip=clip, tokenizer=tokenizer, prompts=PROMPTS, **options)


def test_prompts_are_encoded_as_the_toy_flux_was_trained():
    _, clip, tokenizer = frozen_toys()
    data = ClipPrompts(PROMPTS, clip, tokenizer)
    with torch.no_grad():
        context, pooled = models.text_conditioning(clip, models.tokenize(tokenizer, PROMPTS))
    cond = data.cond([2, 0, 0])
    assert torch.equal(cond["context"], context[[2, 0, 0]]) and torch.equal(cond["pooled"], pooled[[2, 0, 0]])
    assert data.prompts == PROMPTS and not cond["context"].requires_grad


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="no prompt"):
        ClipPrompts([], *frozen_toys()[1:])


def go(folder, updates):
    flow, decoder, reward, dataset = random_world(rank=2, steps=2)
    run = Run(folder, flow.parameters, Settings(learning_rate=1e-3))
    batching = Batching(shape=(16, 8, 8), batch=2, at_once=2)
    terms = [Term(reward=reward, objective=Objective())]
    train(run, Training(flow=flow, decoder=decoder, terms=terms, dataset=dataset, batching=batching), updates)
    return run


def test_a_headless_run_resumes_bit_for_bit(tmp_path):
    straight = go(tmp_path / "straight", 2)
    go(tmp_path / "pieces", 1)
    resumed = go(tmp_path / "pieces", 1)
    assert resumed.history == straight.history and resumed.skipped == 0
    assert all(metrics["gradient_norm"] > 0 for metrics in resumed.history)
    for name, parameter in straight.parameters.items():
        assert torch.equal(resumed.parameters[name], parameter)


def test_toy_world_makes_pictures_that_the_reward_understands():
    flow, decoder, reward, dataset = toy_world(PROMPTS, shift=3.0)
    noise = normal(7, 3, 16, 8, 8)
    images = decoder.decode(flow.rollout(noise, dataset.cond([0, 1, 2]))).value.clamp(0, 1)
    right, wrong = reward.score_many(images, PROMPTS, PROMPTS[1:] + PROMPTS[:1])
    assert (right > wrong).all()
