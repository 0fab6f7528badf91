"""Prompts from text: comments, wildcards, files in this encoding and that; digests, and conditionings on disk."""

import itertools
import json
import re
import time

import pytest
import torch
from find_host import ROOT
from hypothesis import example, given
from hypothesis import strategies as st

from srpo_core.data.conditionings import Conditionings
from srpo_core.data.prompt_text import MOST, check_beginning, check_prompts, parse_prompts, read_prompts
from srpo_core.data.wildcards import LIMIT, LONGEST, expand
from srpo_core.digest import WHOLE, digest


@given(st.lists(st.sampled_from(["# heading", "a cat", "// no", "a {red|blue} dog", ""]), min_size=1))
def test_marks_of_files_that_were_joined_are_no_words(lines):
    lines = [*lines, "last"]
    assert parse_prompts("\n".join(f"\ufeff{line}" for line in lines)) == parse_prompts("\n".join(lines))


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


# What other programs read in a prompt

FOREIGN = [
    "{2$$red|blue|green} cat",
    "{1-2$$ and $$red|blue} cat",
    "{0.7::red|0.3::blue} cat",
    "{3::red|blue} cat",
    "1.5::red::cat",
    "hot::2 dog",
    "{@red|blue} cat",
    "__colour__ cat",
    "a cat, __animals/pets-2__",
    "__*__ cat",
    "a ${colour} cat",
    "${colour=!{red|blue}} cat",
    "a cat <lora:style:0.8>",
    "<lyco:x:1> cat",
    "a cat <random:red,blue>",
    "a [red|blue] cat",
    "a [red:blue:0.5] cat",
    "a [red:10] cat",
    "a [red::0.5] cat",
    "[[red, blue]] cat",
    "||red|blue|| cat",
    "a cat --n a dog --w 512 --h 512",
    "a cat --ar 16:9",
    "a cat BREAK a dog",
    "BREAK",
    "AND",
    "a __season(x=1)__ cat",
    "a __!animals__ cat",
    "a cat AND a dog",
    "a cat ADDCOL a dog",
    "{{{cat}}}",
    "{cat}",
    "Negative prompt: ugly",
    "Steps: 28, Sampler: Euler a",
]
OWN = [  # of the host's text encoders, or simply words
    "a (red:1.2) cat",
    "((red)) cat \\(animal\\)",
    "a cat, embedding:EasyNegative",
    "BLACK AND WHITE PHOTO",
    "a brand, sand and land",
    "photo--realistic -- with dashes",
    "under_score and snake__case",
    "50% off, $5, a|b, R&B, <3 cats, 16:9",
    "a sign that says http://example.com/a//b",
    "[very] old",
    "a cat # not a comment",
]


@pytest.mark.parametrize("line", FOREIGN)
def test_what_other_programs_read_is_refused_with_its_line(line):
    with pytest.raises(ValueError, match="^Line 2 of list.txt: ") as refused:
        parse_prompts(f"fine\n{line}\nfine", " of list.txt")
    assert "\\" in str(refused.value) or "take the line away" in str(refused.value)  # what to do
    with pytest.raises(ValueError, match="^Line 2"):
        check_prompts(f"fine\n{line}")


@pytest.mark.parametrize("line", OWN)
def test_words_and_the_hosts_own_syntax_are_left_as_they_are(line):
    assert parse_prompts(line) == [line]


@pytest.mark.parametrize(
    "line, prompt",
    [
        (r"\[red|blue] cat", "[red|blue] cat"),
        (r"\__colour__ cat", "__colour__ cat"),
        (r"a\::b", "a::b"),
        (r"\<lora:style:0.8> cat", "<lora:style:0.8> cat"),
        (r"a cat \--ar 16", "a cat --ar 16"),
        (r"salt \AND pepper, \BREAK", "salt AND pepper, BREAK"),
        (r"\$\{price\}", "${price}"),
        (r"\# one", "# one"),
        (r"\// not a comment \/* nor this", "// not a comment /* nor this"),
        (r"\negative prompt: x", "negative prompt: x"),
        (r"C:\new \(x\)", r"C:\new \(x\)"),
    ],
)
def test_a_backslash_makes_it_text(line, prompt):
    assert parse_prompts(line) == [prompt]


def test_the_other_lines_that_cannot_be_read_are_named():
    with pytest.raises(ValueError, match="^Line 2: .*More lines that can't be read: 3, 5.$"):
        parse_prompts("a\n{b\nc --n d\ne\nf BREAK g")
    with pytest.raises(ValueError, match=r"10, 11, \.\.\.\.$"):
        parse_prompts("{a\n" * 30)


def test_comments_of_the_host():
    text = "a cat // mine\n// all of it\nred /* not\nthis\n { */ dog\n/* x */ b /* y */ c\n  # no /*\nend"
    assert parse_prompts(text) == ["a cat", "red", "dog", "b  c", "end"]
    with pytest.raises(ValueError, match=r"^Line 2: a /\* has no \*/"):
        parse_prompts("a\nb /* c\nd")


# Time

