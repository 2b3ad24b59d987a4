"""What holds for the source as a whole: which room may know which, what is never done, and that the maps of the house are true.

The code is read, not run (except for what importing brings along), so a broken rule is named with its file and line.
"""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "latentsync"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = ("media", "face", "speech", "models")
GROUND = {"errors", "config", "device", "whole"}  # what every room may know
STOREYS = (
    "__main__",
    "cli",
    "cli_train",
    "cli_evaluate",
    "cli_prepare",
    "cli_app",
    "cli_serve",
    "doctor",
    "app",
    "serve",
    "jobs",
    "evaluate",
    "prepare",
    "train",
    "metrics",
    "demonstrate",
    "pipeline",
    "score",
    "reference",
    "loading",
    "preflight",
)  # from the roof down; each may know those after it, and none before
HEAVY = {"torch", "transformers", "diffusers", "av", "cv2", "numpy", "safetensors", "httpx", "rich", "yaml", "PIL", "scipy"}
LIGHT = ("__init__", "cli", "options", "config", "errors", "hub", "weights", "doctor", "stages")  # no heavy module when these are imported


def name(path: Path) -> str:
    """Path below src/latentsync, for messages."""
    return path.relative_to(SOURCE).as_posix()


def module(path: Path) -> str:
    """face.track for src/latentsync/face/track.py, '' for the package itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(f) for f in FILES} - {""}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path, *, whole: bool = True) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of what a file imports: with `whole` also inside functions, without it only what importing the file imports."""
    package = ["latentsync", *path.relative_to(SOURCE).parts[:-1]]

    def visit(node: ast.AST) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{start}.{alias.name}"
                yield (inner if inner.removeprefix("latentsync.") in MODULES else start), node.lineno
        elif whole or not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types_only(node)):
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    return visit(tree(path))


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def own(path: Path, *, whole: bool = True) -> Iterator[tuple[str, int]]:
    """(module below latentsync, line) of what a file imports from this package: ('face.track', 12)."""
    for dotted, line in imports(path, whole=whole):
        rest = dotted.removeprefix("latentsync.")
        if rest != dotted and rest in MODULES:
            yield rest, line


def test_there_is_something_to_read():
    assert len(FILES) > 30
    assert {p.parent.name for p in FILES} >= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_know_themselves_and_the_ground_only(room):
    wrong = [
        f"{name(path)}:{line} imports {target}"
        for path in FILES
        if path.parent.name == room
        for target, line in own(path)
        if target.split(".")[0] != room and target not in GROUND
    ]
    assert wrong == []


def test_nothing_imports_what_stands_above_it():
    def storey(target: str) -> str:
        return target.split(".")[0]

    def rank(target: str) -> int:
        return STOREYS.index(storey(target)) if storey(target) in STOREYS else len(STOREYS)

    wrong = [
        f"{name(path)}:{line} imports {target}"
        for path in FILES
        for target, line in own(path)
        if storey(target) in STOREYS and module(path) and storey(module(path)) != storey(target) and rank(module(path)) >= rank(target)
    ]
    assert wrong == []


def test_no_circle_among_files():
    graph = {module(p): {t for t, _ in own(p, whole=False) if t != module(p)} for p in FILES}
    state: dict[str, int] = {}

    def walk(node: str, way: list[str]) -> None:
        assert state.get(node) != 1, "circle: " + " -> ".join([*way[way.index(node) :], node])
        if state.get(node):
            return
        state[node] = 1
        for target in sorted(graph.get(node, ())):
            walk(target, [*way, node])
        state[node] = 2

    for start in graph:
        if start:
            walk(start, [])


@pytest.mark.parametrize("light", LIGHT)
def test_light_modules_import_nothing_heavy(light):
    target = "latentsync" if light == "__init__" else f"latentsync.{light}"
    code = f"import sys, {target}; print(' '.join(sorted({HEAVY!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def calls() -> Iterator[tuple[Path, ast.Call]]:
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                yield path, node


def test_no_shell_and_no_other_programs():
    wrong = []
    for path in FILES:
        wrong += [
            f"{name(path)}:{line} imports {dotted}" for dotted, line in imports(path) if dotted.split(".")[0] in ("subprocess", "pty", "commands")
        ]
    for path, node in calls():
        text = ast.unparse(node.func)
        if re.fullmatch(r"os\.(system|popen|exec\w*|spawn\w*)", text) or any(k.arg == "shell" for k in node.keywords):
            wrong.append(f"{name(path)}:{node.lineno} {text}")
    assert wrong == []


