"""Files that a run begins at: senseless numbers, matrices the wrong way round, other models' and others' parts."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import new_adapter
from oracle import host_model, random_flux
from safetensors.torch import save_file
from test_host_adapters import LAYER, difference, loaded, lora, numbers, peft_lora, velocity_of

UP = f"{LAYER}.lora_up.weight"
DOWN = f"{LAYER}.lora_down.weight"
ALPHA = f"{LAYER}.alpha"


@pytest.fixture(scope="module")
def base(pack):
    return host_model(random_flux())


@pytest.fixture(scope="module")
def begin(pack, base, tmp_path_factory):
    """Begin at a file of this content; the adapter, and what is said."""

    def begin(state, kind="LoRA", rank=4, alpha=2.0):
        adapter = new_adapter(base, kind=kind, rank=rank, alpha=alpha)
        file = tmp_path_factory.mktemp("lora") / "some.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
        return adapter, pack("nodes.host.adapters.start_lora").start_at(adapter, base.model, file)

    return begin


def good(rank=4):
    return {UP: 0.1 * numbers(1, 1024, rank), DOWN: numbers(2, rank, 256), ALPHA: torch.tensor(float(rank))}


@settings(max_examples=25)
@given(data=st.data())
def test_a_number_that_no_training_gives_is_named(begin, data):
    state = good()
    key = data.draw(st.sampled_from(sorted(state)))
    wrong = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e30, -2e4]))
    flat = state[key].view(-1)
    flat[data.draw(st.integers(0, len(flat) - 1))] = wrong
    dtypes = [torch.float32, torch.bfloat16, torch.float16] if abs(wrong) < 6e4 else [torch.float32, torch.bfloat16]
    state[key] = state[key].to(data.draw(st.sampled_from(dtypes)))
    held = state[key].abs().max().item()  # as its type has it
    with pytest.raises(ValueError, match=re.escape(f'begin at "some.safetensors": {key} in it holds {held:g}')):
        begin(state)


@pytest.mark.parametrize("kind", ["LoRA", "LoKr", "LoHa", "OFT", "full"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_broken_file_of_any_kind_is_named(begin, pack, base, kind, wrong):
    state = new_adapter(base, kind=kind, rank=4, alpha=2.0).state_dict()
    key = next(key for key in reversed(state) if state[key].ndim > 1)
    state[key].view(-1)[7] = wrong
    with pytest.raises(ValueError, match=f"{key} in it holds {wrong:g}"):
        begin(state, kind)


@pytest.mark.parametrize("value", [0.0, -4.0, -1e-3])
def test_an_alpha_that_is_not_above_zero(begin, value):
    with pytest.raises(ValueError, match=f"{ALPHA} in it is {value:g}, and an alpha is above 0"):
        begin(good() | {ALPHA: torch.tensor(value)})


def test_an_alpha_that_is_several_numbers(begin):
    with pytest.raises(ValueError, match=rf"{ALPHA} in it has the shape \(3,\), and an alpha is one number"):
        begin(good() | {ALPHA: torch.ones(3)})


def test_a_rank_of_zero(begin):
    with pytest.raises(ValueError, match=r"lora_(up|down).weight in it is empty, of the shape \((1024, 0|0, 256)\)"):
        begin(good(rank=0) | {ALPHA: torch.tensor(1.0)})


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("turned", ["", "up", "down", "up and down"])
def test_matrices_the_wrong_way_round(begin, rank, exchanged, turned):
    state = good(rank)
    up, down = (state[key].t() if name in turned else state[key] for name, key in (("up", UP), ("down", DOWN)))
    state |= {UP: down, DOWN: up} if exchanged else {UP: up, DOWN: down}
    if not exchanged and not turned:
        begin(state)
        return
    with pytest.raises(ValueError, match=rf"{LAYER}.lora_up is .* inside out: .* \(1024, rank\) and \(rank, 256\)"):
        begin(state)


def test_matrices_of_two_ranks(begin):
    with pytest.raises(ValueError, match=r"up is \(1024, 3\) and lora_down \(4, 256\) in it, which are of two ranks"):
        begin(good() | {UP: numbers(1, 1024, 3)})


@pytest.mark.parametrize("key", [UP, DOWN])
def test_a_matrix_that_is_missing(begin, key):
    """Named, or a number of tensors that belong to nothing."""
    state = good()
    del state[key]
    with pytest.raises(ValueError, match=f"{DOWN} is missing|belong to nothing|nothing in it fits"):
        begin(state)


@pytest.mark.parametrize("more", ["diffusion_model.double_blocks.7.img_mlp.0", "lora_unet_single_blocks_37_linear1"])
def test_a_larger_models_file_is_not_taken_in_part(begin, more):
    with pytest.raises(ValueError, match=rf"2 of its tensors belong to nothing in this model \(Flux\), such as {more}"):
        begin(good() | lora(more))


def test_scales_of_a_quantised_file_are_not_passed_over(begin):
    with pytest.raises(ValueError, match=f"belong to nothing in this model .* such as {DOWN}_scale"):
        begin(good() | {f"{DOWN}_scale": torch.tensor(0.1)})


def test_integers_are_no_lora(begin):
    with pytest.raises(ValueError, match=f"{DOWN} in it holds torch.int8"):
        begin(good() | {DOWN: torch.ones(4, 256, dtype=torch.int8)})


def assert_as_loaded(pack, adapter, base, state):
    """The adapter gives the velocity that the file gives by the host's loader."""
    value = velocity_of(pack, adapter.attach(base)).value
    assert difference(value, velocity_of(pack, loaded(base, state)).value) < 1e-5