PIECES = st.sampled_from(
    list("{}|()[]<>\\:_-/*# $a.,1") + ["{a|b}", "__", "::", "AND ", "--n ", "${", "$$", "/*", "*/", "\n"]
)


@given(st.lists(PIECES, max_size=60).map("".join))
@example("{" * 30)
def test_any_text_gives_prompts_or_a_sentence(text):
    """And what is looked at before a workflow is queued is refused by the same words."""
    results = []
    for read in (parse_prompts, check_prompts):
        try:
            results.append(read(text) or "fine")
        except ValueError as error:
            results.append(str(error))
    prompts, checked = results
    if isinstance(prompts, str):
        assert re.match(r"Line \d+: |There are no prompts", prompts)
        assert checked == prompts or "no prompts" in prompts
    else:
        assert checked == "fine" and all(prompt == prompt.strip() and prompt for prompt in prompts)


@given(st.text(max_size=200).filter(lambda text: text.strip() and "\0" not in text))
def test_any_line_can_be_written_literally(text):
    text = " ".join(text.split()).lstrip("\ufeff").lstrip()
    special = r"::|__|--|//|/\*|[{}|\[\]<>$#@~]|\b(?:AND|BREAK|ADD)|(?i:negative prompt:|steps:)"
    if text and "\\" not in text:
        assert parse_prompts(re.sub(special, lambda found: "\\" + found[0], text)) == [text]


SLOW = {
    "one line of wildcards": "{a|b}" * 50_000,
    "nested": "{a|" * 1000 + "b" + "}" * 1000,
    "less nested": "{a|" * 480 + "b" + "}" * 480,
    "half open": "{a|" * 3000,
    "brackets": "(" * 4000 + "a" + ")" * 4000,
    "tags": "<a: " * 2500,
    "squares": "[a:" * 3000,
    "underscores": "__a " * 2500,
    "comments": "/*" * 100_000,
    "many lines": "{a|b} {c|d}\n" * 20_000,
    "no end": "a" * 200_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_a_text_takes_time_as_it_is_long(name):
    text = SLOW[name]
    begun = time.process_time()
    for read in (check_prompts, parse_prompts):
        try:
            read(text)
        except ValueError as error:
            assert re.match(r"Line \d+", str(error))
    assert time.process_time() - begun < 5


def test_what_all_lines_make_is_bounded():
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"^Line \d+: up to here the lines with wildcards have"):
        parse_prompts(("{a|b}{c|d}" * 900 + "\n") * 1000)
    assert time.process_time() - begun < 15
    with pytest.raises(ValueError, match=f"^Line {MOST + 1}: up to here there are more than"):
        parse_prompts("a\n" * (MOST + 1))


def test_the_longest_line():
    assert parse_prompts("a" * LONGEST) == ["a" * LONGEST]
    with pytest.raises(ValueError, match="^Line 2: it has 10,001 characters"):
        parse_prompts("fine\n" + "a" * (LONGEST + 1))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_the_beginning_of_a_long_file_is_looked_at(tmp_path, end):
    file = tmp_path / "long.txt"
    for line, most in itertools.product(("{red|blue} caf\u00e9", "/* open"), range(20, 40)):
        file.write_text(f"a{end}{line}{end}{{wrong{end}", "utf-8", newline="")
        if most < len(f"a{end}{line}{end}".encode()):
            check_beginning(file, most)
    with pytest.raises(ValueError, match="Line 3 of long.txt|Line 2 of long.txt"):
        check_beginning(file, 1000)


def test_half_a_character_is_no_text():
    with pytest.raises(ValueError, match="^Line 1: .*half of a character"):
        parse_prompts("a \ud83d cat")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file(tmp_path, encoding):
    file = tmp_path / "prompts.txt"
    file.write_text("# s\u00fc\u00df\na caf\u00e9 in \u6771\u4eac\n", encoding)
    assert read_prompts(file) == ["a caf\u00e9 in \u6771\u4eac"]


@pytest.mark.parametrize(
    "encoding, said", [("cp1252", "byte 6 is 0xE9"), ("utf-16", "UTF-16"), ("utf-16-le", "byte|bytes of zero")]
)
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
    assert {file.suffix for file in (tmp_path / "x").iterdir()} == {".safetensors"}


def test_what_is_more_than_tensors_stays_in_memory(tmp_path):
    known = Conditionings(tmp_path / "x")
    value = pair(hooks=object())
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


def test_the_workflow_of_flux_has_a_prompt_for_each_draw():
    """As many as docs/words.md advises: each of its updates draws new ones."""
    shapes = json.loads((ROOT / "tests/support/node_shapes.json").read_text("utf-8"))
    usual = {each["id"]: each.get("default") for each in shapes["SRPO_Train"]["inputs"]}
    workflow = json.loads((ROOT / "workflows/2 FLUX.1-dev LoRA (online).json").read_text("utf-8"))
    (text,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "SRPO_Prompts")
    prompts = parse_prompts(text)
    assert len(set(prompts)) == usual["updates"] * usual["batch"] == 160
    assert len({prompt.split(maxsplit=4)[1] for prompt in prompts[:4]}) == 4  # those that are shown are unlike
