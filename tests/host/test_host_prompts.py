"""SRPO_Prompts on the real host: what it reads, and that text encoders run once for each prompt and encoder."""

import re
import time

import prompts
import pytest
import torch
from host_server import HostError, HostServer
from PIL import Image
from safetensors.torch import load_file, save_file

MANY = "a red circle on grass\n# not this\na {red|blue} square on sand"  # three prompts


def counts(host) -> list[tuple[int, int]]:
    """(encoded, known before) of each time that SRPO Prompts ran."""
    return [(int(a), int(b)) for a, b in re.findall(r"Prompts: (\d+) encoded, (\d+) known before", host.log)]


def files(host) -> dict:
    return {file: file.stat().st_mtime_ns for file in (host.base / "output/srpo/.prompts").glob("*/*")}


def adapter(host, run: str) -> dict:
    return load_file(next((host.base / "output/loras/srpo" / run).glob("*.safetensors")))


def encode(run: str, clip=("toy", 1), **inputs) -> dict:
    """A prompt that trains nothing but the shortest run on all of these prompts, no more than three."""
    prompt = prompts.train(run, 1, batch=3)
    prompt["prompts"]["inputs"] |= {"clip": list(clip), **inputs}
    return prompt


def test_the_second_start_encodes_nothing_and_trains_the_same(comfyui, tmp_path):
    with HostServer(comfyui, tmp_path, ("--disable-api-nodes",)) as first:
        first.run(prompts.train("fresh", 2, text=MANY, batch=3))
        assert counts(first) == [(3, 0)]
        before = files(first)
    with HostServer(comfyui, tmp_path, ("--disable-api-nodes",)) as second:
        second.run(prompts.train("known", 2, text=MANY, batch=3))
        assert counts(second) == [(0, 3)]
        assert len(before) == 3 and files(second) == before
        fresh = adapter(second, "fresh")
        known = adapter(second, "known")
        assert fresh.keys() == known.keys() and all(torch.equal(fresh[key], known[key]) for key in fresh)
        second.run(prompts.train("more", 1, text=MANY + "\na green star", batch=4))
        assert counts(second)[1:] == [(1, 3)]


def test_only_what_is_drawn_and_shown_is_encoded(host):
    """However long the list; and the rest when a later update draws it."""
    words = ("red", "blue", "green", "black", "white", "yellow")
    shapes = ("circle", "square", "ring", "cross", "star", "triangle")
    lines = [f"a {word} {shape} and a {other} one" for word in words for other in words for shape in shapes]
    (host.base / "input/lists").mkdir()
    (host.base / "input/lists/LONG.TXT").write_text("\n".join(lines))
    start = len(counts(host))
    before = files(host)
    for updates in (2, 1, 1):
        prompt = prompts.train("drawn", updates, batch=2, previews_count=2)
        prompt["prompts"]["inputs"]["file"] = "lists/LONG.TXT"
        host.run(prompt)
    encoded = [new for new, _ in counts(host)[start:]]
    assert encoded[0] in range(4, 7) and encoded[1:] == [2, 2]  # previews may be among the drawn
    assert len(files(host)) == len(before) + sum(encoded)
    said = [data for kind, data in host.messages if kind == "preview"]
    assert not any(b"216 prompts" in data for data in said)  # the dataset was not made again


def test_the_node_says_how_many_prompts_there_are(host):
    host.run(encode("how many", text="a red circle\na [red] square\na {red|blue} ring"))
    said = b" ".join(data for kind, data in host.messages if kind == "preview").decode("utf-8", "replace")
    assert '4 prompts. 1 with [ ], which are read as they are written and weigh nothing: "a [red] square"' in said


