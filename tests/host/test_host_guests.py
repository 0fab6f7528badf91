"""What takes part in a step beside the model, or changes it for the length of one sampling: values and gradients as the
host's own sampler has them, and pictures as before."""

import contextlib

import pytest
import torch
from differences import FLUX, adapted, compare, small_model, velocity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import new_adapter
from torch import nn

CLOSE = 2e-4  # of five-point differences in fp32
SIGMA = 0.85
X = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(5))


def prompt(seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 24, generator=generator)
    return [[torch.randn(1, 6, 32, generator=generator), {"pooled_output": pooled, "guidance": 3.5} | more]]


@pytest.fixture(scope="module")
def base(pack):
    import comfy.supported_models

    return small_model(comfy.supported_models.Flux, FLUX)


@pytest.fixture(scope="module")
def plain(base):
    """The derivative without any of it."""
    return assert_gradient(base, prompt())


def lora_file(model, seed):
    """As a loader node reads it: inference tensors."""
    made = new_adapter(model, rank=4)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        return {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in made.state_dict().items()}


def assert_gradient(model, cond, x=X, **flow):
    model, adapter = adapted(model)
    before = velocity(model, x, SIGMA, prompt(9))
    ours, right = compare(model, adapter, cond, x, **flow)
    assert ours == pytest.approx(right, rel=CLOSE, abs=10 * CLOSE)
    assert torch.equal(velocity(model, x, SIGMA, prompt(9)), before)
    return ours


def hooks_of(base, seed, strength, kind="lora", keyframes=()):
    import comfy.hooks

    if kind == "model":
        with torch.inference_mode():
            weights = {n: w + 0.05 * torch.cos(w) for n, w in base.model.state_dict().items() if "blocks" in n}
        group = comfy.hooks.create_hook_model_as_lora(weights, None, strength, 0.0)
    else:
        group = comfy.hooks.create_hook_lora(lora_file(base, seed), strength, 0.0)
    if keyframes:
        frames = comfy.hooks.HookKeyframeGroup()
        for start, factor in keyframes:
            frames.add(comfy.hooks.HookKeyframe(factor, start, 0))
        group.set_keyframes_on_hooks(frames)
    return group


HOOKS = st.one_of(
    st.none(),
    st.tuples(
        st.sampled_from([1, 2]),
        st.sampled_from([-0.7, 0.5, 1.0]),
        st.sampled_from(["lora", "model"]),
        st.sampled_from([(), ((0.0, 0.3), (0.05, 0.9), (0.9, 0.0))]),
    ),
)


@settings(max_examples=5, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.lists(HOOKS, min_size=1, max_size=3), st.booleans())
def test_hooks_on_conditionings(base, several, checkpointing):
    """One or more conditionings at once, each with a hook of its own, or none."""
    cond = []
    for seed, hooks in enumerate(several):
        cond += prompt(seed, strength=1.0 + seed, **({"hooks": hooks_of(base, *hooks)} if hooks else {}))
    assert_gradient(base, cond, checkpointing=checkpointing)


def test_a_hook_equals_the_same_lora_loaded(base):
    import comfy.sd

    file = lora_file(base, 3)
    loaded = comfy.sd.load_lora_for_models(base, None, file, 0.8, 0.0)[0]
    import comfy.hooks

    hooked = prompt(hooks=comfy.hooks.create_hook_lora(file, 0.8, 0.0))
    gradients = []
    for model, cond in ((loaded, prompt()), (base, hooked)):
        model, adapter = adapted(model)
        compare(model, adapter, cond, X)
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.parameters.values()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


