"""Every metric in words: what it is, in which unit, which way is better, where it comes from and what it does not see. For guide and report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "zero", ""]
Need = Literal["audio", "reference", "source", "weights"]


@dataclass(frozen=True)
class Metric:
    """One number."""

    key: str
    title: str
    unit: str
    better: Better  # "zero": away from it in either direction is worse; "": a description, not a grade
    needs: tuple[Need, ...]  # reference: the true video of the same words; source: the video before its lips were changed
    definition: str
    source: str
    blind_spot: str


_ALL = (
    Metric(
        "sync_confidence", "Sync confidence", "", "higher", ("audio",),
        "Lips and sound are compared at shifts of -15 to 15 frames: median of the mean distances less the smallest. With SyncNet v2 some 3 to 9 for "
        "speech in sync; with the package's own SyncNet, whose distance is 1 - cosine, between 0 and 1. The judge is named; numbers of two judges "
        "do not compare.",
        "Chung and Zisserman 2016",
        "Rewards large, clear mouth movements: generated video trained against such a judge exceeds real video. Does not see how teeth or skin look.",
    ),
    Metric(
        "sync_offset", "Sync offset", "frames of 1/25 s", "zero", ("audio",),
        "The shift with the smallest mean distance: frames by which the sound comes early (delay it by so many), negative where it comes late.",
        "Chung and Zisserman 2016",
        "Means nothing where the confidence is low (under 1 with SyncNet v2); whole frames only.",
    ),
    Metric(
        "sync_offset_fine", "Sync offset, fine", "frames of 1/25 s", "zero", ("audio",),
        "The same with its fraction: the bottom of a parabola through the smallest mean distance and its two neighbours.",
        "own",
        "Good to 0.2 frames between versions of a clip of 4 s, less in shorter ones; every clip has an error of its own besides, 0.3 and more.",
    ),
    Metric(
        "sync_distance", "Sync distance", "", "lower", ("audio",),
        "The smallest mean distance itself.",
        "Chung and Zisserman 2016",
        "Depends on the face and the recording more than on the sync; compare only on the same videos.",
    ),
    Metric(
        "lse_c", "LSE-C", "", "higher", ("audio", "weights"),
        "Sync confidence of SyncNet v2 and of no other judge, the number that papers quote.",
        "Prajwal et al. 2020 (Wav2Lip)",
        "As sync confidence: exaggerated mouths win, and results go beyond real video. Papers differ in face finder and crop.",
    ),
    Metric(
        "lse_d", "LSE-D", "", "lower", ("audio", "weights"),
        "Sync distance of SyncNet v2, the number that papers quote.",
        "Prajwal et al. 2020 (Wav2Lip)",
        "As sync distance.",
    ),
    Metric(
        "lmd", "Landmark distance (LMD)", "% of the eye distance", "lower", ("reference",),
        "20 points of the mouth, less their mean, against those of the true video: mean distance, in % of the distance between the eyes.",
        "Chen et al. 2018, per size of the face",
        "The face finder's own error, 1 % at best, is in it, and a blurred mouth can have the right shape. Another way to say the same "
        "words counts as wrong. No number of a paper compares: their size and face finder are not known.",
    ),
    Metric(
        "lmd_pixels", "Landmark distance, pixels", "pixels of a face of 256", "lower", ("reference",),
        "The same in pixels of the aligned face, as published.",
        "Chen et al. 2018",
        "As LMD.",
    ),
    Metric(
        "lip_r", "Lip-opening correlation", "r", "higher", ("reference",),
        "Correlation over time of the gap between the lips with that of the true video (of the person whose words are heard), without shift.",
        "own",
        "Size does not count: half as wide open scores the same. Rounding and spreading are not seen. Video without much speech has a low r.",
    ),
    Metric(
        "lip_lag", "Lip lag", "frames", "zero", ("reference",),
        "The shift, up to 6 frames either way, at which that correlation is highest, its fraction by a parabola; positive where the picture is late.",
        "own",
        "Missing where nothing correlates (r under 0.2 everywhere).",
    ),
    *(
        Metric(
            f"psnr_{region}", f"PSNR, {title}", "dB", "higher", ("reference",),
            f"10 log10(255^2 / mean squared difference) {where}, mean over frames; equal frames count 100.",
            "standard",
            "Prefers blur to detail in the wrong place; a shift by a pixel costs more than a smeared mouth.",
        )
        for region, title, where in (
            ("mouth", "generated part", "inside the mask of the aligned face"),
            ("face", "face", "of the aligned face"),
            ("frame", "frame", "of the whole frame"),
        )
    ),
    *(
        Metric(
            f"ssim_{region}", f"SSIM, {title}", "", "higher", ("reference",),
            f"Structural similarity (Gaussian window of 1.5 px, mean of the three channels) {where}, mean over frames; 1 for equal frames.",
            "Wang et al. 2004",
            "Still blind to small shifts of fine detail and to anything over time. "
            + ("Mostly says how much of the frame was left alone." if region == "frame" else "Papers differ in crop and size."),
        )
        for region, title, where in (
            ("mouth", "generated part", "inside the mask of the aligned face"),
            ("face", "face", "of the aligned face"),
            ("frame", "frame", "of the whole frame"),
        )
    ),
    *(
        Metric(
            f"lpips_{region}", f"LPIPS, {title}", "", "lower", ("reference", "weights"),
            f"Distance of VGG16's features, weighted as people judge, {where}; 0 for equal frames.",
            "Zhang et al. 2018, version 0.1",
            "Forgives what people forgive in single pictures, a wrong but sharp mouth too; sees nothing over time.",
        )
        for region, title, where in (("mouth", "lower half", "of the lower half of the aligned face"), ("face", "face", "of the aligned face"))
    ),
    Metric(
        "outside_max", "Largest change outside", "levels of 255", "lower", ("source",),
        "Largest difference from the source anywhere outside the mask as it lies in the frame (with a rim for chroma); 0 in lossless results.",
        "own",
        "A lossy result is changed everywhere by its encoder: judge losslessly, or look at the share with a tolerance.",
    ),
    Metric(
        "outside_share", "Changed outside", "share of pixels", "lower", ("source",),
        "Share of pixels outside the mask that differ from the source by more than the tolerance (0 unless said).",
        "own",
        "As above.",
    ),
    Metric(
        "fid", "FID", "", "lower", ("reference", "weights"),
        "Frechet distance of Inception-v3's features of aligned faces, made against true, over the whole set.",
        "Heusel et al. 2017, network and scaling of pytorch-fid",
        "Biased upwards with few faces: under 2048 it is mostly a measure of how few they are. Blind to time, and nearly to the mouth alone.",
    ),
    Metric(
        "fvd", "FVD", "", "lower", ("reference", "weights"),
        "Frechet distance of I3D's features of 16 consecutive aligned faces, made against true, over the whole set.",
        "Unterthiner et al. 2018, network as LatentSync's authors used it",
        "Biased upwards with few clips: under 400 it is mostly a measure of how few they are. The network knows sports better than lips.",
    ),
    Metric(
        "hyperiqa", "HyperIQA", "0 to 100", "higher", ("weights",),
        "Grade of the middle of pictures by a network trained on people's grades.",
        "Su et al. 2020",
        "Grades the whole crop, make-up and light included; a sharp wrong mouth passes.",
    ),
    Metric(
        "sharpness", "Sharpness", "0 to 100", "higher", (),
        "Share of the difference between neighbouring pixels that a blur takes away.",
        "Crete et al. 2007",
        "Takes noise and the edges of blocks for sharpness.",
    ),
    Metric(
        "identity", "Identity", "cosine", "higher", ("source",),
        "Mean cosine of the embeddings of aligned faces by a face recogniser, result against source.",
        "ArcFace (Deng et al. 2019); optional, its weights are for non-commercial research",
        "Recognisers look at eyes and nose first, which lip sync leaves alone: it is near 1 for bad mouths too.",
    ),
    Metric(
        "flicker", "Flicker", "levels of 255", "lower", (),
        "Second difference in time of the mouth's region, median over its pixels, as the noise from frame to frame that would give as much.",
        "own",
        "Fast speech, noise of the camera and compression have it too (0.5 to 2 in untouched clips): flicker_excess takes the true video's off.",
    ),
    Metric(
        "flicker_excess", "Flicker beyond the reference", "levels of 255", "zero", ("reference",),
        "The same beyond that of the true video, as amplitude; negative for a mouth that is stiller than the true one.",
        "own",
        "Flicker and stillness in different places of one video cancel.",
    ),
    Metric(
        "seam", "Seam", "levels of 255", "lower", (),
        "Step of colour across the mask's edge beyond the slope on both sides: median along each of four parts of it, mean over time.",
        "own",
        "Depends on the face (1 to 6 in untouched clips): compare on the same videos, or give the source, for seam_step.",
    ),
    Metric(
        "seam_step", "Seam against the source", "levels of 255", "lower", ("source",),
        "Step across the mask's edge in the difference between result and source; 0 where nothing changed.",
        "own",
        "A jaw that rightly moves elsewhere than in the source counts too.",
    ),
    Metric(
        "jitter", "Jitter of the pasted face", "pixels of a face of 256", "lower", ("source",),
        "Place of the cheeks against the source's, found to a fraction of a pixel in each frame: its standard deviation from frame to frame.",
        "own; registration of Lucas and Kanade 1981",
        "Cheeks that move with other words count a little; cheeks without texture are left out.",
    ),
    Metric(
        "paste_offset", "Offset of the pasted face", "pixels of a face of 256", "lower", ("source",),
        "How far the mean of that place lies off.",
        "own",
        "As jitter; a cheek or jaw that the network draws elsewhere is an offset too. Good up to some 3 pixels.",
    ),
    Metric(
        "silence_motion", "Mouth movement in silence", "of that in speech", "lower", ("audio",),
        "Mean change of the lips' opening a second while nobody speaks (0.2 s away from speech), over that in speech.",
        "own; speech by Silero VAD, or by loudness, as named",
        "Landmarks tremble, so a still mouth has some 0.05 to 0.1. Swallowing and smiling are movement. By loudness, music passes for speech.",
    ),
    Metric(
        "silence_speed", "Mouth movement in silence, absolute", "eye distances a second", "lower", ("audio",),
        "The same not divided, for videos without any speech.",
        "own",
        "As above: a resting face has 0.03 to 0.1.",
    ),
    Metric(
        "faces_missing", "Frames without a face", "share", "lower", (),
        "Share of frames in which the face finder finds no face.",
        "own",
        "A source that shows none has it too.",
    ),
    Metric(
        "seconds_per_second", "Cost", "seconds a second of video", "lower", (),
        "Time that making the video took, over its length.",
        "own",
        "Depends on the machine, which is named with the versions.",
    ),
    Metric(
        "peak_memory_gb", "Peak memory", "GB", "lower", (),
        "Largest memory of the process, or of the GPU, while it was made.",
        "own",
        "Of the whole process: earlier jobs in it count.",
    ),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.key: metric for metric in _ALL}
