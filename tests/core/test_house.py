"""The order of the house, as CONTRIBUTING.md draws it: who imports whom, how long things are, how they are called."""

import ast
import re
import statistics
from functools import cache

from find_host import ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SHIPPED = ("srpo_core", "nodes")
TOOLS = ("harness", "bench", "demo")
# What a node may use of the host outside nodes/host: its node API, its folders, its sampler names, bars and Cancel,
# and the types of what comes in.
FOR_NODES = {
    "comfy_api.latest",
    "comfy_execution.utils",
    "comfy_extras.nodes_custom_sampler.Noise_RandomNoise",
    "comfy.model_management",
    "comfy.model_patcher.ModelPatcher",
    "comfy.samplers",
    "comfy.sd.CLIP",
    "comfy.sd.VAE",
    "comfy.utils",
    "folder_paths",
}
# What is imported as ComfyUI starts: every host has it. What one may lack is imported where a node needs it, so that a
# node says so and the others work.
AT_START = ("comfy_api.latest", "comfy_execution.utils", "comfy.cli_args", "comfy.model_management", "comfy.samplers")
AT_START += ("comfy.utils", "folder_paths", "server.PromptServer")
OF_THE_HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "node_helpers", "server")
MOST_POSITIONAL = 4
# Of a sheet that is drawn on: places, sizes and colours in the order of every drawing library.
DRAWING = ("text", "box")
HOME_MADE = ("said", "handed", "kinds", "parked", "schedule", "Seen", "Listed", "Schedule")


@cache
def trees(*folders: str) -> dict[str, ast.Module]:
    """The modules in these folders, by path from the root."""
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text("utf-8")) for file in files}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def absolute(path: str, node: ast.ImportFrom) -> str:
    """The module that a `from` names, seen from the root."""
    if not node.level:
        return node.module
    package = path.split("/")[: -node.level]
    return ".".join([*package, *filter(None, [node.module])])


def imported(path: str, tree: ast.Module) -> set[str]:
    """Every name that is imported anywhere in it, with its module: `srpo_core.run.run.Run`, `torch`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{absolute(path, node)}.{name.name}" for name in node.names}
    return found


@cache
def links() -> dict[str, set[str]]:
    """The project's modules that each of them imports."""
    all_trees = trees(*SHIPPED, *TOOLS, "tests")
    modules = {module_of(path) for path in all_trees}
    by_stem = {name.rsplit(".", 1)[-1]: name for name in modules if name.startswith(("harness", "tests", "demo"))}
    found = {}
    for path, tree in all_trees.items():
        names = imported(path, tree)
        names |= {by_stem[name.split(".")[0]] + "." for name in names if name.split(".")[0] in by_stem}
        owned = (max((m for m in modules if f"{name}.".startswith(f"{m}.")), key=len, default=None) for name in names)
        found[module_of(path)] = {name for name in owned if name and name != module_of(path)}
    return found


def wing_of(module: str) -> str:
    """The wing that the drawing has a row for."""
    parts = module.split(".")
    if parts[0] == "srpo_core":
        is_folder = (ROOT / "srpo_core" / parts[1]).is_dir() if len(parts) > 1 else False
        return f"srpo_core/{parts[1]}" if is_folder else "srpo_core/*.py"
    if parts[:2] == ["nodes", "host"]:
        is_folder = (ROOT / "nodes/host" / parts[2]).is_dir() if len(parts) > 2 else False
        return f"nodes/host/{parts[2]}" if is_folder else "nodes/host/*.py"
    return "nodes/*.py" if parts[0] == "nodes" else parts[0]


def wings() -> dict[str, set[str]]:
    """What each wing imports of the others."""
    found = {}
    for module, targets in links().items():
        wing = wing_of(module)
        found.setdefault(wing, set()).update(wing_of(target) for target in targets if wing_of(target) != wing)
    return found


def drawn() -> dict[str, set[str]]:
    """The rows of the drawing, from top to bottom: a wing, and after the arrow what it imports."""
    picture = re.search(r"```text\n(.+?)```", CONTRIBUTING, re.DOTALL)[1]
    rows = re.findall(r"^(\S+) +(.*?) *-> *(.*)$", picture, re.MULTILINE)
    return {wing: set(targets.replace(",", " ").split()) - {"-"} for wing, _, targets in rows}


