"""Prompts from text: comments, wildcards, files in this encoding and that; digests, and conditionings on disk."""

import pytest
import torch

from srpo_core.conditionings import Conditionings, Listed
from srpo_core.digest import WHOLE, digest
from srpo_core.prompt_text import LIMIT, expand, parse_prompts, read_prompts


def test_one_prompt_per_line():
    text = "# heading\n\na cat \n  # indented comment\n\tdog # 1, it's (very:1.2) 50% a|b \\(x\\)\r\n\n"
    assert parse_prompts(text) == ["a cat", "dog # 1, it's (very:1.2) 50% a|b \\(x\\)"]


@pytest.mark.parametrize("text", ["", " \n\n", "# only\n#comments", "{|}"])
def test_no_prompt_left(text):
    with pytest.raises(ValueError, match="no prompts.*write at least one"):
        parse_prompts(text)


@pytest.mark.parametrize(
    "line, prompts",
    [
        ("a {red|blue} car", ["a red car", "a blue car"]),
        ("{a|b}{1|2}", ["a1", "a2", "b1", "b2"]),
        ("a {|big} dog", ["a dog", "a big dog"]),
        ("{a {red|blue} car|a dog} here", ["a red car here", "a blue car here", "a dog here"]),
        ("{a|a|b}", ["a", "b"]),
        (r"\{a|b\} {c\|d|e}", ["{a|b} c|d", "{a|b} e"]),
        (r"no wildcard  \{here\} \n", [r"no wildcard  {here} \n"]),
    ],
)
def test_wildcards(line, prompts):
    assert expand(line) == prompts


def test_a_line_with_very_many_combinations_is_sampled_the_same_way_every_time():
    line = " ".join(f"{{a{i}|b{i}|c{i}}}" for i in range(100))  # 3^100
    prompts = expand(line)
    assert len(prompts) == len(set(prompts)) == LIMIT
    assert expand(line) == prompts != expand(line + " .")
    assert {prompt.split()[50] for prompt in prompts} == {"a50", "b50", "c50"}


def test_the_limit_itself_is_given_whole():
    assert len(expand("{a|b}" * 6)) == 64 == LIMIT
    assert expand("{a|b}" * 6)[-1] == "b" * 6


@pytest.mark.parametrize("line, wrong", [("a {b|c", "no }"), ("a b} c", "no {"), ("{{a|b} c", "no }"), ("{a}", "one")])
def test_wrong_braces_are_named_with_their_line(line, wrong):
    with pytest.raises(ValueError, match="^Line 3: .*" + wrong):
        parse_prompts("fine\n# {\n" + line)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file(tmp_path, encoding):
    file = tmp_path / "prompts.txt"
    file.write_text("# s\u00fc\u00df\na caf\u00e9 in \u6771\u4eac\n", encoding)
    assert read_prompts(file) == ["a caf\u00e9 in \u6771\u4eac"]


@pytest.mark.parametrize("encoding, said", [("cp1252", "byte 6 is 0xE9"), ("utf-16", "UTF-16")])
def test_a_file_in_another_encoding(tmp_path, encoding, said):
    file = tmp_path / "prompts.txt"
    file.write_text("a caf\u00e9", encoding)
    with pytest.raises(ValueError, match=f"prompts.txt is not in UTF-8.*{said}.*save it as UTF-8"):
        read_prompts(file)


def test_errors_of_a_file_name_it(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("fine\n}")
    with pytest.raises(ValueError, match="^Line 2 of prompts.txt: "):
        read_prompts(file)
    file.write_text("")
    with pytest.raises(ValueError, match="no prompts in the lines of prompts.txt"):
        read_prompts(file)


def test_digests_tell_values_apart():
    large = torch.zeros(WHOLE + 1)
    changed = [large.clone() for _ in range(3)]
    for tensor, place in zip(changed, (0, len(large) // 2, -1)):
        tensor[place] = 1
    values = [
        None,
        0,
        0.0,
        False,
        "0",
        [],
        [0],
        [[0]],
        ["a", "b"],
        ["ab"],
        {},
        {"a": 1},
        torch.zeros(1),
        torch.zeros(2),
    ]
    values += [
        torch.zeros(1, 2),
        torch.zeros(1).bfloat16(),
        torch.zeros(1).half(),
        torch.tensor([1e-30]),
        torch.float16,
    ]
    digests = [digest(value) for value in values]
    assert len(set(digests)) == len(values)


def test_digests_of_equal_values_are_equal():
    assert digest({"a": (1, 2), "b": None}) == digest({"b": None, "a": [1, 2]})
    weight = torch.arange(6.0).reshape(2, 3)
    assert digest(weight.T.contiguous()) == digest(weight.T) != digest(weight)
    with torch.inference_mode():
        assert digest(weight + 0) == digest(weight)


def test_what_has_no_digest_is_said():
    with pytest.raises(TypeError, match="function"):
        digest({"a": [lambda: 0]})


def pair(seed=0, **extra):
    values = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, 4, generator=values), {"pooled_output": torch.randn(1, 2, generator=values), **extra}]


def same(one, other):
    assert one[1].keys() == other[1].keys()
    for a, b in [(one[0], other[0]), *((one[1][k], other[1][k]) for k in one[1])]:
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b)
        else:
            assert type(a) is type(b) and a == b


def test_conditionings_come_back_bit_for_bit(tmp_path):
    extra = {"attention_mask": torch.tensor([[1, 0]]), "start": 0.1, "none": None, "text": "\u00e9", "n": 3, "on": True}
    for key, value in {"a": pair(**extra), "b": [torch.ones(2, 3).half().T, {"pooled_output": None}]}.items():
        Conditionings(tmp_path / "x").add(key, value)
        same(Conditionings(tmp_path / "x").get(key), value)
    known = Conditionings(tmp_path / "x")
    assert known.missing(["a", "c", "b", "c"]) == ["c"]
    same(Listed(["b", "a"], known)[1][0], pair(**extra))
    assert {file.suffix for file in (tmp_path / "x").iterdir()} == {".safetensors"}


def test_what_is_more_than_tensors_stays_in_memory(tmp_path):
    known, value = Conditionings(tmp_path / "x"), pair(hooks=object())
    known.add("a", value)
    assert known.missing(["a"]) == [] and known.get("a") is value
    assert Conditionings(tmp_path / "x").missing(["a"]) == ["a"] and not (tmp_path / "x").exists()
    nowhere = Conditionings()
    nowhere.add("a", pair())
    assert nowhere.missing(["a", "b"]) == ["b"]


def test_a_broken_file_is_made_anew_and_one_that_has_gone_is_named(tmp_path):
    known = Conditionings(tmp_path)
    known.add("a", pair())
    file = tmp_path / "a.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert known.missing(["a"]) == ["a"]
    known.add("a", pair())
    assert known.missing(["a"]) == []
    file.unlink()
    with pytest.raises(ValueError, match="a.safetensors.*restart ComfyUI"):
        known.get("a")
