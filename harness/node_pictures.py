"""Takes the pictures of the help pages: each node in the real front end, and what nodes show when they have run.

    .venv/bin/python harness/node_pictures.py

It starts a ComfyUI and a headless browser, in both languages, trains the toy by workflow 1 and runs every stage once.
The pictures lie beside their pages: `web/docs/<node id>/node_en.png`, `node_zh.png` and `result.jpg`.
"""

import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from find_host import ROOT, find_host
from host_server import HostServer
from make_workflows import lay_out, numbers_of
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from shipped_toy import STEP
from workflow import to_prompt, workflow_1

PAGES = ROOT / "web/docs"
LANGUAGES = ("en", "zh")
BROWSER = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
READY = "() => window.app?.graph && window.LiteGraph && document.querySelector('[data-testid=queue-button]')"
CORNER = 200  # pixels from the page's left and top, clear of its bars
EDGE = 8  # pixels around a node
COLORS = 48  # enough for a node's flat colours, at a fifth of the bytes
WIDEST = 800  # pixels of a result
WIDTH = 320  # of a node
ALONE = """([kind, corner, width]) => {
    for (const other of [...app.graph.nodes]) app.graph.remove(other)  // clear() would give ids again, and values
    const node = LiteGraph.createNode(kind)
    node.pos = [corner, corner]
    app.graph.add(node)
    node.setSize([Math.max(width, node.computeSize()[0]), node.computeSize()[1]])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    app.canvas.setDirty(true, true)
    const at = app.canvas.canvas.getBoundingClientRect()
    const title = LiteGraph.NODE_TITLE_HEIGHT
    return [at.x + corner, at.y + corner - title, node.size[0], node.size[1] + title]
}"""


def open_page(browser: Browser, host: HostServer, language: str) -> Page:
    """The front end in a language, without the dialog of a first start."""
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.set_default_timeout(120_000)
    for _ in range(2):  # the language counts from the next start
        page.goto(f"http://{host.address}")
        page.wait_for_function(READY)
        page.wait_for_timeout(2500)
        page.keyboard.press("Escape")
        page.evaluate("language => app.extensionManager.setting.set('Comfy.Locale', language)", language)
    return page


def take_nodes(page: Page, node_ids: list[str], language: str):
    """A picture of each node, alone on the canvas, as it opens."""
    for node_id in node_ids:
        x, y, width, height = page.evaluate(ALONE, [node_id, CORNER, WIDTH])
        page.mouse.move(5, 600)
        page.wait_for_timeout(400)
        clip = {"x": x - EDGE, "y": y - EDGE, "width": width + 2 * EDGE, "height": height + 2 * EDGE}
        image = Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB").quantize(COLORS)
        image.save(PAGES / node_id / f"node_{language}.png", optimize=True)


def stages(schemas: dict) -> dict:
    """A prompt that trains the toy, compares it, scores its pictures and goes once through the stages of an update."""
    prompt, inputs = workflow_1()
    ids = {entry["class_type"]: number for number, entry in prompt.items()}
    added = judged(ids, inputs["SRPO_Objective"]) | {"sweep": ("SRPO_RecoverySweep", SWEEP)}
    added["samples shown"] = ("PreviewImage", {"images": ["compare", 1]})
    entries = {name: {"class_type": kind, "inputs": given} for name, (kind, given) in added.items()}
    return prompt | one_update(schemas) | entries


def judged(ids: dict[str, str], objective: dict) -> dict[str, tuple[str, dict]]:
    """The nodes that look at what was trained: (type, inputs) by name. ids: of workflow 1's nodes, by type."""
    toy = ids["SRPO_ToyModels"]
    lora = {"model": [toy, 0], "lora": [ids["SRPO_Train"], 1], "strength_model": 1.0, "bypass": False}
    compare = {
        "model_before": [toy, 0],
        "model_after": ["lora", 0],
        "dataset": [ids["SRPO_Prompts"], 0],
        "vae": [toy, 2],
        "reward": [toy, 3],
        "objective": [ids["SRPO_Objective"], 0],
        "width": 64,
        "height": 64,
        "prompts": 4,
        "seeds": 2,
        "seed": 1,
        "guidance": 3.5,
        "cfg": 1.0,
        "at_once": 8,
        "many_steps": 0,
    }
    table = {
        "reward": [toy, 3],
        "images": ["compare", 2],
        "prompt": "",
        "words": objective["positive"],
        "negative": objective["negative"],
        "best": 1,
        "show_gradients": True,
    }
    return {
        "lora": ("LoraModelLoader", lora),
        "compare": ("SRPO_Compare", compare),
        "table": ("SRPO_RewardTable", table),
    }


def one_update(schemas: dict) -> dict[str, dict]:
    """The nodes of the workflow of one update, by their keys. schemas: the host's object_info."""
    keys = {str(number): key for key, number in numbers_of(STEP).items()}
    prompt = to_prompt(lay_out(STEP, schemas), schemas)
    for entry in prompt.values():
        links = {name: value for name, value in entry["inputs"].items() if isinstance(value, list)}
        entry["inputs"] |= {name: [keys[number], output] for name, (number, output) in links.items()}
    return {keys[number]: entry for number, entry in prompt.items()}


SWEEP = {  # of what the workflow of one update samples
    "model": ["toy", 0],
    "positive": ["guidance", 0],
    "latent": ["sample", 0],
    "vae": ["toy", 2],
    "prompt": ["prompt", 0],
    "count": 9,
    "seed": 0,
    "gradient": True,
    "cfg": 1.0,
    "reward": ["toy", 3],
    "objective": ["objective", 0],
}
SHOWN_BY = {  # the node whose page shows a picture: the outputs that it is made of, side by side
    "SRPO_Compare": ("compare",),
    "SRPO_RewardTable": ("table",),
    "SRPO_RecoverySweep": ("sweep",),
    "SRPO_NoisePriorInject": ("noisy shown",),
    "SRPO_OneStepRecover": ("recovered shown", "inverted shown"),
    "SRPO_Reward": ("scored",),
    "SRPO_ToyModels": ("samples shown",),
}


def results(host: HostServer) -> Iterator[tuple[str, Image.Image]]:
    """(node, picture) of what the nodes show when they have run."""
    prompt = stages(host.object_info())
    outputs = host.run(prompt, seconds=1800)["outputs"]
    train = next(name for name, entry in prompt.items() if entry["class_type"] == "SRPO_Train")
    for node, names in (SHOWN_BY | {"SRPO_Train": (train,)}).items():
        images = [host.picture(each) for name in names for each in outputs[name]["images"]]
        yield node, beside_each_other(images)


def beside_each_other(images: list[Image.Image]) -> Image.Image:
    """One row; the toy's small pictures are enlarged without smoothing."""
    larger = [
        image.resize((image.width * 2, image.height * 2), Image.NEAREST) if image.width <= 64 else image
        for image in images
    ]
    row = Image.new("RGB", (sum(image.width for image in larger), max(image.height for image in larger)))
    left = 0
    for image in larger:
        row.paste(image, (left, 0))
        left += image.width
    row.thumbnail((WIDEST, row.height))
    return row


def main():
    with tempfile.TemporaryDirectory() as base, HostServer(find_host(), Path(base)) as host:
        node_ids = [name for name in host.object_info() if name.startswith("SRPO_")]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
            for language in LANGUAGES:
                take_nodes(open_page(browser, host, language), node_ids, language)
            browser.close()
        for node, image in results(host):
            image.save(PAGES / node / "result.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    main()