def short(wing: str) -> str:
    """As the drawing calls a wing that is imported."""
    return wing if wing == "srpo_core/*.py" else wing.removeprefix("srpo_core/").removeprefix("nodes/")


def test_the_drawing_is_what_the_code_imports():
    assert drawn() == {wing: set(map(short, targets)) for wing, targets in wings().items()}


def test_imports_run_one_way_down_the_drawing():
    above = []
    for wing, targets in drawn().items():
        above.append(short(wing))
        assert targets.isdisjoint(above), f"{wing} imports what stands above it"


def circle(module: str, path: tuple[str, ...], done: set[str]) -> tuple[str, ...]:
    """The first way from `module` back to itself, or nothing."""
    if module in path:
        return (*path[path.index(module) :], module)
    if module not in done:
        for target in sorted(links()[module]):
            if found := circle(target, (*path, module), done):
                return found
        done.add(module)
    return ()


def test_no_modules_of_the_pack_import_each_other():
    done = set()
    shipped = sorted(module for module in links() if module.split(".")[0] in SHIPPED)
    assert [found for module in shipped if (found := circle(module, (), done))] == []


def of_the_host(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in OF_THE_HOST}


def test_the_core_knows_no_host():
    known = {path: of_the_host(imported(path, tree)) for path, tree in trees("srpo_core").items()}
    assert {path: names for path, names in known.items() if names} == {}


def test_the_hosts_internals_are_known_in_one_place():
    inside = {path: imported(path, tree) for path, tree in trees("nodes").items() if "/host/" not in path}
    found = {
        path: sorted(
            name for name in of_the_host(names) if not f"{name}.".startswith(tuple(f"{m}." for m in FOR_NODES))
        )
        for path, names in inside.items()
    }
    assert {path: names for path, names in found.items() if names} == {}