def test_nothing_prints():
    """The command speaks through typer.echo; the library never does."""
    wrong = []
    for path, node in calls():
        text = ast.unparse(node.func)
        echoes = text == "typer.echo" and module(path) not in ("cli", "cli_train", "cli_prepare", "cli_evaluate", "cli_app", "cli_serve")
        if text in ("print", "pprint", "sys.stdout.write", "sys.stderr.write") or echoes:
            wrong.append(f"{name(path)}:{node.lineno} {text}")
    assert wrong == []


def test_devices_are_named_in_one_place():
    """No 'cuda' or 'mps' in the code but in device.py, in what the doctor shows of the machine, and in help texts and messages of several words."""
    wrong = []
    for path in FILES:
        if module(path) in ("device", "doctor"):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"(cuda|mps)(:\d+)?", node.value):
                wrong.append(f"{name(path)}:{node.lineno} '{node.value}'")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.cuda", "torch.backends.mps", "torch.mps"):
                wrong.append(f"{name(path)}:{node.lineno} {ast.unparse(node)}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                wrong.append(f"{name(path)}:{node.lineno} .cuda()")
    assert wrong == []


def test_errors_are_neither_swallowed_nor_bare():
    """`except Exception` only where the command ends; `except BaseException` only where it is raised again or carried to another thread."""
    wrong = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type else "everything"
            raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
            if caught == "everything" or (caught == "Exception" and module(path) != "cli"):
                wrong.append(f"{name(path)}:{node.lineno} catches {caught}")
            if caught == "BaseException" and not raises and module(path) != "stages":
                wrong.append(f"{name(path)}:{node.lineno} catches {caught} and does not raise it again")
    assert wrong == []


def test_weights_are_read_without_running_code_and_strictly():
    wrong = []
    for path, node in calls():
        text, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if text == "torch.load" and given.get("weights_only") != "True":
            wrong.append(f"{name(path)}:{node.lineno} torch.load without weights_only=True")
        if given.get("strict") == "False" and text.endswith("load_state_dict"):
            wrong.append(f"{name(path)}:{node.lineno} {text}(strict=False)")
        if text in ("pickle.load", "pickle.loads", "eval", "exec", "yaml.load") or given.get("allow_pickle") == "True":
            wrong.append(f"{name(path)}:{node.lineno} {text}")
    assert wrong == []


def test_every_module_says_what_it_is_for():
    mute = [name(p) for p in FILES if p.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree(p))]
    assert mute == []


def test_public_names_say_what_they_are():
    """Every public class, and every public function that is not a few lines of plumbing, has a docstring."""
    mute = []
    for path in FILES:
        for node in tree(path).body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            few = isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno < 8
            if public and not few and not ast.get_docstring(node):
                mute += [f"{name(path)}:{node.lineno} {node.name}"]
    assert mute == []


def test_the_readme_tree_names_what_is_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"^```\w*\n(.*?)^```", readme, re.S | re.M) if "src/latentsync/" in b)
    named: set[str] = set()
    folder = ""
    for line in block.splitlines():
        if not line.strip():
            continue
        words = list(itertools.takewhile(lambda w: re.fullmatch(r"[\w./-]+(/|\.\w+)", w), line.split()))
        if not line.startswith(" "):
            folder = words[0] if words[0].startswith("src/") else ""
        for word in words:
            path = ROOT / (folder if line.startswith(" ") else "") / word
            assert path.exists(), f"README.md names {word}, which is not there"
            named.add(path.resolve().relative_to(ROOT).as_posix())
    there = {p.relative_to(ROOT).as_posix() for p in SOURCE.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name != "__pycache__")}
    missing = {p for p in there - named if not p.endswith(("__init__.py", "__main__.py"))}
    assert missing == set(), "README.md's tree leaves these out"


def test_no_place_of_one_machine_is_named():
    """Nothing of the repository depends on where somebody had it checked out."""
    wrong = []
    for path in [*FILES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", *sorted((ROOT / "bench").rglob("*.*"))]:
        if path.suffix in (".py", ".md", ".sh"):
            text = path.read_text(encoding="utf-8")
            wrong += [f"{path.relative_to(ROOT)}: {found}" for found in re.findall(r"(?<![\w.])/(?:home|Users|root|work)/\w+", text)]
    assert wrong == []
