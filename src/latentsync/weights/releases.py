"""Which published files exist, where they lie, and how to know them again. Data only: nothing here touches disk or network.

Sizes and digests are those that the hubs themselves state for the pinned revisions (for Git LFS files the pointer holds the sha256).
`Registry` is an ordinary value, so that a private collection, or a test, can bring its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HUB = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One downloadable file.

    `path` is where it is stored below the weights folder, and also how it is looked for; `names` are other relative paths under which users
    have it. `size` is in bytes; None where it is not known.
    """

    # unet | whisper | vae | face_landmarker | yunet | taesd; for training: syncnet | vgg16 | lpips | videomae; judges: syncnet_v2 | hyperiqa;
    # for evaluation: inception | i3d | silero_vad
    role: str
    url: str
    path: str
    size: int | None = None
    sha256: str | None = None
    names: tuple[str, ...] = ()
    licence: str = ""
    page: str = ""  # for people: where it comes from

    @property
    def repo(self) -> tuple[str, str, str] | None:
        """(repository, revision, path in it) for a file of the hub, else None."""
        if not self.url.startswith(HUB + "/"):
            return None
        repo, _, rest = self.url[len(HUB) + 1 :].partition("/resolve/")
        revision, _, name = rest.partition("/")
        return repo, revision, name


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Files that are fetched under one name. Where they are a model that can sync, the name is also that of its preset."""

    name: str
    summary: str
    files: tuple[str, ...]  # keys of Registry.files
    model: bool = False


@dataclass(frozen=True, kw_only=True)
class Registry:
    """Everything that can be downloaded: files by key, bundles by name."""

    files: dict[str, RemoteFile] = field(default_factory=dict)
    bundles: dict[str, Bundle] = field(default_factory=dict)

    def of(self, name: str) -> tuple[RemoteFile, ...]:
        """The files of one bundle, in the order in which they are fetched."""
        return tuple(self.files[key] for key in self.bundles[name].files)

    def by_role(self, role: str) -> tuple[RemoteFile, ...]:
        """Every file of that role."""
        return tuple(f for f in self.files.values() if f.role == role)

    def by_sha256(self, digest: str) -> str | None:
        """Name of the model whose U-Net has this digest, if it is a known one."""
        for name, bundle in self.bundles.items():
            if bundle.model and any(f.role == "unet" and f.sha256 == digest for f in self.of(name)):
                return name
        return None


def _hub(repo: str, revision: str, name: str) -> str:
    return f"{HUB}/{repo}/resolve/{revision}/{name}"


_YUNET = "https://github.com/ShiqiYu/libfacedetection.train/raw/dca340aa082c71081a68d17db8e58b33a58a914b/onnx"
_MEDIAPIPE = "https://storage.googleapis.com/mediapipe-models"
_VAE_NAMES = (
    "vae.safetensors",
    "sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
    "stabilityai/sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
    "sd-vae-ft-mse.safetensors",
    "diffusion_pytorch_model.safetensors",
)

FILES: dict[str, RemoteFile] = {
    "unet-1.6": RemoteFile(
        role="unet",
        url=_hub("ByteDance/LatentSync-1.6", "c42c7e6c8e9c213626389fa7d9a3c444b8536353", "latentsync_unet.pt"),
        path="1.6/latentsync_unet.pt",
        names=("LatentSync-1.6/latentsync_unet.pt", "latentsync_unet.pt"),
        size=5_072_222_488,
        sha256="0a478e89eb660f82da4c35dbdde8a5adfb27f99d1b4e50edd03729e1e98316d3",
        licence="OpenRAIL++",
        page=f"{HUB}/ByteDance/LatentSync-1.6",
    ),
    "unet-1.5": RemoteFile(
        role="unet",
        url=_hub("ByteDance/LatentSync-1.5", "32a20d29aead0498e3e885e90dbbe8027da1b61b", "latentsync_unet.pt"),
        path="1.5/latentsync_unet.pt",
        names=("LatentSync-1.5/latentsync_unet.pt", "latentsync_unet.pt"),
        size=5_072_348_184,
        sha256="6440b49a7ccceff56cdc001f5f17605216337f5bbd66fa360139768926e23f51",
        licence="OpenRAIL++",
        page=f"{HUB}/ByteDance/LatentSync-1.5",
    ),
    "whisper": RemoteFile(
        role="whisper",
        url=_hub("ByteDance/LatentSync-1.6", "c42c7e6c8e9c213626389fa7d9a3c444b8536353", "whisper/tiny.pt"),
        path="whisper/tiny.pt",
        names=("tiny.pt", "whisper.pt"),
        size=75_572_083,
        sha256="65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9",
        licence="MIT",
        page="https://github.com/openai/whisper",
    ),
    "vae": RemoteFile(
        role="vae",
        url=_hub("stabilityai/sd-vae-ft-mse", "31f26fdeee1355a5c34592e401dd41e45d25a493", "diffusion_pytorch_model.safetensors"),
        path="sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
        names=_VAE_NAMES,
        size=334_643_276,
        sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        licence="MIT",
        page=f"{HUB}/stabilityai/sd-vae-ft-mse",
    ),
    "face_landmarker": RemoteFile(
        role="face_landmarker",
        url=f"{_MEDIAPIPE}/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
        path="face/face_landmarker.task",
        names=("face_landmarker.task",),
        size=3_758_596,
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        licence="Apache-2.0",
        page="https://ai.google.dev/edge/mediapipe/solutions/vision/face_landmarker",
    ),
    "yunet": RemoteFile(
        role="yunet",
        url=f"{_YUNET}/yunet_n_dynamic.onnx",
        path="face/yunet_n_dynamic.onnx",
        names=("yunet_n_dynamic.onnx",),
        size=322_906,
        sha256="104ee26c71d5c270ce79a6b3dced91c91013260d29a6bf18f9296c5b8c4c2b12",
        licence="Apache-2.0",
        page="https://github.com/ShiqiYu/libfacedetection.train",
    ),
    # The same network exported for a fixed size; OpenCV gets the same boxes from either. Not fetched, but welcome where it is at hand.
    "yunet-640": RemoteFile(
        role="yunet",
        url=f"{_YUNET}/yunet_n_640_640.onnx",
        path="face/yunet_n_640_640.onnx",
        names=("yunet_n_640_640.onnx",),
        size=317_466,
        sha256="25a606a145a5b6d7271ae138fbd00eba91dad8b83222ae3f2c7ecd0f4a7b0e31",
        licence="Apache-2.0",
        page="https://github.com/ShiqiYu/libfacedetection.train",
    ),
    "taesd": RemoteFile(
        role="taesd",
        url=_hub("madebyollin/taesd", "614f76814bbe30edbe2e627ace1c2234c81a2c0e", "diffusion_pytorch_model.safetensors"),
        path="taesd/diffusion_pytorch_model.safetensors",
        names=("taesd.safetensors",),
        size=9_793_292,
        sha256="db169d69145ec4ff064e49d99c95fa05d3eb04ee453de35824a6d0f325513549",
        licence="MIT",
        page=f"{HUB}/madebyollin/taesd",
    ),
    "syncnet": RemoteFile(
        role="syncnet",
        url=_hub("ByteDance/LatentSync-1.6", "c42c7e6c8e9c213626389fa7d9a3c444b8536353", "stable_syncnet.pt"),
        path="training/stable_syncnet.pt",
        names=("LatentSync-1.6/stable_syncnet.pt", "stable_syncnet.pt"),
        size=1_605_328_746,
        sha256="77678d13861a02d6e83d0b169962175b6266be773f1f6f85fda2b0182e225118",
        licence="OpenRAIL++",
        page=f"{HUB}/ByteDance/LatentSync-1.6",
    ),
    # What came with release 1.5. Not fetched, but welcome where it is at hand.
    "syncnet-1.5": RemoteFile(
        role="syncnet",
        url=_hub("ByteDance/LatentSync-1.5", "32a20d29aead0498e3e885e90dbbe8027da1b61b", "stable_syncnet.pt"),
        path="1.5/stable_syncnet.pt",
        names=("LatentSync-1.5/stable_syncnet.pt", "stable_syncnet.pt"),
        size=1_605_324_224,
        sha256="dccc464554b85ed939ae5cf63000e5803d4b21d8c7dae2260544a10aeb1ac483",
        licence="OpenRAIL++",
        page=f"{HUB}/ByteDance/LatentSync-1.5",
    ),
    "vgg16": RemoteFile(
        role="vgg16",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        path="training/vgg16-397923af.pth",
        names=("auxiliary/vgg16-397923af.pth", "vgg16-397923af.pth"),
        size=553_433_881,
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        licence="BSD-3-Clause",
        page="https://github.com/pytorch/vision",
    ),
    "lpips": RemoteFile(
        role="lpips",
        url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/vgg.pth",
        path="training/lpips_v0.1_vgg.pth",
        names=("lpips_v0.1_vgg.pth", "lpips/weights/v0.1/vgg.pth"),
        size=7_289,
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        licence="BSD-2-Clause",
        page="https://github.com/richzhang/PerceptualSimilarity",
    ),
    "videomae": RemoteFile(
        role="videomae",
        url=_hub("OpenGVLab/VideoMAE2", "97d119d270aca7a1217fff7f413c0c543eb325d9", "mae-g/vit_g_hybrid_pt_1200e_ssv2_ft.pth"),
        path="training/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
        names=("auxiliary/vit_g_hybrid_pt_1200e_ssv2_ft.pth", "mae-g/vit_g_hybrid_pt_1200e_ssv2_ft.pth", "vit_g_hybrid_pt_1200e_ssv2_ft.pth"),
        size=2_023_804_201,
        sha256="5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70",
        licence="Apache-2.0",
        page=f"{HUB}/OpenGVLab/VideoMAE2",
    ),
    "syncnet_v2": RemoteFile(
        role="syncnet_v2",
        url=_hub("ByteDance/LatentSync-1.5", "32a20d29aead0498e3e885e90dbbe8027da1b61b", "auxiliary/syncnet_v2.model"),
        path="judges/syncnet_v2.model",
        names=("auxiliary/syncnet_v2.model", "syncnet_v2.model"),
        size=54_573_114,
        sha256="961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
        licence="MIT",
        page="https://github.com/joonson/syncnet_python",
    ),
    "hyperiqa": RemoteFile(
        role="hyperiqa",
        url=_hub("ByteDance/LatentSync-1.5", "32a20d29aead0498e3e885e90dbbe8027da1b61b", "auxiliary/koniq_pretrained.pkl"),
        path="judges/koniq_pretrained.pkl",
        names=("auxiliary/koniq_pretrained.pkl", "koniq_pretrained.pkl"),
        size=109_768_650,
        sha256="ff9277bcc68ecc10e77d88b6d0a32825ec3c85562095542734ec6212eaaf6d81",
        licence="MIT",
        page="https://github.com/SSL92/hyperIQA",
    ),
    "inception": RemoteFile(
        role="inception",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        path="judges/pt_inception-2015-12-05-6726825d.pth",
        names=("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
        size=95_628_359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        licence="Apache-2.0",
        page="https://github.com/mseitzer/pytorch-fid",
    ),
    "i3d": RemoteFile(
        role="i3d",
        url=_hub("ByteDance/LatentSync-1.5", "32a20d29aead0498e3e885e90dbbe8027da1b61b", "auxiliary/i3d_torchscript.pt"),
        path="judges/i3d_torchscript.pt",
        names=("auxiliary/i3d_torchscript.pt", "i3d_torchscript.pt"),
        size=51_235_320,
        sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        licence="Apache-2.0",
        page="https://github.com/universome/fvd-comparison",
    ),
    "silero_vad": RemoteFile(
        role="silero_vad",
        url="https://raw.githubusercontent.com/snakers4/silero-vad/7e30209a3e901f9842f81b225f3e93d8199902b1/src/silero_vad/data/silero_vad.onnx",
        path="judges/silero_vad.onnx",
        names=("silero_vad.onnx",),
        size=2_327_524,
        sha256="1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        licence="MIT",
        page="https://github.com/snakers4/silero-vad",
    ),
}

FACE = ("face_landmarker", "yunet")
TRAINING = ("syncnet", "vgg16", "lpips", "videomae")  # frozen networks that judge what the U-Net makes; no model syncs with them
JUDGES = ("syncnet_v2", "hyperiqa")  # networks that judge footage: for preparing data, and for evaluation
EVALUATION = ("inception", "i3d", "silero_vad")  # what evaluation alone needs: FID, FVD, and who speaks when

PUBLISHED = Registry(
    files=FILES,
    bundles={
        "1.6": Bundle(name="1.6", model=True, summary="release 1.6: 512 px faces, the sharpest", files=("unet-1.6", "whisper", "vae", *FACE)),
        "1.5": Bundle(
            name="1.5", model=True, summary="release 1.5: 256 px faces, a quarter of the work", files=("unet-1.5", "whisper", "vae", *FACE)
        ),
        "shared": Bundle(name="shared", summary="what models of your own need besides their U-Net", files=("whisper", "vae", *FACE)),
        "face": Bundle(name="face", summary="face detector and landmarks alone", files=FACE),
        "taesd": Bundle(name="taesd", summary="tiny autoencoder for previews", files=("taesd",)),
        "training": Bundle(name="training", summary="the networks behind the losses of stage 2: SyncNet, LPIPS, VideoMAE", files=TRAINING),
        "judges": Bundle(name="judges", summary="what judges footage: SyncNet v2 (lip sync), HyperIQA (picture quality)", files=JUDGES),
        "evaluation": Bundle(
            name="evaluation",
            summary="the networks behind FID, FVD and LPIPS, and Silero's detector of speech",
            files=(*EVALUATION, "vgg16", "lpips"),
        ),
    },
)
