"""Hosts that have less than this one, or more: what is taken away is done another way, what is new is not passed by.

What newer hosts have is stood in for here; what they have lost is taken away.
"""

import importlib.util
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from in_process import new_adapter, new_flow
from oracle import host_model, host_vae, random_flux, random_vae, with_adapter
from test_host_bases import loaded, relative

from srpo_core.headless.decoder import DiffusersDecoder

COND = [[torch.randn(1, 6, 32), {"pooled_output": torch.randn(1, 24)}]]
X = torch.randn(1, 16, 8, 8)
SIGMA = torch.tensor([0.7])
QUEUES = ("make_prefetch_queue", "prefetch_queue_pop", "PREFETCH_QUEUES")
COMPILE = "comfy_api.torch_helpers.torch_compile"
BLOCKS = "comfy.ldm.modules.diffusionmodules.model"


@pytest.fixture
def base(pack):
    return host_model(random_flux())


def step(model):
    """A rollout, a frozen velocity, a velocity, and the gradient of an adapter on the MODEL."""
    patcher, adapter = with_adapter(model)
    flow = new_flow(patcher, sampling())
    velocity = flow.velocity(X, SIGMA, COND)
    velocity.pull(torch.cos(9 * X))
    gradient = torch.cat([p.grad.flatten() for p in adapter.parameters.values()])
    return [flow.rollout(X, COND, 0), flow.frozen_velocity(X, SIGMA, COND), velocity.value, gradient]


def sampling():
    from in_process import pack_module

    return pack_module("nodes.host.sampling").Sampling(steps=2)


def take_away(monkeypatch, what: str):
    """A module of the host, or a name in one ("module:name")."""
    module, _, name = what.partition(":")
    if name:
        monkeypatch.delattr(sys.modules[module], name)
    else:
        monkeypatch.setitem(sys.modules, module, None)


# What was taken away


@pytest.mark.parametrize("what", ["comfy.model_prefetch", *(f"comfy.model_prefetch:{name}" for name in QUEUES)])
def test_without_the_hosts_queues_nothing_is_fetched(pack, base, monkeypatch, what):

    expected = step(base)
    take_away(monkeypatch, what)
    with monkeypatch.context() as streamed, pack("nodes.host.gradients.prefetch").fetching(base) as fetch:
        streamed.setattr(base, "is_dynamic", lambda: True)
        fetch(base.model.diffusion_model.single_blocks[0])
    assert all(map(torch.equal, step(base), expected))


