"""Run the benchmarks and write docs/benchmarks.md from their results.

    python bench/run.py                   all of them, one after another (about half an hour on two quiet cores)
    python bench/run.py geometry speech   only these
    python bench/run.py --assemble        run nothing, only write the page from bench/results/*.md

Each benchmark writes bench/results/NAME.md; the page is these files under one introduction, so it never says what no file says.
The GPU's is `bash bench/gpu.sh`, which asks for a GPU and writes bench/results/gpu.md.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
PAGE = BENCH.parent / "docs" / "benchmarks.md"

# In the order of the page: name -> (heading, how it is run). What measures itself without writing a file has its output kept.
SECTIONS: dict[str, tuple[str, list[str]]] = {
    "pipeline": ("A second of 1080p, by stage", ["pipeline.py"]),
    "memory": ("Memory against length", ["memory.py"]),
    "geometry": ("Alignment and paste", ["geometry.py"]),
    "media": ("Media", ["media.py", "cost"]),
    "faces": ("Faces", ["faces.py"]),
    "speech": ("Speech", ["speech.py"]),
    "networks": ("Networks on the CPU", ["networks.py"]),
    "training": ("Training", ["training.py"]),
    "evaluate": ("Evaluation", ["evaluate.py"]),
    "prepare": ("Preparing footage", ["prepare.py"]),
    "serve": ("The service under load", ["serve.py"]),
}

ELSEWHERE = {
    "faces": "Detection, jitter and cost of the face finders on real clips are in [faces.md](faces.md), with the choices that follow from them."
}

HEAD = """# Benchmarks

Assembled by `bench/run.py` from `bench/results/`; do not edit. `make bench` measures anew, `python bench/run.py NAME ...` only some parts.

**How to read it.** The CPU numbers were taken on a small shared virtual machine with two x86_64 cores, often while other work ran on it. So wall
times say little: CPU seconds, and **ratios within one run**, are what to compare. "Published" is the original code at full size with random
weights, in fp32, measured once on two CPU threads of another machine: a ratio to it tells an order of magnitude, not a per cent. Nothing here is
about quality: the networks ran with random weights, which cost the same as trained ones.

In short, against the published figures:

| published | here |
| --- | --- |
"""

NO_GPU = """## GPU

**No GPU was at hand when this page was written: nothing about GPUs on it is measured.** `bash bench/gpu.sh` on a machine with an NVIDIA GPU
measures seconds per second of video and peak memory at 256 and 512 px, eager and compiled, each scheduler at 20 and 8 steps, cache on and off. It
writes `bench/results/gpu.md` and needs no published weights, since random ones cost the same. Then `python bench/run.py --assemble` puts it here.

