"""What a person sees in the real front end, in a headless browser; and what the host says of the pack.

One ComfyUI and one browser for all. Pictures of what was seen lie where SRPO_SCREENSHOTS says, or in pytest's folder.
"""

import base64
import json
import os
import re
import shutil
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from host_server import HostServer
from PIL import Image
from workflow import NOTES, to_prompt

ROOT = Path(__file__).parents[2]
FILES = sorted(file for file in (ROOT / "workflows").glob("*.json") if file.stem.isascii())  # not the twins
GROWING = "rewards."  # inputs that grow have numbers, and no translations
TWINS = sorted(set((ROOT / "workflows").glob("*.json")) - set(FILES))  # in Chinese
WORKFLOW_1 = FILES[0]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MODES = {
    "classic": {"Comfy.VueNodes.Enabled": False, "Comfy.Locale": "en"},
    "Nodes 2.0": {"Comfy.VueNodes.Enabled": True, "Comfy.Locale": "en"},
    "Chinese": {"Comfy.VueNodes.Enabled": True, "Comfy.Locale": "zh"},
}
WINDOW = {"width": 1600, "height": 857}
TEXT_ZOOM = 8 / 14  # the canvas draws no smaller text: LiteGraph.Canvas.MinFontSizeForLOD over the size of its text
READY = "() => window.app?.graph && window.LiteGraph && document.querySelector('[data-testid=queue-button]')"
EVENTS = """() => { window.ended = null; window.progress = 0
    app.api.addEventListener('progress', () => window.progress += 1)
    for (const event of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(event, () => window.ended = event) }"""
LOADERS = {"UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader", "SRPO_LoadReward"}
PIXELS = """image => { const canvas = document.createElement('canvas')
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight
    canvas.getContext('2d').drawImage(image, 0, 0)
    return canvas.toDataURL('image/png').split(',')[1] }"""
# The boxes of nodes [left, top, right, bottom] on the canvas: as they are drawn there, or the parts of the page.
BOXES = """() => app.graph.nodes.map(node => {
    const part = document.querySelector(`[data-node-id="${node.id}"]`)
    const [left, top, width, height] = node.boundingRect
    if (!part) return [left, top, left + width, top + height]
    const {scale, offset} = app.canvas.ds, corner = app.canvas.canvas.getBoundingClientRect()
    const boxes = [part, ...part.querySelectorAll('button')].map(each => each.getBoundingClientRect())
    return [Math.min(...boxes.map(box => box.left)) - corner.left, Math.min(...boxes.map(box => box.top)) - corner.top,
            Math.max(...boxes.map(box => box.right)) - corner.left,
            Math.max(...boxes.map(box => box.bottom)) - corner.top].map((at, i) => at / scale - offset[i % 2]) })"""
# What the canvas writes when it is drawn anew.
WRITTEN = """() => {
    const written = [], context = CanvasRenderingContext2D.prototype, write = context.fillText
    context.fillText = function (text, ...at) { written.push(text); return write.call(this, text, ...at) }
    app.canvas.draw(true, true)
    context.fillText = write
    return written }"""
# The width of the picture on a node, as a share of the node's.
CARD = """id => {
    const part = document.querySelector(`[data-node-id="${id}"]`), card = part.querySelector('img')
    const [place, node] = [card, part].map(each => each.getBoundingClientRect())
    return Math.min(place.width, place.height * card.naturalWidth / card.naturalHeight) / node.width }"""
GROUPS = "() => app.graph.groups.map(({pos, size}) => [pos[0], pos[1], pos[0] + size[0], pos[1] + size[1]])"
# Where a slot is on the page.
SLOT = """([kind, input, name]) => {
    const node = app.graph.nodes.find(node => node.type === kind)
    const place = node.getConnectionPos(input, input ? node.findInputSlot(name) : node.findOutputSlot(name))
    const {scale, offset} = app.canvas.ds, corner = app.canvas.canvas.getBoundingClientRect()
    return {x: (place[0] + offset[0]) * scale + corner.left, y: (place[1] + offset[1]) * scale + corner.top} }"""