def test_which_files_are_offered(host, pack, tmp_path):
    inside = host.base / "input/offered"
    (inside / ".hidden").mkdir(parents=True)
    (inside / "folder.txt").mkdir()
    Image.new("RGB", (16, 16)).save(inside / "photo.png")
    (tmp_path / "secret.txt").write_text("secret")
    for name in ("PROMPTS.TXT", "Photo.TXT", "photo.png.txt", "a.csv", ".hidden/b.txt", "folder.txt/deep.txt"):
        (inside / name).write_text("a red circle")
    (inside / "link.txt").symlink_to(tmp_path / "secret.txt")
    (inside / "nowhere.txt").symlink_to("gone")
    offered = host.object_info()["SRPO_Prompts"]["input"]["required"]["file"][1]["options"]
    assert [name for name in offered if "offered" in name] == ["offered/PROMPTS.TXT", "offered/folder.txt/deep.txt"]
    refused = {
        "offered/link.txt": "There is no file",
        "offered/nowhere.txt": "There is no file",
        "offered/folder.txt": "There is no file",
        "offered/a.csv": "is no .txt file",
        "../output/x.txt": "There is no file",
        str(tmp_path / "secret.txt"): "There is no file",
        "": "is no .txt file",
    }
    for name, words in refused.items():
        with pytest.raises(HostError, match="validation failed") as refusal:
            host.run(encode("refused", file=name))
        assert words in str(refusal.value), name


def test_prompts_of_other_token_counts_share_an_update_and_its_previews(host):
    """But no forward: the host's text encoders give long prompts more tokens."""
    earlier = files(host)
    caption = "a black triangle on a desk"
    text = f"{caption}\n{' '.join([caption] * 20)}\n{caption}, bright"
    host.run(prompts.train("lengths", 1, text=text, batch=3, at_once=3, previews_count=3))
    assert len({load_file(file)["context"].shape for file in files(host).keys() - earlier.keys()}) == 2
    assert len(list((host.base / "output/loras/srpo/lengths").glob("*.safetensors"))) == 1


def test_another_text_encoder_is_another_place(host, pack):
    state = pack("nodes.host.toy").load_clip().cond_stage_model.state_dict()
    name, weight = next((k, v) for k, v in state.items() if k.endswith("fc1.weight"))
    up = torch.ones(weight.shape[0], 1)
    down = torch.ones(1, weight.shape[1])
    key = f"text_encoders.{name.removesuffix('.weight')}"
    (host.base / "models/loras").mkdir(exist_ok=True)
    save_file(
        {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}, host.base / "models/loras/text.safetensors"
    )
    with_lora = {"lora_name": "text.safetensors", "strength_model": 0.0}
    chain = {
        "layer": prompts.node("CLIPSetLastLayer", clip=["toy", 1], stop_at_clip_layer=-2),
        "lora": prompts.node("LoraLoader", model=["toy", 0], clip=["toy", 1], strength_clip=1.0, **with_lora),
        "weaker": prompts.node("LoraLoader", model=["toy", 0], clip=["toy", 1], strength_clip=0.5, **with_lora),
    }
    start = len(counts(host))
    for clip in (("toy", 1), ("layer", 0), ("lora", 1), ("weaker", 1), ("lora", 1), ("layer", 0), ("toy", 1)):
        host.run(encode("place", clip, text="a cross on snow") | chain)
    assert counts(host)[start:] == [(1, 0)] * 4 + [(0, 1)] * 3


