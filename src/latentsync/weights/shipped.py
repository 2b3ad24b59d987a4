"""The model that comes with the package, in a folder of it: small, trained on rendered heads, and there without a network."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from latentsync.errors import WeightsError

NAME = "demo"
FILES = {
    "unet": "unet.safetensors",
    "whisper": "whisper.safetensors",
    "vae": "vae.safetensors",
    "tracker": "tracker.safetensors",
    "syncnet": "syncnet.safetensors",
}
JUDGE = "syncnet"  # scores what is made; the model syncs without it
DESCRIPTIONS = {"unet": "model.yaml", "tracker": "tracker.yaml", "syncnet": "syncnet.yaml"}  # what a file needs beside it to be used
OFFER = "--model demo, which comes with the package (small and offline; trained on rendered heads only, so real people look painted)"


def folder() -> Path:
    """Where the package keeps it, whether or not its files are there."""
    return Path(str(resources.files("latentsync") / NAME))


def file(role: str) -> Path | None:
    """The file of that role (a key of FILES), where it and its description are there."""
    path = folder() / FILES[role]
    there = path.is_file() and (role not in DESCRIPTIONS or (folder() / DESCRIPTIONS[role]).is_file())
    return path if there else None


def lacking() -> list[str]:
    """Roles without which the model cannot sync, whose files are not there."""
    return [role for role in FILES if role != JUDGE and file(role) is None]


def here() -> dict[str, Path]:
    """The files that are there, by role."""
    return {role: path for role in FILES if (path := file(role)) is not None}


def absent(roles: list[str]) -> WeightsError:
    """The error for a package without these files."""
    names = ", ".join(FILES[role] for role in roles)
    return WeightsError(
        f"this installation lacks files of the demo model: {names} in {folder()}. Install the package anew, or take a model that can be downloaded "
        "(latentsync models list)"
    )