LOAD = "([workflow, source]) => app.loadGraphData(workflow, true, true, null, {openSource: source})"
CONNECT = """([id, inputs]) => { const node = app.graph.getNodeById(id)
    for (const [name, [from, slot]] of Object.entries(inputs))
        app.graph.getNodeById(from).connect(slot, node, node.inputs.findIndex(input => input.name === name)) }"""
WRITE = """([id, values]) => { const node = app.graph.getNodeById(id)
    for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value }"""
DROP = """([name, type, content]) => {
    const files = new DataTransfer(), bytes = Uint8Array.from(atob(content), each => each.charCodeAt(0))
    files.items.add(new File([bytes], name, {type}))
    for (const kind of ['dragenter', 'dragover', 'drop'])
        app.canvas.canvas.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: files,
                                                             clientX: 900, clientY: 500})) }"""
SHOWN = """() => app.graph.nodes.filter(node => ['PreviewImage', 'LossGraphNode', 'SRPO_Train'].includes(node.type))
    .every(node => app.nodeOutputs[node.id]?.images && (!node.imgs || node.imgs.every(image => image.complete)))"""
# "... 1 update (3 in all)", by locales/zh/summaries.json.
SAID_IN_CHINESE = re.compile("\u5b8c\u6210 (\\d+) \u6b21\u66f4\u65b0\uff08\u7d2f\u8ba1 (\\d+) \u6b21")
SMALL = {"SRPO_Train": {"updates": 3, "batch": 2}, "SRPO_Rollouts": {"steps": 2}}


class Site:
    """A ComfyUI that can be restarted, and pages of a browser on it, which share what they have fetched."""

    def __init__(self, install: Path, base: Path, browser, pictures: Path):
        self.install = install
        self.base = base
        self.context = browser.new_context(viewport=WINDOW)
        self.pictures = pictures
        self.pages = {}
        self.host = HostServer(install, base)

    def restart(self):
        for page in self.pages.values():
            page.close()
        self.pages.clear()
        self.host.stop()
        self.host = HostServer(self.install, self.base)

    def page(self, mode: str):
        """The page of this mode; `complaints` grows with what the console says, `baseline` is its start."""
        if mode not in self.pages:
            for page in self.pages.values():
                page.close()
            self.pages = {mode: self._open(MODES[mode])}
        return self.pages[mode]

    def _open(self, settings: dict):
        address = f"http://{self.host.address}"
        self.context.request.post(f"{address}/settings", data=settings)
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        page.complaints = set()
        page.on("console", lambda message: page.complaints.add(complaint(message)))
        page.on("pageerror", lambda error: page.complaints.add(str(error)))
        page.goto(address)
        page.wait_for_function(READY)
        page.wait_for_timeout(3000)  # a host without our pack complains too, up to here
        page.baseline = page.complaints | {None}
        page.evaluate(EVENTS)
        return page

    def keep(self, page, name: str):
        """A picture of the page, for people."""
        page.screenshot(path=self.pictures / f"{name}.png")