@pytest.mark.parametrize("what", [COMPILE, f"{COMPILE}:COMPILE_KEY"])
def test_the_key_of_compiled_models_is_known_without_the_host(pack, monkeypatch, what):
    ours = pack("nodes.host.gradients.compiled")
    take_away(monkeypatch, what)
    spec = importlib.util.spec_from_file_location(f"{ours.__name__}_again", ours.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.COMPILE_KEY == ours.COMPILE_KEY


def test_without_the_fused_positions_the_host_turns_them(pack, monkeypatch):
    import comfy.quant_ops

    attention = pack("nodes.host.gradients.attention")
    q, k, v, pe = (torch.empty(1, 2, 4, 8, device="meta") for _ in range(4))
    monkeypatch.setattr(attention._Rotated, "apply", lambda q, k, pe: (q, k))
    assert attention._rotate(q, k, v, pe).keys() == {"q", "k", "pe"}
    with monkeypatch.context() as without:
        without.setattr(comfy.quant_ops, "ck", SimpleNamespace())
        assert attention._rotate(q, k, v, pe) == {}
    with monkeypatch.context() as without:
        without.delattr(comfy.quant_ops, "ck")
        assert attention._rotate(q, k, v, pe) == {}


@pytest.mark.parametrize("what", [BLOCKS, f"{BLOCKS}:ResnetBlock", f"{BLOCKS}:AttnBlock"])
def test_without_the_hosts_blocks_a_vae_decodes_as_it_does(pack, base, monkeypatch, what):
    vae = random_vae()
    theirs = DiffusersDecoder(vae, checkpointing=False).decode(X)
    decoder = pack("nodes.host.decoder").HostDecoder(host_vae(vae), base)
    take_away(monkeypatch, what)
    ours = decoder.decode(X)
    gradient = torch.cos(9 * theirs.value)
    assert relative(ours.value, theirs.value) < 1e-5
    assert relative(ours.pull(gradient), theirs.pull(gradient)) < 1e-5


def test_an_fp8_layer_is_told_without_its_class(pack, base, monkeypatch):
    import comfy.ops

    expected = step(base)
    monkeypatch.delattr(comfy.ops, "fp8_ops")
    assert all(map(torch.equal, step(base), expected))


def name_of_a_module():
    from comfy.ops import gone  # noqa: F401


def attribute_of_a_module():
    import comfy.ops

    return comfy.ops.gone


def module():
    import comfy.gone  # noqa: F401


@pytest.mark.parametrize(
    "ask, missing",
    [(name_of_a_module, "comfy.ops.gone"), (attribute_of_a_module, "comfy.ops.gone"), (module, "comfy.gone")],
)
@pytest.mark.parametrize("around", ["checked", "host_checked"])
def test_what_cannot_be_done_without_is_named(pack, ask, missing, around):
    from comfy_api.latest import io

    class Node(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="SRPO_Missing")

        @classmethod
        @getattr(pack("nodes.checked"), around)
        def execute(cls):
            ask()

    with pytest.raises(RuntimeError, match=rf"This ComfyUI \(.*\) has no {missing}, which this node needs"):
        Node.execute()


def test_the_recovery_sweep_says_that_its_host_has_no_such_noise(pack, base, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_extras.nodes_custom_sampler", None)
    sweep = pack("nodes.recovery_sweep").RecoverySweep
    given = {"model": base, "positive": COND, "latent": {"samples": X}, "vae": host_vae(random_vae())}
    with pytest.raises(RuntimeError, match="has no comfy_extras.nodes_custom_sampler, which this node needs"):
        sweep.execute(**given, prompt="", count=9, seed=0, gradient=False, cfg=1.0)


def test_a_mistake_of_our_own_is_no_fault_of_the_host(pack):
    find = pack("nodes.checked")._missing_in_host
    for mistake in (lambda: torch.gone, lambda: None.gone, lambda: __import__("gone")):
        with pytest.raises((ImportError, AttributeError)) as raised:
            mistake()
        assert find(raised.value) == ""


# What is new


@pytest.fixture
def modes(base, monkeypatch):
    """What the model was asked under: whether in training, and whether the compiler of a newer host was off."""
    import comfy.cli_args
    import comfy.model_management

    seen = []
    args = comfy.cli_args.args
    monkeypatch.setattr(args, "disable_comfy_compiler", False, raising=False)
    modulation = type(base.model.diffusion_model.single_blocks[0].modulation)
    forward = modulation.forward

    def noted(*values):
        seen.append((comfy.model_management.in_training, args.disable_comfy_compiler))
        return forward(*values)

    monkeypatch.setattr(modulation, "forward", noted)
    yield seen
    assert not comfy.model_management.in_training and not args.disable_comfy_compiler


def test_what_needs_a_backward_runs_without_the_hosts_compiler_and_fused_kernels(pack, base, modes, monkeypatch):
    flow = new_flow(with_adapter(base)[0], sampling())
    velocity = flow.velocity(X, SIGMA, COND)
    velocity.pull(X)  # the blocks run again
    flow.frozen_velocity(X, SIGMA, COND)
    assert set(modes) == {(True, True)}
    modes.clear()
    flow.rollout(X, COND, 0)
    assert set(modes) == {(False, False)}
    monkeypatch.setattr(type(base.model.diffusion_model.final_layer), "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        flow.velocity(X, SIGMA, COND)


def test_without_these_switches_none_is_left_behind(pack, base, monkeypatch):
    import comfy.cli_args

    assert not hasattr(comfy.cli_args.args, "disable_comfy_compiler")
    step(base)
    assert not hasattr(comfy.cli_args.args, "disable_comfy_compiler")


def test_the_frozen_velocity_is_the_velocity_of_an_adapter_at_its_start(pack, base):
    """To the bit: the guard compares both."""
    flow = new_flow(new_adapter(base).attach(base))
    assert torch.equal(flow.frozen_velocity(X, SIGMA, COND), flow.velocity(X, SIGMA, COND).value)


def newer_linear():
    """A linear layer of the host's, which also does what is around it; as newer hosts' do."""
    import comfy.ops

    class Linear(comfy.ops.disable_weight_init.Linear):
        def forward(self, input, input_act=None, residual=None, scale=None):
            if input_act is not None:
                input = comfy.ops.INPUT_ACT_EAGER[input_act](input)
            output = super().forward(input)
            return output if residual is None else residual + (1 if scale is None else scale) * output

    Linear.forward.__module__ = comfy.ops.__name__
    return Linear


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("", "x"),
        ("act", "x"),
        ("residual", "x"),
        ("residual", "residual"),
        ("act, residual", "both"),
        ("act, residual, scale", "both"),
    ],
)
def test_what_a_layer_does_around_its_weight_is_part_of_its_gradient(pack, given, wanted):
    with torch.inference_mode():
        layer = newer_linear()(6, 4).requires_grad_(False)
        weight = layer.weight.normal_().clone()
        layer.bias.zero_()
    forward = pack("nodes.host.gradients.frozen").frozen_forwards(layer)[layer]
    leaves = {"x": torch.randn(3, 6), "residual": torch.randn(3, 4)}
    for name, leaf in leaves.items():
        leaf.requires_grad_(wanted in (name, "both"))
    with torch.inference_mode():
        more = {"scale": torch.tensor(0.3)} if "scale" in given else {}  # an inference tensor, as constants may be
    more |= {"residual": leaves["residual"]} if "residual" in given else {}
    more |= {"input_act": "gelu_tanh" if "act" in given else None}
    ours = forward(leaves["x"], **more)
    x = F.gelu(leaves["x"], approximate="tanh") if "act" in given else leaves["x"]
    expected = x @ weight.clone().T * (0.3 if "scale" in given else 1)
    expected = expected + leaves["residual"] if "residual" in given else expected
    torch.testing.assert_close(ours, expected)
    direction = torch.randn(3, 4)
    asked = [leaf for leaf in leaves.values() if leaf.requires_grad]
    gradients = [torch.autograd.grad(y, asked, direction) for y in (ours, expected)]
    torch.testing.assert_close(*gradients)


class Fused(torch.nn.Module):
    """An MLP of FLUX with its activation inside of the second layer's call."""

    def __init__(self, mlp, **more):
        super().__init__()
        mlp[2].__class__ = newer_linear()
        self.layers = mlp
        self.more = {"input_act": "gelu_tanh", **more}

    def forward(self, x):
        return self.layers[2](self.layers[0](x), **self.more)


def fuse(model, monkeypatch, **more):
    for block in model.model.diffusion_model.double_blocks:
        fused = Fused(block.img_mlp, **more)
        monkeypatch.setattr(block.img_mlp, "forward", fused.forward, raising=False)


def test_an_adapter_is_on_what_the_weight_is_on(pack, base, monkeypatch):
    expected = step(base)
    fuse(base, monkeypatch)
    for ours, theirs in zip(step(base), expected, strict=True):
        assert relative(ours, theirs) < 1e-5


def test_an_adapter_that_would_miss_a_part_is_refused(pack, base, monkeypatch):
    fuse(base, monkeypatch, residual=torch.zeros(1))
    with pytest.raises(ValueError, match=r"do more than its weights do \(residual\).*choose another target"):
        step(base)


def fused_forward(mlp, x):
    import comfy.ops

    return comfy.ops.linear_input_act(mlp[2], mlp[0](x), "gelu_tanh")


@pytest.fixture
def int8(pack, base, tmp_path, monkeypatch):
    """A MODEL in INT8 whose MLPs take the host's fused kernel, which reads the second layer's weight itself."""
    state = {k: v.clone() for k, v in base.model.diffusion_model.state_dict().items()}
    model = loaded(state, "int8_tensorwise", tmp_path / "base.safetensors")
    for block in model.model.diffusion_model.double_blocks:
        for mlp in (block.img_mlp, block.txt_mlp):
            monkeypatch.setattr(mlp, "forward", partial(fused_forward, mlp), raising=False)
    return model


def loud(model):
    """The MODEL with an adapter that says something, on the MLPs."""
    adapter = new_adapter(model, target="MLP", rank=4)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    return adapter.attach(model)


def test_a_sampler_hears_an_adapter_on_layers_that_have_fused_kernels(pack, int8):
    flow = new_flow(loud(int8), sampling())
    trained = flow.velocity(X, SIGMA, COND).value
    assert relative(flow.sampled_velocity(X, SIGMA, COND), trained) < 0.02
    assert relative(flow.frozen_velocity(X, SIGMA, COND), trained) > 0.1


def test_layers_that_samplers_pass_by_are_named(pack, int8, monkeypatch):
    monkeypatch.setattr(pack("nodes.host.gradients.injection"), "is_stored_in_integers", lambda _: False)
    flow = new_flow(loud(int8), sampling())
    with pytest.raises(ValueError, match=r"samples past 4 of the \d+ layers that are trained, such as .*mlp\.2"):
        flow.sampled_velocity(X, SIGMA, COND)


def test_only_models_in_integers_sample_without_fused_kernels(pack, base, int8):
    for model, wrapped in ((base, False), (int8, True)):
        assert bool(loud(model).get_wrappers("apply_model", "srpo")) == wrapped
        bare = pack("nodes.host.adapters.readable").without_adapter(loud(model))
        assert not bare.get_wrappers("apply_model", "srpo")


def test_a_layer_without_a_weight_of_its_own_is_refused(pack, base):
    """As where a host has combined it with its neighbours."""
    del base.model.diffusion_model.double_blocks[1].img_attn.proj.weight
    with pytest.raises(ValueError, match=r"double_blocks.1.img_attn.proj has no weight of its own"):
        new_adapter(base)
    with (
        pytest.raises(ValueError, match="Linear has no weight of its own"),
        pack("nodes.host.gradients.frozen").weight_of(base.model.diffusion_model.double_blocks[1].img_attn.proj, X),
    ):
        pass


@pytest.fixture
def queues(monkeypatch, base):
    """The host's queues, of a MODEL that is streamed: what they let in."""
    import comfy.model_prefetch as host

    let_in = []

    def make(queue, device, options):
        host.PREFETCH_QUEUES.append([None, *queue, None])
        return host.PREFETCH_QUEUES[-1]

    def pop(queue, device, module):
        queue.pop(0)
        let_in.append(module)

    monkeypatch.setattr(host, "make_prefetch_queue", make)
    monkeypatch.setattr(host, "prefetch_queue_pop", pop)
    yield let_in
    assert not host.PREFETCH_QUEUES


def test_a_block_that_the_models_own_queue_has_fetched_is_not_fetched_again(pack, base, queues):
    blocks = [*base.model.diffusion_model.double_blocks, *base.model.diffusion_model.single_blocks]
    flow = new_flow(with_adapter(base)[0])
    own = blocks[1].img_attn.qkv
    own._prefetch = {}
    flow.velocity(X, SIGMA, COND)
    del own._prefetch
    assert queues == [blocks[0], *blocks[2:], None]


def test_a_queue_is_forgotten_though_letting_go_fails(pack, base, queues, monkeypatch):
    import comfy.model_prefetch as host

    def fails(queue, device, module):
        raise RuntimeError("vbar_unpin")

    with pytest.raises(RuntimeError, match="vbar_unpin"), pack("nodes.host.gradients.prefetch").fetching(base):
        monkeypatch.setattr(host, "prefetch_queue_pop", fails)


def test_attention_in_containers_is_that_of_their_tensors(pack):
    import comfy.ldm.modules.attention as host

    q, k, v = (torch.randn(1, 4, 32, requires_grad=True) for _ in range(3))
    options = pack("nodes.host.gradients.attention").with_backward({}, torch.nn.Identity())
    expected = host.attention_pytorch(q, k, v, 2)
    boxes = [host.AttentionTensorContainer(tensor) for tensor in (q, k, v)]
    ours = host.optimized_attention(*boxes, 2, transformer_options=options)
    assert torch.equal(ours, expected)
    assert torch.equal(*(torch.autograd.grad(y.sum(), q)[0] for y in (ours, expected)))


@pytest.mark.parametrize("kind", ["ResnetBlock", "AttnBlock"])
def test_blocks_of_a_vae_that_have_changed_are_left_to_the_host(pack, base, monkeypatch, caplog, kind):
    block = getattr(sys.modules[BLOCKS], kind)
    forward = block.forward
    vae = host_vae(random_vae())
    plain = pack("nodes.host.decoder").HostDecoder(vae, base).decode(X).value
    assert "blocks" not in caplog.text
    monkeypatch.setattr(block, "forward", lambda self, x, *more, **named: forward(self, x, *more, **named) / 2**0.5)
    decoder = pack("nodes.host.decoder").HostDecoder(vae, base)
    ours = decoder.decode(X)
    with torch.inference_mode():
        raw = vae.first_stage_model.decode(decoder.latent_format.process_out(X)) / 2 + 0.5
    assert relative(ours.value, plain) > 0.01
    assert relative(ours.value, raw) < 1e-5 and ours.pull(torch.ones_like(ours.value)).any()
    assert caplog.text.count("blocks are not those of FLUX") == 1
