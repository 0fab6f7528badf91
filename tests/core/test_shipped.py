"""The Comfy Registry's archive: it has all that it needs, and says of itself what a scan of strings would ask."""

import ast
import os
import re
import shutil
import subprocess
from functools import partial
from itertools import product
from pathlib import PurePosixPath

import pytest
from find_host import ROOT
from shipped import shipped

FILES = sorted(shipped())
WRITTEN = (".py", ".md", ".json", ".toml", ".txt")
TEXTS = {path: (ROOT / path).read_text("utf-8") for path in FILES if path.endswith(WRITTEN)}
SECURITY = (ROOT / "docs/security.md").read_text("utf-8")

# What rules of scanners match, told by people whose versions were flagged: literals, in code, comments and prose alike.
SUSPECT = re.compile(
    r"os\.environ|os\.(?:get|put|unset)env|\bgetenv\b"  # the environment
    r"|urllib\.request|urlopen|urlretrieve|http\.client|\brequests\.|\bhttpx\b|\baiohttp\b|\bsocket\."  # the network
    r"|\.(?:connect|bind|listen|sendall|recv)\s*\(|\bwebsocket"
    r"|hf_hub_download|snapshot_download|download_url_to_file|load_state_dict_from_url|from_pretrained"  # downloads
    r"|(?<![\w.])(?:eval|exec|compile)\s*\(|\.eval\s*\(|__import__|importlib|runpy|exec_module|sys\.modules"  # code
    r"|[gs]etattr\s*\(\s*(?:__import__|importlib|builtins|os|sys)\b"
    r"|\bsubprocess\b|os\.(?:system|popen|exec\w*|spawn\w*|startfile)|shell=True|pip install|pip\.main|ctypes"
    r"|\bpickle\w*\.|import pickle\w*|torch\.load|torch\.hub|\bmarshal\b|yaml\.load|joblib|weights_only=False"
    r"|base64|zlib|\b(?:sudo|doas|pkexec|runas)\b|gettempdir|raw\.githubusercontent\.com|trust_remote_code"
)


def suspects() -> set[tuple[str, str]]:
    """Each file with each such string in it, as they are written."""
    return {(path, found) for path, text in TEXTS.items() for found in SUSPECT.findall(text)}


def explained() -> set[tuple[str, str]]:
    """What the table of docs/security.md names: each file of a row with each string of it."""
    found = set()
    for files, strings, why in re.findall(r"^\| (`.+?) \| (`.+?) \| (.+) \|$", SECURITY, re.MULTILINE):
        assert why.strip()
        found |= set(product(re.findall("`([^`]+)`", files), re.findall("`([^`]+)`", strings)))
    return found


def test_every_string_that_a_scan_may_ask_about_is_explained():
    assert suspects() == explained()


def test_the_patterns_see_what_was_flagged():
    lines = (
        "os.environ.get('X')",
        "x = os.getenv('X')",
        "importlib.import_module(name)",
        "with urllib.request.urlopen(url)",
        "aiohttp.ClientSession()",
        "probe.connect (address)",
        "subprocess.run(['x'])",
        "__import__('json')",
        "pickle.load(file)",
        "eval(text)",
        "getattr(os, name)",
    )
    assert [line for line in lines if not SUSPECT.search(line)] == []


def imports(path: str) -> set[str]:
    """The modules of the pack that a shipped one imports, as paths without an ending."""
    found = set()
    for node in ast.walk(ast.parse(TEXTS[path])):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = PurePosixPath(path).parents[node.level - 1]
            module = folder.joinpath(*(node.module or "").split("."))
            below = {str(module / name.name) for name in node.names}
            found |= {each for each in below if (ROOT / f"{each}.py").is_file() or (ROOT / each).is_dir()}
            found.add(str(module))
    return found - {"."}


def test_no_shipped_module_imports_one_that_is_not():
    there = {path.removesuffix(".py").removesuffix("/__init__") for path in FILES if path.endswith(".py")}
    modules = [path for path in TEXTS if path.endswith(".py")]
    assert {(path, each) for path in modules for each in imports(path) if each not in there} == set()


def test_the_publisher_is_told_every_file_by_its_name(tmp_path):
    """comfy-cli reads `git ls-files` line by line and leaves out what is not found."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    own = os.environ | {"GIT_CONFIG_GLOBAL": str(tmp_path / "config")}
    git = partial(subprocess.run, cwd=tmp_path, env=own, check=True, capture_output=True)
    workflow = (ROOT / ".github/workflows/publish.yml").read_text("utf-8")
    for command in ("git init", *re.findall(r"- run: (git .+)", workflow)):
        git(command.split())
    for path in FILES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    git(["git", "add", "--", *FILES])
    assert git(["git", "ls-files"]).stdout.decode("utf-8").splitlines() == sorted(FILES, key=str.encode)


def test_links_of_shipped_pages_lead_to_what_is_shipped():
    broken = []
    for path, text in TEXTS.items():
        if path.endswith(".md"):
            targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r"(?:src|href)=\"([^\"#]+)", text)
            local = [target for target in targets if "://" not in target]
            # The front end shows a help page as if it lay in web/docs itself.
            folder = "web/docs" if path.startswith("web/docs/") else PurePosixPath(path).parent
            broken += [(path, target) for target in local if str(PurePosixPath(folder) / target) not in FILES]
    assert broken == []


@pytest.fixture
def project() -> dict:
    """What pyproject.toml says; before Python 3.11 nothing in the library reads it."""
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_lists_of_requirements_agree(project):
    assert project["project"]["dependencies"] == (ROOT / "requirements.txt").read_text().split()


def test_the_registrys_name_and_pictures(project):
    """The name can't be changed once published, and the Registry takes none with "ComfyUI" in it."""
    name = project["project"]["name"]
    assert re.fullmatch("[a-z][a-z0-9-]{0,99}", name) and "comfyui" not in name
    for key in ("Icon", "Banner"):
        address, _, path = project["tool"]["comfy"][key].partition("/raw/main/")
        assert address == project["project"]["urls"]["Repository"] and (ROOT / path).is_file()


def test_the_version_is_the_same_wherever_it_stands(project):
    from make_workflows import VERSION

    version = project["project"]["version"]
    assert version == VERSION
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_numbers_of_the_readme_are_in_the_results():
    """Seconds, minutes, and what fills a card: each was measured or counted, and `bench/RESULTS.md` says how."""
    readme = (ROOT / "README.md").read_text("utf-8")
    found = (ROOT / "bench/RESULTS.md").read_text("utf-8")
    rows = re.sub(r"^\| [\d, GB]+(?: and more)? \|", "|", readme, flags=re.MULTILINE)  # sizes of cards
    told = re.findall(r"(\d+(?:\.\d+)?) (?:s|minutes|GB)\b", rows)
    numbers = re.findall(r"\d+(?:\.\d+)?", found)
    assert len(told) >= 12
    assert [number for number in told if not any(_rounds_to(each, number) for each in numbers)] == []
    table = re.findall(
        r"^\| (?:realism|caption met|saturation|words-gap|judged a photo) \| (.+?) \| (.+?) \|$", readme, re.MULTILINE
    )
    assert len(table) == 5
    rows = [row for row in found.splitlines() if row.startswith(("| (before)", "| full: "))]
    assert [n for pair in table for n, row in zip(pair, rows, strict=True) if f" {n} |" not in row] == []


def _rounds_to(exact: str, number: str) -> bool:
    return f"{float(exact):.{len(number.partition('.')[2])}f}" == number
