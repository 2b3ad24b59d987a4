"""Weights: a model's name or folder -> its files, checked, with the description that belongs to them. Importing this loads no torch.

files = resolve("1.6")                 # a ModelFiles, or a WeightsError that names the command to run
state = files.state("unet")            # tensors by published key, memory-mapped
"""

from latentsync.hub import Progress
from latentsync.weights import shipped
from latentsync.weights.collection import (
    FileInfo,
    ModelFiles,
    ModelInfo,
    ModelRow,
    available,
    deduce,
    download,
    download_with_progress,
    gigabytes,
    info,
    resolve,
    roles,
)
from latentsync.weights.places import extra_folders, home_folder, hub_cache, search_folders
from latentsync.weights.releases import EVALUATION, FACE, JUDGES, PUBLISHED, TRAINING, Bundle, Registry, RemoteFile
from latentsync.weights.training import judge_file, judge_state, training_file, training_state, unet_in
from latentsync.weights.untrained import new

__all__ = [
    "EVALUATION",
    "FACE",
    "JUDGES",
    "PUBLISHED",
    "TRAINING",
    "Bundle",
    "FileInfo",
    "ModelFiles",
    "ModelInfo",
    "ModelRow",
    "Progress",
    "Registry",
    "RemoteFile",
    "available",
    "deduce",
    "download",
    "download_with_progress",
    "extra_folders",
    "gigabytes",
    "home_folder",
    "hub_cache",
    "info",
    "judge_file",
    "judge_state",
    "new",
    "resolve",
    "roles",
    "search_folders",
    "shipped",
    "training_file",
    "training_state",
    "unet_in",
]