def test_a_file_with_comments_and_wildcards(host):
    file = host.base / "input/list.txt"
    file.write_text("\ufeff# h\u00e9\n\na {yellow|black} ring on a desk\n", "utf-8")
    start = len(counts(host))
    host.run(encode("file", file="list.txt"))
    assert counts(host)[start:] == [(2, 0)]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"fine\na {b", "Line 2 of bad.txt: a { has no }"),
        (b"# nothing\n", "no prompts in the lines of bad.txt"),
        (b"a caf\xe9", "bad.txt is not in UTF-8"),
        (b"fine\n{2$$a|b}", "Line 2 of bad.txt: "),
        (b"a\n" + b"{a|b}" * 30_000, "Line 2 of bad.txt: it has "),
        (b"{a|" * 1000 + b"b" + b"}" * 1000, "Line 1 of bad.txt: more than 20 {"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_once(host, content, said):
    (host.base / "input/bad.txt").write_bytes(content)
    with pytest.raises(HostError, match="validation failed") as refusal:
        host.run(encode("bad", file="bad.txt"))
    assert said in str(refusal.value)


@pytest.mark.parametrize("text", ["{a|b}" * 50_000, "{a|" * 1000 + "b" + "}" * 1000, "{a|b}\n" * 400_000])
def test_the_server_goes_on_while_prompts_are_read(pack, text):
    """What is looked at before a workflow is queued takes no longer for more text: others wait for it."""
    node = pack("nodes.prompts").PromptsNode
    begun = time.process_time()
    node.validate_inputs(text=[text], file=["none"])
    assert time.process_time() - begun < 2


def test_texts_of_the_cores_dataset_nodes(host):
    folder = host.base / "input/captioned"
    folder.mkdir()
    captions = ["a {literal} brace\nover two lines", "# no comment", " "]
    for number, caption in enumerate(captions):
        Image.new("RGB", (16, 16)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    load = {"load": prompts.node("LoadImageTextDataSetFromFolder", folder="captioned")}
    start = len(counts(host))
    host.run(encode("texts", text="", texts=["load", 1]) | load)
    assert counts(host)[start:] == [(2, 0)]
    blank = host.base / "input/blank"
    blank.mkdir()
    Image.new("RGB", (16, 16)).save(blank / "no caption.png")
    load["load"]["inputs"]["folder"] = "blank"
    with pytest.raises(HostError, match="none has a word"):
        host.run(encode("blank", text="not this", texts=["load", 1]) | load)


@pytest.fixture
def clip(pack):
    return pack("nodes.host.toy").load_clip()


@pytest.fixture
def encoder(pack):
    return pack("nodes.host.text_encoder")


def direct(clip, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0]


def test_known_conditioning_is_what_the_host_gives(clip, encoder, tmp_path):
    texts = ["a red circle", "a (blue:1.3) square", "a red circle"]
    for _ in range(2):
        encoded = encoder.Encoded(clip, texts, tmp_path)
        for text, (value,) in zip(texts, encoded, strict=True):
            context, extra = direct(clip, text)
            assert torch.equal(value[0], context) and value[1].keys() == extra.keys()
            assert torch.equal(value[1]["pooled_output"], extra["pooled_output"])
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2


def test_known_prompts_neither_load_nor_run_text_encoders(clip, encoder, tmp_path, monkeypatch):
    encoder.Encoded(clip, ["a red circle"], tmp_path).prepare([0])
    monkeypatch.setattr(encoder.comfy.model_management, "load_models_gpu", None)
    monkeypatch.setattr(clip.cond_stage_model, "encode_token_weights", None)
    assert len(encoder.Encoded(clip, ["a red circle"], tmp_path)[0]) == 1
    with pytest.raises(TypeError):
        encoder.Encoded(clip, ["another"], tmp_path).prepare([0])


def test_prompts_are_encoded_when_they_are_asked_for(clip, encoder, tmp_path):
    texts = [f"a {word} ring" for word in ("red", "blue", "green", "black")]
    encoded = encoder.Encoded(clip, texts, tmp_path)
    assert list(tmp_path.rglob("*.safetensors")) == []
    encoded.prepare([2, 0, 2])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    assert torch.equal(encoded[3][0][0], direct(clip, texts[3])[0])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3 and encoded.clip is not None
    encoded.prepare(range(4))
    assert encoded.clip is None  # its gigabytes are free
    assert torch.equal(encoded[1][0][0], direct(clip, texts[1])[0])
    with pytest.raises(IndexError):
        encoded[4]


def test_a_long_list_takes_no_time_before_it_is_drawn(clip, encoder, pack, tmp_path):
    """103,700 prompts, as of HPDv2."""
    texts = [f"a red circle number {i}" for i in range(103_700)]
    begun = time.process_time()
    data = pack("nodes.prompts").Prompts(texts, encoder.Encoded(clip, texts, tmp_path))
    loop = pack("srpo_core.run.loop")
    loop.describe_data(data)
    draws = pack("srpo_core.run.draws")
    two = draws.Batching(shape=(), batch=2)
    loop.prepare_data(range(2), two, data)
    draws.of_one_shape(draws.draws_of(0, two, data), draws.Batching(shape=(), at_once=2))
    assert time.process_time() - begun < 10
    assert 1 <= len(list(tmp_path.rglob("*.safetensors"))) <= 4  # the toy reads few words: some are the same to it


def test_text_encoders_that_changed_meanwhile_are_not_mixed_with_what_they_were(clip, encoder, tmp_path):
    encoded = encoder.Encoded(clip, ["a red ring", "a blue ring"], tmp_path)
    encoded.prepare([0])
    other = patched(clip, 1.0)
    other.clip_layer(-2)
    clip.clip_layer(-2)  # what is hung on theirs is not ours
    encoded.prepare([1])
    again = encoder.Encoded(clip, ["a green ring", "a black ring"], tmp_path)
    again.prepare([0])
    with torch.no_grad():
        clip.patcher.detach()
        next(p for n, p in clip.cond_stage_model.named_parameters() if n.endswith("fc2.bias"))[0] += 1
    with pytest.raises(ValueError, match="no longer what they were"):
        again.prepare([1])


def test_brackets_that_the_text_encoder_cannot_read_are_a_sentence(clip, encoder, tmp_path):
    with pytest.raises(ValueError, match="can't read a prompt with so many brackets"):
        encoder.Encoded(clip, ["(" * 2000 + "a" + ")" * 2000], tmp_path).prepare([0])


def patched(clip, strength: float):
    """The CLIP with a patch of one of its weights, as a LoRA loader makes it."""
    name = next(k for k in clip.cond_stage_model.state_dict() if k.endswith("fc1.weight"))
    other = clip.clone()
    other.add_patches({name: ("diff", (torch.ones_like(clip.cond_stage_model.state_dict()[name]),))}, strength)
    return other


def test_the_identity_is_that_of_what_encodes(clip, encoder, pack):
    plain = encoder.identity(clip)
    strong = patched(clip, 1.0)
    weak = patched(clip, 0.5)
    layer = clip.clone()
    layer.clip_layer(-2)
    everyone = {"plain": clip, "strong": strong, "weak": weak, "layer": layer}
    before = {name: encoder.identity(one) for name, one in everyone.items()}
    assert len(set(before.values())) == len(before)
    for one in everyone.values():
        direct(one, "whatever is loaded, and patched in place")
        assert {name: encoder.identity(other) for name, other in everyone.items()} == before
    assert encoder.identity(pack("nodes.host.toy").load_clip()) == plain
    assert encoder.identity(patched(pack("nodes.host.toy").load_clip(), 0.5)) == before["weak"]
    with torch.no_grad():
        clip.patcher.detach()
        next(p for n, p in clip.cond_stage_model.named_parameters() if n.endswith("fc2.bias"))[0] += 1
    assert encoder.identity(clip) != plain


def test_what_cannot_be_told_apart_is_kept_in_memory(clip, encoder, tmp_path):
    clip.patcher.add_object_patch("anything", lambda: 0)
    encoded = encoder.Encoded(clip, ["a", "b"], tmp_path)
    assert torch.equal(encoded[1][0][0], direct(clip, "b")[0])
    assert list(tmp_path.iterdir()) == []


def test_cancel_keeps_what_is_encoded(clip, encoder, tmp_path, monkeypatch):
    management = encoder.comfy.model_management
    texts = [f"a {word} ring" for word in ("red", "blue", "green", "black", "white")]

    def check():
        if len(list(tmp_path.glob("*/*.safetensors"))) == 3:
            raise management.InterruptProcessingException

    with monkeypatch.context() as patch:
        patch.setattr(management, "throw_exception_if_processing_interrupted", check)
        with pytest.raises(management.InterruptProcessingException):
            encoder.Encoded(clip, texts, tmp_path).prepare(range(5))
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3
    encoded = encoder.Encoded(clip, texts, tmp_path)
    assert torch.equal(encoded[4][0][0], direct(clip, texts[4])[0])


def test_text_encoders_leave_when_they_have_encoded(clip, encoder, tmp_path):
    management = encoder.comfy.model_management

    def loaded() -> bool:
        there = filter(None, management.loaded_models())  # None for those of earlier tests that nobody has any more
        return any(one.model is clip.cond_stage_model for one in there)

    encoder.Encoded(clip, ["a red circle"], tmp_path).prepare([0])
    assert not loaded()
    direct(clip, "something else")
    assert loaded()
    encoder.Encoded(clip, ["a red circle"], tmp_path).prepare([0])
    assert loaded()  # another node's business


def test_no_clip_is_a_sentence(encoder, tmp_path):
    with pytest.raises(ValueError, match="no text encoder"):
        encoder.Encoded(None, ["a"], tmp_path)