@pytest.mark.parametrize("scope", ["all_conditioning", "hooked_only"])
def test_a_hook_that_brings_patches(base, scope):
    import comfy.hooks

    part = guest_module()
    hook = comfy.hooks.TransformerOptionsHook(
        {"patches": {"double_block": [through(part)]}}, comfy.hooks.EnumHookScope(scope)
    )
    group = comfy.hooks.HookGroup()
    group.add(hook)

    def attention(q, k, v, pe=None, attn_mask=None, extra_options=None):
        return {"v": part(v)}

    hook.transformers_dict = {"patches": {"attn1_patch": [attention]}}
    assert_gradient(base, prompt(hooks=group) + prompt(1))


def guest_module(width=128):
    """As another pack loads it: inference tensors, which say that they want a gradient."""
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))


class OneMore(nn.Module):
    """With a parameter and a buffer outside of layers, and a layer that it reads by itself."""

    def __init__(self, width):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(width))
        self.register_buffer("mean", torch.randn(width))
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return torch.sin(nn.functional.linear(x * self.mean, self.inner.weight)) * self.gate


def through(part):
    return lambda arguments: arguments | {"img": part(arguments["img"])}


def by_attention_output(model):
    part = guest_module()
    with torch.inference_mode():
        mask = torch.rand(1, 1, 128)

    def patch(attention, options):
        return attention + mask * part(attention) * attention

    model.set_model_attn1_output_patch(patch)


def by_queries(model):
    with torch.inference_mode():
        part = OneMore(128)

    class Patch:
        __slots__ = ("part",)

        def __call__(self, q, k, v, pe=None, attn_mask=None, extra_options=None):
            return {"q": q + self.part(k)}

    patch = Patch()
    patch.part = part
    model.set_model_attn1_patch(patch)


def by_a_loaded_model_patch(model):
    """The core's Load Model Patch and USO Style Reference."""
    import comfy.model_patcher
    import comfy.ops
    import comfy_extras.nodes_model_patch as patches

    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        net = patches.SigLIPMultiFeatProjModel(
            hidden_size=128,
            style_token_nums=4,
            siglip_token_nums=9,
            siglip_token_dims=32,
            device="cpu",
            dtype=torch.float32,
            operations=comfy.ops.manual_cast,
        )
        for parameter in net.parameters():
            parameter.data = 0.05 * torch.randn(parameter.shape)
        patcher = comfy.model_patcher.ModelPatcher(net, torch.device("cpu"), torch.device("cpu"))
        model.set_model_post_input_patch(patches.UsoStyleProjectorPatch(patcher, torch.randn(3, 1, 9, 32)))


def by_replacing_a_block(model):
    part = guest_module()

    def replaced(arguments, more):
        out = more["original_block"](arguments)
        return out | {"img": out["img"] + part(out["img"])}

    model.set_model_patch_replace(replaced, "dit", "single_block", 0)


def by_a_wrapper_of_the_diffusion_model(model):
    import comfy.patcher_extension as extension

    part = guest_module(4)

    def wrapper(executor, x, *args, **kwargs):
        out = executor(x, *args, **kwargs)
        return out + part(out)

    model.add_wrapper_with_key(extension.WrappersMP.DIFFUSION_MODEL, "other", wrapper)


def by_a_model_function_wrapper(model):
    with torch.inference_mode():
        mask = torch.rand(1, 1, 4, 4)

    def wrapper(apply_model, arguments):
        out = apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        return out * mask * out.sigmoid()

    model.set_model_unet_function_wrapper(wrapper)


def by_an_object_patch(model):
    part = guest_module()
    network = model.model.diffusion_model

    def forward(x, *args):
        return type(network.final_layer).forward(network.final_layer, x + part(x), *args)

    model.add_object_patch("diffusion_model.final_layer.forward", forward)


def by_an_injection(model):
    """The core's bypass loader puts a LoRA on layers so."""
    import comfy.lora
    import comfy.weight_adapter

    manager = comfy.weight_adapter.BypassInjectionManager()
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    for key, adapter in comfy.lora.load_lora(lora_file(model, 8), keys).items():
        manager.add_adapter(key, adapter, strength=0.7)
    model.set_injections("bypass_lora", manager.create_injections(model.model))


