"""Whatever number a link brings: every node of the pack refuses it in a sentence before it does anything."""

import asyncio
import inspect
import math

import numpy as np
import prompts
import pytest
from host_server import HostError
from hypothesis import given
from hypothesis import strategies as st
from in_process import opens_with

HOSTILE = [math.nan, math.inf, -math.inf, 1e300, 10**400, -1, -0.5, True, "7", None, [1], np.float32("nan")]


def nodes_of(pack) -> list:
    return asyncio.run(pack("nodes").SRPOExtension().get_node_list())


def numbers_of(node) -> list:
    """The inputs of a node that are numbers."""
    from comfy_api.latest import io

    return [
        declared for declared in node.define_schema().inputs if isinstance(declared, (io.Int.Input, io.Float.Input))
    ]


def allowed(declared, value) -> bool:
    """Whether a value is a number of this input; -1 is one where the schema says so."""
    whole = isinstance(value, int) or declared.io_type == "FLOAT"
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(min(value, 10.0**300))
    return bool(number and whole and declared.min <= value <= declared.max)


class Untouched:
    """In place of whatever else a node takes: it must not be asked for anything."""

    def __getattr__(self, name):
        raise AssertionError(f"the node went on to use {name}")


def given_to(node, **numbers) -> dict:
    """All inputs of a node: numbers and choices as the schema has them, empty texts, these; nothing behind the rest."""
    names = [declared.id for declared in node.define_schema().inputs]
    defaults = {declared.id: declared.default for declared in numbers_of(node)}
    defaults |= {d.id: d.options[0] for d in node.define_schema().inputs if d.io_type == "COMBO"}
    defaults |= {d.id: "" for d in node.define_schema().inputs if d.io_type == "STRING"}
    defaults |= {d.id: opens_with(d) for d in node.define_schema().inputs if d.io_type.startswith("COMFY_DYNAMIC")}
    return {name: Untouched() for name in names} | defaults | numbers


def test_every_node_refuses_every_hostile_number(pack, monkeypatch):
    pack("nodes")
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_input_subfolders", lambda: ["photos"])
    tried = 0
    for node in nodes_of(pack):
        for declared in numbers_of(node):
            for value in HOSTILE:
                if not allowed(declared, value):
                    with pytest.raises(ValueError, match=f"^{declared.id} is .*: give a (whole )?number from "):
                        node.execute(**given_to(node, **{declared.id: value}))
                    tried += 1
    assert tried > 500


@given(st.data())
def test_numbers_are_refused_if_and_only_if_they_are_outside_of_the_schema(pack, data):
    check = pack("nodes.checked")._checked_number
    node = data.draw(st.sampled_from([node for node in nodes_of(pack) if numbers_of(node)]))
    declared = data.draw(st.sampled_from(numbers_of(node)))
    value = data.draw(st.one_of(st.floats(), st.integers(), st.integers(-3, 3000)))
    if allowed(declared, value):
        passed = check(declared, value)
        assert passed == value and type(passed) is (int if declared.io_type == "INT" else float)
    else:
        with pytest.raises(ValueError, match=f"^{declared.id} is "):
            check(declared, value)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.int64(1), 1])
def test_numbers_of_other_libraries_become_pythons_own(pack, value):
    """They come through links, and are written to the run's files."""
    (term,) = pack("nodes.add_reward").AddReward.execute(reward=None, objective=None, weight=value).args[0]
    assert type(term.weight) is float and term.weight == value


@pytest.mark.parametrize(
    "name", ["NoisePriorInject", "TrainerNode", "PromptsNode", "PhotosNode", "TrainNode", "LoadReward"]
)
def test_inputs_that_are_linked_are_no_fault(pack, name):
    """The host asks before it knows them: with None, or without them."""
    (node,) = [node for node in nodes_of(pack) if node.__name__ == name]
    as_list = node.define_schema().is_input_list
    for function in {"fingerprint_inputs", "validate_inputs"} & node.__dict__.keys():
        asked = getattr(node, function)
        known = node.__dict__[function]
        names = [declared.id for declared in node.define_schema().inputs]
        accepted = inspect.signature(known.__func__).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        nothing = {key: (None,) if as_list else None for key in names if takes_all or key in accepted}
        for inputs in (nothing, {} if not as_list else nothing):
            answer = asked(**inputs)
            again = asked(**inputs)
            assert answer is True if function == "validate_inputs" else [answer] != [again]


def test_a_linked_name_is_not_warned_of_and_the_run_goes_on(host):
    before = len(host.log)
    for _ in range(2):
        prompt = prompts.train("linked name", 1)
        prompt["name"] = prompts.node("PrimitiveString", value="linked name")
        prompt["trainer"]["inputs"]["run_name"] = ["name", 0]
        host.run(prompt)
    said = host.log[before:]
    assert 'The run "linked name" goes on after update 1' in said
    assert "WARNING" not in said and "rror" not in said


@pytest.mark.parametrize(
    "place, name",
    [("optimizer", "max_gradient_norm"), ("optimizer", "ema"), ("train", "guidance"), ("objective", "threshold")],
)
def test_nan_that_is_typed_trains_nothing(host, place, name):
    prompt = prompts.train(f"no {name}", 1)
    prompt[place]["inputs"][name] = "nan"
    with pytest.raises(HostError, match=f"{name} is nan: give a number from"):
        host.run(prompt)
    assert not (host.base / f"output/srpo/no {name}/state.safetensors").exists()


def test_a_window_that_ends_at_the_clean_image_has_finite_velocities(pack):
    """At sigma 0 there is no noise to tell from the picture, and the host's prediction of x0 says nothing of it."""
    import torch
    from oracle import host_model, random_flux

    flow = pack("nodes.host.flow_model").HostFlow(host_model(random_flux()), guidance=3.5)
    cond = [[torch.randn(3, 6, 32), {"pooled_output": torch.randn(3, 24)}]]
    x = torch.randn(1, 16, 8, 8).repeat(3, 1, 1, 1)
    cond[0][0][1:] = cond[0][0][:1]
    cond[0][1]["pooled_output"][1:] = cond[0][1]["pooled_output"][:1]
    at_none, at_little, above = flow.velocity(x, torch.tensor([0.0, 1e-30, 2e-3]), cond).value
    assert at_none.isfinite().all() and torch.equal(at_none, at_little)
    assert (at_none - above).abs().max() < 0.05 * above.abs().max()


@pytest.mark.parametrize(
    "sampler, depends", [("euler", False), ("heun", False), ("dpmpp_2m", False), ("ddim", False), ("uni_pc", False)]
    + [(name, True) for name in ("euler_ancestral", "dpmpp_sde", "lcm", "er_sde", "dpm_adaptive")],
)  # fmt: skip
def test_samplers_that_draw_noise_are_known(pack, sampler, depends):
    module = pack("nodes.host.flow_model")
    flow = module.HostFlow(pack("nodes.host.toy").load_model(), module.Sampling(sampler_name=sampler))
    assert flow.samples_depend_on_batch == depends