def at_start() -> dict[str, set[str]]:
    """What the modules import that ComfyUI loads with the pack, but for what functions and types import."""
    statements = {
        path: [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        for path, tree in trees(*SHIPPED).items()
    }
    names = {module_of(path): imported(path, ast.Module(body, [])) for path, body in statements.items()}
    loaded = {"nodes"}
    while more := {name for name in names if name not in loaded and any(is_in(name, names[by]) for by in loaded)}:
        loaded |= more
    return {module: names[module] for module in loaded}


def is_in(module: str, names: set[str]) -> bool:
    """Whether one of these names is this module, or something in it."""
    return any(name == module or name.rpartition(".")[0] == module for name in names)


def test_what_a_host_may_lack_is_imported_where_it_is_used():
    assert len(at_start()) > 40
    found = {
        module: {name for name in of_the_host(names) if not f"{name}.".startswith(tuple(f"{m}." for m in AT_START))}
        for module, names in at_start().items()
    }
    assert {module: names for module, names in found.items() if names} == {}


def test_every_node_says_what_its_host_lacks():
    """By one of these two around its `execute`."""
    executes = {name: f for name, f in functions("nodes").items() if f.name == "execute"}
    decorated = {name: {ast.unparse(by) for by in f.decorator_list} for name, f in executes.items()}
    assert len(decorated) == sum(f.name == "define_schema" for f in functions("nodes").values())
    assert [name for name, by in decorated.items() if not by & {"checked", "host_checked"}] == []


def functions(*folders: str) -> dict[str, ast.FunctionDef]:
    return {
        f"{path}:{node.lineno} {node.name}": node
        for path, tree in trees(*folders).items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def length(function: ast.FunctionDef) -> int:
    """Its lines without its docstring."""
    documented = ast.get_docstring(function) is not None
    docstring = function.body[0].end_lineno - function.body[0].lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_functions_are_short():
    lengths = {name: length(f) for name, f in functions(*SHIPPED).items() if f.name != "define_schema"}
    tools = {name: length(f) for name, f in functions(*TOOLS).items()}
    assert statistics.median(lengths.values()) <= 8
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 20
    assert {name: lines for name, lines in (lengths | tools).items() if lines > 60} == {}


def test_files_are_short():
    lines = {path: (ROOT / path).read_text("utf-8").count("\n") for path in trees(*SHIPPED, *TOOLS)}
    assert {path: count for path, count in lines.items() if count > 300} == {}


def names_in(node: ast.AST) -> set[str]:
    return {ast.unparse(part) for part in ast.walk(node) if isinstance(part, (ast.Name, ast.Attribute, ast.Subscript))}


def packed(node: ast.AST) -> bool:
    """Whether an assignment is several in one line.

    One thing are an exchange, which reads what it sets, and what is made, named and put in its place at once.
    """
    if not isinstance(node, ast.Assign):
        return False
    if len(node.targets) > 1:
        return sorted(type(target).__name__ for target in node.targets) != ["Name", "Subscript"]
    target = node.targets[0]
    values = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
    all_tuples = all(isinstance(value, (ast.Tuple, ast.List)) for value in [target, *values])
    return all_tuples and names_in(target).isdisjoint(names_in(node.value))


def test_one_statement_a_line():
    everywhere = trees(*SHIPPED, *TOOLS, "tests").items()
    found = [f"{path}:{node.lineno}" for path, tree in everywhere for node in ast.walk(tree) if packed(node)]
    assert found == []


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def everything(*folders: str) -> list[ast.AST]:
    return [node for tree in trees(*folders).values() for node in ast.walk(tree)]


def defined() -> set[str]:
    """Names of the project's functions and classes; a library's of the same name are not told apart."""
    shipped = trees(*SHIPPED, *TOOLS).values()
    return {node.name for tree in shipped for node in ast.walk(tree) if isinstance(node, DEFINITIONS)}


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_no_call_has_more_than_four_positional_arguments():
    ours = defined() - set(DRAWING)
    found = [
        f"{path}:{node.lineno} {called(node)}"
        for path, tree in trees(*SHIPPED, *TOOLS).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and len(node.args) > MOST_POSITIONAL and called(node) in ours
    ]
    assert found == []


def names_given(node: ast.AST) -> list[str]:
    """What a definition, a parameter or an assignment calls something, without the underscore of what is private."""
    if isinstance(node, DEFINITIONS):
        return [node.name.strip("_")]
    if isinstance(node, ast.arg):
        return [node.arg.strip("_")]
    return [node.id.strip("_")] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []


def identifiers() -> dict[str, str]:
    """Names that the project gives, each with a file that does."""
    shipped = trees(*SHIPPED, *TOOLS).items()
    return {name: path for path, tree in shipped for node in ast.walk(tree) for name in names_given(node)}


def vocabulary() -> list[str]:
    table = CONTRIBUTING.split("## Vocabulary")[1]
    return re.findall(r"^\| (\w+) \|", table, re.MULTILINE)[1:]


def test_the_vocabulary_is_used():
    used = {part for name in identifiers() for part in re.findall(r"[A-Z]?[a-z0-9]+", name)}
    used = {part.lower() for part in used}
    assert len(vocabulary()) == 30
    assert [word for word in vocabulary() if word not in used and f"{word}s" not in used] == []


def test_no_word_is_home_made():
    assert {name: path for name, path in identifiers().items() if name in HOME_MADE} == {}


def test_the_guide_names_files_that_there_are():
    named = re.findall(r"`([\w./-]+\.(?:py|md|json|yaml|toml))`", CONTRIBUTING)
    folders = (ROOT, *(path for path in ROOT.rglob("*") if path.is_dir() and ".venv" not in path.parts))
    assert [name for name in named if not any((folder / name).is_file() for folder in folders)] == []


def top_names(tree: ast.Module) -> set[str]:
    """What a module has by name: what it defines, assigns or imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def asked_by_name(tree: ast.Module) -> set[tuple[str, str]]:
    """Modules of the pack that are asked for by a text, and what of them: no import would miss that."""
    return {
        (node.value.args[0].value, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Call)
        and called(node.value) in ("pack", "pack_module")
        and node.value.args
        and isinstance(node.value.args[0], ast.Constant)
    }


def test_what_is_asked_of_the_pack_by_name_is_there():
    modules = {module_of(path): top_names(tree) for path, tree in trees(*SHIPPED).items()}
    asked = {pair for tree in trees(*TOOLS, "tests").values() for pair in asked_by_name(tree)}
    missing = [f"{module}.{name}" for module, name in sorted(asked) if name not in modules.get(module, {name})]
    assert len(asked) > 50 and missing == []