@pytest.fixture(scope="module")
def site(comfyui, tmp_path_factory):
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no browser found: install chromium to run this in the real front end")
    from playwright.sync_api import sync_playwright

    pictures = Path(os.environ.get("SRPO_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        site = Site(comfyui, tmp_path_factory.mktemp("site"), browser, pictures)
        yield site
        site.host.stop()
        browser.close()


def complaint(message) -> str | None:
    """An error on the console, with its address where it is of a file; None for anything else, and for the internet."""
    url = message.location.get("url", "")
    internet = "net::ERR" in message.text and "127.0.0.1" not in url
    return f"{message.text} {url}" if message.type == "error" and not internet else None


def load(page, workflow: dict, source: str = "file"):
    """Open the workflow: from a file in the view that is saved with it, from a "template" with all of it in view."""
    page.keyboard.press("Escape")
    page.evaluate(LOAD, [workflow, source])
    page.wait_for_timeout(700)


def read(file: Path) -> dict:
    return json.loads(file.read_text("utf-8"))


def nodes(page, kind: str, expression: str) -> list:
    """`expression` of each `node` of that kind on the canvas."""
    return page.evaluate(f"kind => app.graph.nodes.filter(n => n.type === kind).map(node => {expression})", kind)


def make_small(page, **train: int):
    """Few updates and steps, for a quick run."""
    for kind, values in (SMALL | {"SRPO_Train": SMALL["SRPO_Train"] | train}).items():
        for name, value in values.items():
            nodes(page, kind, f"node.widgets.find(w => w.name === '{name}').value = {value}")


def press_run(page):
    page.evaluate("() => { window.ended = null; window.progress = 0 }")
    page.get_by_test_id("queue-button").click()


def wait_for_end(page) -> str:
    page.wait_for_function("() => window.ended", timeout=300_000)
    if page.evaluate("window.ended") == "execution_success":
        page.wait_for_function(SHOWN)
    page.wait_for_timeout(1500)
    return page.evaluate("window.ended")


def graph_to_prompt(page) -> dict:
    prompt = page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)")
    return {id_: (node["class_type"], node["inputs"]) for id_, node in json.loads(prompt).items()}


def inputs_of(prompt: dict, kind: str) -> dict:
    """The inputs of the one node of that kind."""
    ((_, inputs),) = [node for node in prompt.values() if node[0] == kind]
    return inputs


def shown(page, kind: str) -> Image.Image:
    """The picture on the node."""
    image = page.evaluate_handle("kind => app.graph.nodes.find(n => n.type === kind).imgs[0]", kind)
    return Image.open(BytesIO(base64.b64decode(page.evaluate(PIXELS, image)))).convert("RGB")


def blocks(image: Image.Image) -> np.ndarray:
    """Means over 8x8 pixels: without the noise of JPEG."""
    return np.asarray(image.reduce(8), np.float32)


def ends_in_text(image: Image.Image) -> bool:
    """Whether a card has a line of writing at its lower edge, perhaps of one word: ink on white, but not the edges."""
    strip = np.asarray(image.convert("L"))[-40:-8]
    inked = (strip < 128).any(0)
    return bool((strip[0] > 240).all() and inked[8:60].mean() > 0.3)


def sentence(page) -> str:
    """What Preview as Text shows of SRPO Train's summary."""
    ((text,),) = nodes(page, "PreviewAny", "node.widgets.filter(w => w.name === 'preview_text').map(w => w.value)")
    return text


def last_entry(host) -> dict:
    """The youngest of the host's history."""
    return list(host.get("/history").values())[-1]


def pictures_of(entry: dict) -> list[dict]:
    return [each for output in entry["outputs"].values() for each in output.get("images", ())]


def overlap(a: list[float], b: list[float]) -> bool:
    """Whether two boxes do, by more than a pixel's rounding."""
    return min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1


def is_inside(box: list[float], group: list[float]) -> bool:
    return all(a >= b - 1 for a, b in zip(box[:2], group[:2])) and all(a <= b + 1 for a, b in zip(box[2:], group[2:]))


def misplaced(page) -> list:
    """Pairs of nodes that overlap, and nodes that stick out of a group."""
    boxes = page.evaluate(BOXES)
    groups = page.evaluate(GROUPS)
    pairs = [(a, b) for a, b in combinations(boxes, 2) if overlap(a, b)]
    return pairs + [(a, g) for a in boxes for g in groups if overlap(a, g) and not is_inside(a, g)]


def linked_texts(workflow: dict) -> set[str]:
    """The names of inputs of our nodes whose text comes through a link."""
    inputs = [each for node in workflow["nodes"] if node["type"].startswith("SRPO_") for each in node["inputs"]]
    return {each["name"] for each in inputs if each["type"] == "STRING" and "widget" in each and each["link"]}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("mode", ["Nodes 2.0", "classic"])
def test_the_front_end_opens_each_workflow(site, mode, file):
    page = site.page(mode)
    workflow = read(file)
    load(page, workflow, "template")
    site.keep(page, f"{mode}, {file.stem}")
    assert page.evaluate("app.canvas.ds.scale") > TEXT_ZOOM
    assert page.evaluate("() => app.graph.nodes.filter(n => !LiteGraph.registered_node_types[n.type])") == []
    wrong = page.evaluate("() => app.graph.nodes.filter(n => n.has_errors).map(n => n.type)")
    assert set(wrong) <= LOADERS  # of files that are not here
    ours = to_prompt(workflow, site.host.object_info())
    assert graph_to_prompt(page) == {id_: (node["class_type"], node["inputs"]) for id_, node in ours.items()}
    assert {node["type"] for node in workflow["nodes"]} & set(NOTES)
    assert bool(page.locator("[data-node-id]").count()) == (mode == "Nodes 2.0")
    assert misplaced(page) == []
    if mode == "classic":
        assert linked_texts(workflow) <= set(page.evaluate(WRITTEN))
    heights = dict(page.evaluate("() => app.graph.nodes.map(node => [node.id, node.size[1]])"))
    saved = {str(node["id"]): node["size"][1] for node in workflow["nodes"]}
    assert {str(id_): height for id_, height in heights.items()} == saved
    assert page.complaints <= page.baseline


def open_templates(page):
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_role("dialog").get_by_text("ComfyUI-SRPO").first.click()


def test_the_templates_have_thumbnails(site):
    page = site.page("classic")
    open_templates(page)
    for file in FILES:
        card = page.get_by_test_id(f"template-workflow-{file.stem}")
        card.scroll_into_view_if_needed()  # its picture comes when it is looked at
        page.wait_for_function("image => image.naturalWidth > 0", arg=card.locator("img").first.element_handle())
    site.keep(page, "templates")
    page.get_by_test_id(f"template-workflow-{WORKFLOW_1.stem}").click()
    page.get_by_role("dialog").wait_for(state="detached")
    page.wait_for_function("() => app.graph.nodes.some(n => n.type === 'SRPO_Train')")
    page.wait_for_timeout(700)
    site.keep(page, "workflow 1 from its template")
    assert page.evaluate("app.canvas.ds.scale") > TEXT_ZOOM
    assert page.complaints <= page.baseline


def drag(page, source: tuple, target: tuple):
    """A link from an output (kind, name) to an input, by the mouse."""
    start, end = (page.evaluate(SLOT, [kind, is_input, name]) for is_input, (kind, name) in enumerate((source, target)))
    page.mouse.move(**start)
    page.mouse.down()
    page.mouse.move((start["x"] + end["x"]) / 2, (start["y"] + end["y"]) / 2, steps=5)
    page.mouse.move(**end, steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)


OPTIONS = {"SRPO_NoiseLevels": "levels", "SRPO_Watch": "watch", "SRPO_Previews": "previews"}


def test_options_are_connected_and_run(site):
    """By the mouse, and the others as an extension does; then Run, to the card and the result."""
    page = site.page("classic")
    load(page, read(WORKFLOW_1))
    make_small(page)
    nodes(page, "SRPO_Train", "node.disconnectInput(node.findInputSlot('rollouts'))")
    assert "rollouts" not in inputs_of(graph_to_prompt(page), "SRPO_Train")
    drag(page, ("SRPO_Rollouts", "rollouts"), ("SRPO_Train", "rollouts"))
    for kind, name in OPTIONS.items():
        page.evaluate("kind => app.graph.add(LiteGraph.createNode(kind)).pos = [0, 1500]", kind)
        nodes(page, kind, f"node.connect(0, app.graph.nodes.find(n => n.type === 'SRPO_Train'), '{name}')")
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    site.keep(page, "classic, workflow 1 after its run")
    entry = last_entry(site.host)
    prompt = {id_: (node["class_type"], node["inputs"]) for id_, node in entry["prompt"][2].items()}
    for name in ("rollouts", *OPTIONS.values()):
        assert name in inputs_of(prompt, "SRPO_Train")
    assert page.evaluate("window.progress") > 3
    page.wait_for_function("() => app.graph.nodes.find(n => n.type === 'LossGraphNode').imgs?.length")
    assert nodes(page, "PreviewImage", "node.imgs.length") == [8]
    assert nodes(page, "LossGraphNode", "node.imgs[0].naturalWidth > 0") == [True]
    assert sentence(page).startswith("3 updates in ") and "LoRA: loras/srpo/toy/" in sentence(page)
    last = next(each for each in pictures_of(entry) if site.host.picture(each).width == 960)
    assert np.abs(blocks(shown(page, "SRPO_Train")) - blocks(site.host.picture(last))).max() < 30  # not an earlier one
    assert page.complaints <= page.baseline


def drop(page, name: str, kind: str, content: bytes):
    page.evaluate("() => app.graph.clear()")
    page.evaluate(DROP, [name, kind, base64.b64encode(content).decode()])
    page.wait_for_function("() => app.graph.nodes.some(n => n.type === 'SRPO_Train')")
    page.wait_for_timeout(700)


def test_workflows_and_pictures_are_dragged_in(site):
    """A file of ours, and a PNG that the host wrote in the test before, with the workflow in it."""
    page = site.page("classic")
    drop(page, "ours.json", "application/json", WORKFLOW_1.read_bytes())
    assert inputs_of(graph_to_prompt(page), "SRPO_Train")["updates"] == 42
    saved = next(each for each in pictures_of(last_entry(site.host)) if each["filename"].endswith(".png"))
    address = "/view?" + "&".join(f"{key}={saved[key]}" for key in ("filename", "subfolder", "type"))
    drop(page, "saved.png", "image/png", site.host.file(address))
    inputs = inputs_of(graph_to_prompt(page), "SRPO_Train")
    assert inputs["updates"] == 3 and "levels" in inputs
    assert page.complaints <= page.baseline


def add_blueprint(page, name: str) -> int:
    """The id of the node that a blueprint became, found as people do: by a double click on the canvas."""
    page.keyboard.press("Escape")
    page.evaluate("app.graph.clear()")
    page.mouse.dblclick(900, 600)
    page.wait_for_function("document.activeElement.tagName === 'INPUT'")
    page.keyboard.type(name)
    page.get_by_text(name).last.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("name => app.graph.nodes.some(node => node.title === name)", arg=name)
    return page.evaluate("app.graph.nodes[0].id")


def add(page, kind: str, inputs: dict) -> int:
    """The id of a new node of this kind, its inputs linked to (id, output)."""
    id_ = page.evaluate("kind => app.graph.add(LiteGraph.createNode(kind)).id", kind)
    page.evaluate(CONNECT, [id_, inputs])
    return id_


def test_a_blueprint_trains_flux(site):
    page = site.page("classic")
    blueprint = add_blueprint(page, "Train FLUX with SRPO")
    toy = add(page, "SRPO_ToyModels", {})
    page.evaluate(CONNECT, [blueprint, {"model": [toy, 0], "clip": [toy, 1], "vae": [toy, 2], "reward": [toy, 3]}])
    small = {"run_name": "blueprint", "updates": 1, "width": 32, "height": 32, "batch": 1}
    page.evaluate(WRITE, [blueprint, small])
    add(page, "PreviewImage", {"images": [blueprint, 3]})
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    page.wait_for_function("() => app.graph.nodes.at(-1).imgs?.length === 8")  # four before, four after
    site.keep(page, "blueprint Train FLUX with SRPO")
    assert page.complaints <= page.baseline


def test_a_blueprint_makes_a_step(site):
    page = site.page("classic")
    blueprint = add_blueprint(page, "One SRPO step")
    toy = add(page, "SRPO_ToyModels", {})
    trainer = add(page, "SRPO_Trainer", {"model": [toy, 0]})
    text = add(page, "CLIPTextEncode", {"clip": [toy, 1]})
    noise = add(page, "RandomNoise", {})
    empty = add(page, "EmptySD3LatentImage", {})
    page.evaluate(WRITE, [trainer, {"run_name": "blueprint step"}])
    page.evaluate(WRITE, [empty, {"width": 64, "height": 64}])
    page.evaluate(WRITE, [blueprint, {"prompt": "a red circle on grass"}])
    models = {"model": [trainer, 1], "trainer": [trainer, 0], "vae": [toy, 2], "reward": [toy, 3]}
    page.evaluate(CONNECT, [blueprint, models | {"conditioning": [text, 0], "noise": [noise, 0], "latent": [empty, 0]}])
    add(page, "PreviewAny", {"source": [blueprint, 1]})
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    site.keep(page, "blueprint One SRPO step")
    assert json.loads((site.base / "output/srpo/blueprint step/run.json").read_text())["updates"] == 1


def test_cancel_says_what_is_kept_and_a_restart_goes_on(site):
    page = site.page("classic")
    load(page, read(WORKFLOW_1))
    make_small(page, updates=300)
    press_run(page)
    said = "app.graph.nodes.find(n => n.type === 'SRPO_Train').widgets.find(w => w.type === 'progressText')?.value"
    page.wait_for_function(f"() => /Update \\d+ \\([2-9] of 300\\)/.test({said})", timeout=120_000)
    site.keep(page, "classic, workflow 1 while it runs")
    page.get_by_role("button", name=re.compile("cancel current", re.IGNORECASE)).first.click()
    assert wait_for_end(page) == "execution_interrupted"
    site.keep(page, "classic, workflow 1 after Cancel")
    stopped = re.search(r"Stopped\. The run srpo/toy is kept up to update (\d+); LoRA: .*", site.host.log)
    kept = int(stopped[1])
    assert kept >= 2
    assert page.evaluate(said) in (stopped[0], None)  # newer front ends take it away
    for _ in range(20):  # the front end fetches the last picture in its own time
        if not ends_in_text(shown(page, "SRPO_Train")):
            page.wait_for_timeout(500)
    assert ends_in_text(shown(page, "SRPO_Train"))
    site.restart()
    page = site.page("Chinese")
    load(page, read(WORKFLOW_1))
    make_small(page, updates=1)
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    site.keep(page, "Nodes 2.0, Chinese, workflow 1 after its run")
    assert misplaced(page) == []
    (train,) = nodes(page, "SRPO_Train", "node.id")
    assert page.locator(f'[data-node-id="{train}"] img').count() == 1
    assert page.evaluate(CARD, train) > 0.7
    done, total = SAID_IN_CHINESE.search(sentence(page)).groups()
    assert (int(done), int(total)) == (1, kept + 1)
    assert page.complaints <= page.baseline


@pytest.mark.parametrize("file", TWINS, ids=lambda file: file.stem.partition(" ")[0])
def test_nodes_are_chinese_where_the_front_end_is(site, file):
    page = site.page("Chinese")
    load(page, read(file), "template")
    site.keep(page, f"Chinese, workflow {file.stem.partition(' ')[0]}")
    assert page.evaluate("app.canvas.ds.scale") > TEXT_ZOOM
    assert misplaced(page) == []
    names = read(ROOT / "locales/zh/nodeDefs.json")
    found = page.evaluate(
        """() => app.graph.nodes.filter(node => node.type.startsWith('SRPO_')).map(node => ({
            kind: node.type, title: node.getTitle(), inputs: Object.fromEntries(
                node.inputs.map(slot => [slot.name, slot.label || slot.localized_name || slot.name])) }))"""
    )
    assert len(found) > 2
    for node in found:
        translated = names[node["kind"]]
        assert node["title"] == translated["display_name"]
        named = {name: label for name, label in node["inputs"].items() if not name.startswith(GROWING)}
        assert named == {name: translated["inputs"][name.replace(".", "_")]["name"] for name in named}
    assert page.complaints <= page.baseline


def test_every_input_and_node_explains_itself(site):
    ours = {id_: node for id_, node in site.host.object_info().items() if id_.startswith("SRPO_")}
    assert ours
    for id_, node in ours.items():
        assert node["description"] and node["display_name"] != id_ and node["category"].endswith("/SRPO")
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert not [name for name, (_, *options) in inputs.items() if not (options and options[0].get("tooltip"))], id_


def import_seconds(host):
    """What the host says that the pack's import took."""
    seconds, failed = re.search(rf"([\d.]+) seconds(.*): .*{host.pack.name}", host.log).groups()
    assert not failed
    return float(seconds)


def test_the_pack_imports_quickly(site, comfyui, tmp_path):
    """In the quickest of a few starts, each of a new copy: another process may slow down any one of them."""
    seconds = import_seconds(site.host)
    for number in range(3):
        if seconds > 0.3:
            with HostServer(comfyui, tmp_path / str(number)) as again:
                seconds = min(seconds, import_seconds(again))
    assert seconds <= 0.3