@contextlib.contextmanager
def other_weights(model):
    layers = [m for m in model.model.diffusion_model.double_blocks.modules() if isinstance(m, nn.Linear)]
    before = [layer.weight.data.clone() for layer in layers]
    for layer in layers:
        layer.weight.data.mul_(0.6)
    try:
        yield
    finally:
        for layer, weight in zip(layers, before):
            layer.weight.data.copy_(weight)


def by_changing_weights_around_a_sampling(model):
    import comfy.patcher_extension as extension

    def wrapper(executor, *args, **kwargs):
        with other_weights(model):
            return executor(*args, **kwargs)

    model.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, "other", wrapper)


def by_changing_weights_in_callbacks(model):
    import comfy.patcher_extension as extension

    stack = contextlib.ExitStack()
    model.add_callback(extension.CallbacksMP.ON_PRE_RUN, lambda _: stack.enter_context(other_weights(model)))
    model.add_callback(extension.CallbacksMP.ON_CLEANUP, lambda _: stack.close())


@pytest.mark.parametrize(
    "change",
    [
        by_attention_output,
        by_queries,
        by_a_loaded_model_patch,
        by_replacing_a_block,
        by_a_wrapper_of_the_diffusion_model,
        by_a_model_function_wrapper,
        by_an_object_patch,
        by_an_injection,
        by_changing_weights_around_a_sampling,
        by_changing_weights_in_callbacks,
    ],
)
def test_what_other_nodes_put_on_a_model(base, plain, change):
    changed = base.clone()
    change(changed)
    assert assert_gradient(changed, prompt()) != pytest.approx(plain, rel=1e-3)


def test_what_other_nodes_put_on_a_model_whose_blocks_are_kept(base):
    changed = base.clone()
    by_queries(changed)
    assert_gradient(changed, prompt(), checkpointing=False)


def test_a_guest_gets_no_gradient(base):
    torch.manual_seed(0)
    part = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 128))  # ordinary parameters, which want one
    model = base.clone()
    model.set_model_patch_replace(
        lambda arguments, more: {"img": part(more["original_block"](arguments)["img"])}, "dit", "single_block", 0
    )
    assert_gradient(model, prompt())
    assert all(p.grad is None and p.requires_grad for p in part.parameters())


@pytest.fixture(scope="module")
def controlnet(base):
    """A FLUX ControlNet, as its loader node makes it."""
    import comfy.controlnet
    from diffusers import FluxControlNetModel

    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128, "num_attention_heads": 1}
    sizes |= {"joint_attention_dim": 32, "pooled_projection_dim": 24, "guidance_embeds": True, "in_channels": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = FluxControlNetModel(**sizes, axes_dims_rope=[16, 56, 56])
        for parameter in net.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    with torch.inference_mode():
        state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        return comfy.controlnet.load_controlnet_state_dict(state)


class Pixels:
    """In place of a VAE: eight times smaller, sixteen channels."""

    def spacial_compression_encode(self):
        return 8

    def encode(self, image):
        small = nn.functional.avg_pool2d(image.movedim(-1, 1), 8)
        return torch.cat([small] * 6, 1)[:, :16]


def controlled(controlnet, previous=None, strength=0.8, percent=(0.0, 1.0), seed=0):
    hint = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    made = controlnet.copy().set_cond_hint(hint, strength, percent, Pixels())
    return made.set_previous_controlnet(previous)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_controlnets_are_constants(base, plain, controlnet, checkpointing):
    one = controlled(controlnet)
    both = prompt(control=controlled(controlnet, one, seed=1)) + prompt(1, control=one)
    assert assert_gradient(base, both, checkpointing=checkpointing) != pytest.approx(plain, rel=1e-3)


def test_a_controlnet_with_hooks_of_its_own(base, controlnet):
    control = controlled(controlnet)
    control.extra_hooks = hooks_of(base, 1, 0.8)
    assert_gradient(base, prompt(control=control))