What can be said without one, by counting: 20 guided steps take 282 TFLOP for a second of video at 256 px and 1,220 at 512. A GPU that does
788 TFLOP/s in bf16 cannot go below 0.36 and 1.55 seconds for a second of video without fewer steps, a cache or a smaller network.
"""


def page() -> str:
    """The whole page, from the result files that exist."""
    parts = [HEAD.rstrip("\n")]
    parts[0] += "\n" + "\n".join(summary()) + "\n"
    for name, (heading, _) in SECTIONS.items():
        file = RESULTS / f"{name}.md"
        if file.is_file():
            parts.append(section(heading, file.read_text(encoding="utf-8")))
        else:
            parts.append(f"## {heading}\n\n{ELSEWHERE.get(name, f'Not measured yet: `python bench/run.py {name}`.')}\n")
    gpu = RESULTS / "gpu.md"
    parts.append(section("GPU", gpu.read_text(encoding="utf-8")) if gpu.is_file() else NO_GPU)
    others = sorted(f for f in RESULTS.glob("*.md") if f.stem not in (*SECTIONS, "gpu"))
    parts += [section(f.stem.replace("_", " ").capitalize(), f.read_text(encoding="utf-8")) for f in others]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def section(heading: str, text: str) -> str:
    """One result file below a heading of the page: its own title goes, its headings move down so that the first level is the third of the page."""
    lines = text.strip().splitlines()
    if lines and re.match(r"#{1,2} ", lines[0]):
        lines = lines[1:]
    levels = [len(m.group(1)) for line in lines if (m := re.match(r"(#+) ", line))]
    shift = 3 - min(levels) if levels else 0
    out, fenced = [], False
    for line in lines:
        fenced ^= line.startswith("```")
        found = None if fenced else re.match(r"(#+) (.*)", line)
        out.append("#" * (len(found.group(1)) + shift) + " " + found.group(2) if found else line)
    return f"## {heading}\n\n" + "\n".join(out).strip() + "\n"


# Rows of the first table: (result file, what is compared, where it stands in the file, how it is said).
SUMMARY = (
    ("geometry", "align and crop a 1080p frame: 60-80 CPU-ms", r"\| a speaker[^|]*\| 1080p \| 256 \| ([\d.]+) \| ([\d.]+) \|", "{0} ms, {1} of it"),
    (
        "geometry",
        "paste a face back: 440-540 CPU-ms",
        r"\| a speaker[^|]*\| 1080p \| 256 (?:\|[^|]*){4}\| ([\d.]+) \| ([\d.]+) \|",
        "{0} ms, {1} of it",
    ),
    (
        "geometry",
        "the same at 4K: not measured, a frame four times as large",
        r"\| a speaker[^|]*\| 4K \| 256 (?:\|[^|]*){4}\| ([\d.]+) \|",
        "{0} ms",
    ),
    (
        "networks",
        "guided U-Net step, 16 frames at 256 px, fp32: 92.6 CPU-s",
        r"\| U-Net, guided step, fp32 \| ([\d.]+) \|[^|]*\| ([\d.]+)",
        "{0} s, {1} of it",
    ),
    (
        "networks",
        "the same in bf16: not offered on a CPU",
        r"\| U-Net, guided step, bf16 \| ([\d.]+) \|[^|]*\| ([\d.]+)",
        "{0} s, {1} of the fp32 figure",
    ),
    (
        "memory",
        "memory grows by 18.7 MB with every 1080p frame",
        r"\| 10 min \| 10 min \|[^|]*\|[^|]*\| (\d+) \| ([\d.]+) \|",
        "10 min: {0} MiB, {1} of 20 s",
    ),
    (
        "memory",
        "... and as much for a short clip under a long sound",
        r"\| 20 s \| 10 min, bounced \|[^|]*\|[^|]*\| (\d+) \| ([\d.]+) \|",
        "{0} MiB, {1} of 20 s",
    ),
)


def summary() -> list[str]:
    """The first table's rows, read from the result files; a row that its file does not answer is left out."""
    rows = []
    for name, label, pattern, says in SUMMARY:
        file = RESULTS / f"{name}.md"
        found = re.search(pattern, file.read_text(encoding="utf-8")) if file.is_file() else None
        if found:
            rows.append(f"| {label} | {says.format(*found.groups())} |")
    return rows


def beside(variable: str, name: str) -> Path:
    """A folder of test material, as tests/conftest.py looks for it."""
    return Path(os.environ.get(variable) or BENCH.parents[1] / "shared" / name)


def run(name: str) -> int:
    """One benchmark in a process of its own. Its result file is its own doing, or what it prints."""
    script, *arguments = SECTIONS[name][1]
    if name == "faces":  # measured on real clips, which are not in the repository
        arguments = [str(beside("LATENTSYNC_CLIPS", "clips")), str(beside("LATENTSYNC_TEST_WEIGHTS", "weights"))]
        absent = [a for a in arguments if not Path(a).is_dir()]
        if absent:
            print(f"{name}: left out, no folder {' and '.join(absent)}; name them with LATENTSYNC_CLIPS and LATENTSYNC_TEST_WEIGHTS")
            return 0
    print(f"== {name}", flush=True)
    file = RESULTS / f"{name}.md"
    before = file.stat().st_mtime_ns if file.is_file() else 0
    done = subprocess.run([sys.executable, str(BENCH / script), *arguments], stdout=subprocess.PIPE, text=True, check=False, cwd=BENCH.parent)
    print(done.stdout, flush=True)
    if done.returncode:
        print(f"{script} failed with {done.returncode}; its former result stays", file=sys.stderr)
    elif (file.stat().st_mtime_ns if file.is_file() else 0) == before and done.stdout.strip():
        RESULTS.mkdir(exist_ok=True)
        text = done.stdout.strip()
        file.write_text((text if "|" in text or text.startswith("#") else f"```text\n{text}\n```") + "\n", encoding="utf-8")
    return done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--assemble", action="store_true", help="run nothing, only write docs/benchmarks.md")
    given = parser.parse_args()
    unknown = [n for n in given.names if n not in SECTIONS]
    if unknown:
        parser.error(f"no benchmark '{unknown[0]}'; known ones are {', '.join(SECTIONS)}")
    failed = [] if given.assemble else [n for n in given.names or SECTIONS if run(n)]
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