TEXT = [
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    "t5xxl.transformer.encoder.block.0.layer.1.DenseReluDense.wo",
]


@pytest.mark.parametrize("name", TEXT)
def test_what_is_of_text_encoders_is_said(pack, begin, base, name):
    state = peft_lora(2, where="ff.net") | {f"{name}.lora_up.weight": torch.ones(4, 2)}
    adapter, said = begin(state)
    assert said.startswith(f"some.safetensors also changes text encoders (1 tensors, such as {name}")
    assert (
        difference(velocity_of(pack, adapter.attach(base)).value, velocity_of(pack, loaded(base, state)).value) < 1e-5
    )
    with pytest.raises(ValueError, match="changes text encoders alone"):
        begin({f"{name}.lora_up.weight": torch.ones(4, 2)})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
def test_smaller_types_begin_as_the_loader_takes_them(pack, begin, base, dtype):
    state = {key: tensor.to(dtype) if tensor.ndim else tensor for key, tensor in good().items()}
    adapter, said = begin(state)
    assert not said
    assert (
        difference(velocity_of(pack, adapter.attach(base)).value, velocity_of(pack, loaded(base, state)).value) < 1e-5
    )


def test_a_refused_file_leaves_the_adapter_fresh(pack, base, tmp_path):
    adapter = new_adapter(base, rank=4, alpha=2.0)
    before = adapter.state_dict()
    state = peft_lora(1, alpha=1.0)
    state["transformer.transformer_blocks.1.ff.net.2.alpha"] = torch.tensor(9e3)
    state["transformer.transformer_blocks.1.ff.net.2.lora_B.weight"] *= 1e4 / 9
    save_file(state, tmp_path / "some.safetensors")
    with pytest.raises(ValueError, match="would begin at .* the file is broken|no training gives"):
        pack("nodes.host.adapters.start_lora").start_at(adapter, base.model, tmp_path / "some.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.state_dict().items())


def test_where_there_is_no_file_it_says_so(pack, monkeypatch):
    inputs = pack("nodes.adapter_inputs")
    monkeypatch.setattr(inputs.folder_paths, "get_filename_list", lambda folder: [])
    (option,) = (each for each in inputs.start_input().options if each.key == inputs.FROM_LORA)
    (name,) = option.inputs[0].options
    adapter = {"adapter": "LoRA", "rank": 4, "alpha": 4.0, "target": "all", "seed": 0}
    with pytest.raises(ValueError, match="There is no LoRA file to start from: put one into models/loras"):
        inputs.adapter_settings(adapter, {"start": inputs.FROM_LORA, "start_lora": name}, "fp32")
