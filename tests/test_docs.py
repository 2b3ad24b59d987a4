"""The documentation is true where a program can tell: links lead somewhere, options exist, code compiles, the benchmark page is not stale."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import typer

from latentsync import cli, errors
from latentsync.media import encoding
from latentsync.options import Options

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
IDS = [p.relative_to(ROOT).as_posix() for p in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The names under which the headings of a page can be linked, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.M):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(read(page))):
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or ROOT not in file.parents:
            wrong.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(read(file)):
            wrong.append(f"{target}: no such heading")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_are_named_exist(page):
    named = set(re.findall(r"`((?:src|docs|tests|tools|bench|runs)/[\w./-]+\.\w+)`", read(page)))
    named |= set(re.findall(r"(?:python|bash) ((?:bench|tools|runs)/[\w/]+\.\w+)", read(page)))
    made_later = {"bench/results/gpu.md"}  # by a machine with a GPU
    assert {n for n in named if not (ROOT / n).exists()} - made_later == set()


def commands() -> dict[tuple[str, ...], set[str]]:
    """('sync',) -> its options; ('models', 'list') -> ..."""
    found: dict[tuple[str, ...], set[str]] = {}

    def visit(command: object, words: tuple[str, ...]) -> None:
        found[words] = {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")} | {"--help"}  # type: ignore[attr-defined]
        for name, inner in getattr(command, "commands", {}).items():
            visit(inner, (*words, name))
        if hasattr(command, "default_command"):  # its options may follow the group's name
            found[words] |= found[(*words, command.default_command)]

    visit(typer.main.get_command(cli.app), ())
    return found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_in_blocks_exist_with_their_options(page):
    known = commands()
    wrong = []
    for _, block in FENCE.findall(read(page)):
        for line in re.findall(r"^latentsync (?!:)(.+?)(?:\s+#.*|\s{3,}.*)?$", block.replace("\\\n", " "), re.M):
            words = line.split()
            path = tuple(words[:2]) if tuple(words[:2]) in known else tuple(words[:1]) if tuple(words[:1]) in known else ()
            if line.startswith("latentsync:") or (not path and not words[0].startswith("-")):
                wrong.append(f"{line}: no such command")
                continue
            options = options_among(words[len(path) :])
            wrong += [f"{line}: no option {o}" for o in options if o.split("=")[0] not in known[path]]
    assert wrong == []


def options_among(words: list[str]) -> list[str]:
    """The options among the words of a command, up to `--`."""
    end = words.index("--") if "--" in words else len(words)
    return [w for w in words[:end] if re.match(r"--?[a-z]", w)]


@pytest.mark.parametrize("name", ["use.md", "how-it-works.md", "weights.md", "faces.md"])
def test_options_in_the_text_exist(name):
    known = set().union(*commands().values())
    others = {"--every", "--seconds", "--assemble", "--only", "--out", "--limit", "--long", "--find", "--network"}  # of the benchmarks
    used = set(re.findall(r"`(--[a-z][a-z-]*)", read(ROOT / "docs" / name)))
    assert used - known - others == set()


def test_the_guide_to_use_mentions_every_option_of_sync():
    text = read(ROOT / "docs" / "use.md")
    missing = {o for o in commands()[("sync",)] if o.startswith("--") and not re.search(rf"{o}\b", text)} - {"--help", "--out"}
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_in_blocks_compiles_and_imports_what_exists(page):
    import importlib

    for language, block in FENCE.findall(read(page)):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block, filename=str(page))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "latentsync":
                for alias in node.names:
                    module = importlib.import_module(node.module)
                    assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), alias.name


def test_settings_in_python_examples_are_options():
    known = {*Options.__dataclass_fields__, "segments", "overwrite", "points", "progress"}
    wrong = set()
    for page in PAGES:
        for language, block in FENCE.findall(read(page)):
            if language == "python":
                for node in ast.walk(ast.parse(block)):
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("sync", "stream"):
                        wrong |= {k.arg for k in node.keywords} - known
    assert wrong == set()


def test_json_examples_are_json():
    import json

    for page in PAGES:
        for language, block in FENCE.findall(read(page)):
            if language == "json":
                json.loads(block)


def test_json_fields_are_those_of_a_result():
    from latentsync.pipeline import Result

    fields = set(Result(out=Path("o.mp4"), model="m", seed=1).plain())
    text = read(ROOT / "docs" / "use.md")
    missing = {f for f in fields if f"`{f}`" not in text}
    assert missing == set()


def test_exit_codes_in_the_guide_are_the_codes():
    text = read(ROOT / "docs" / "use.md")
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.LatentSyncError):
            assert re.search(rf"^\| {kind.exit_code} \| `{name}` \|", text, re.M), name


def test_the_table_of_containers_is_that_of_the_writer():
    text = read(ROOT / "docs" / "use.md")
    header = re.search(r"^\| \| (`h264`.*)$", text, re.M)
    assert header
    columns = re.findall(r"`(\w+)`", header.group(1))
    assert set(columns) == set(encoding.ENCODERS)
    for suffix, codecs in encoding.CODECS_IN.items():
        row = re.search(rf"^\| `{re.escape(suffix)}` \|(.*)$", text, re.M)
        assert row, suffix
        cells = [c.strip() for c in row.group(1).split("|")]
        assert {c for c, cell in zip(columns, cells, strict=False) if cell == "yes"} == set(codecs), suffix


def test_no_option_value_is_misspelt():
    """Values written as `--option value` in the guide are accepted."""
    from latentsync import options

    text = read(ROOT / "docs" / "use.md")
    for name, values in (
        ("scheduler", options.SCHEDULERS),
        ("codec", options.CODECS),
        ("paste", options.PASTES),
        ("on-missing-face", options.MISSING_FACE),
        ("when-audio-longer", options.AUDIO_LONGER),
        ("when-video-longer", options.VIDEO_LONGER),
        ("dtype", options.DTYPES),
        ("face-backend", options.FACE_BACKENDS),
    ):
        assert set(re.findall(rf"--{name} ([a-z0-9+]+)", text)) <= set(values), name


def test_the_benchmark_page_is_assembled_from_the_results():
    spec = importlib.util.spec_from_file_location("bench_run", ROOT / "bench" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    assert read(ROOT / "docs" / "benchmarks.md") == run.page(), "stale: python bench/run.py --assemble"


def test_every_result_is_on_the_page():
    page = {line for line in read(ROOT / "docs" / "benchmarks.md").splitlines() if line.startswith("|")}
    for file in (ROOT / "bench" / "results").glob("*.md"):
        rows = {line for line in read(file).splitlines() if line.startswith("|")}
        assert rows <= page, f"{file.name} is not on docs/benchmarks.md as it is: python bench/run.py --assemble"
