"""Synthetic talking heads with exact truth: a corpus for training and tests that shows no real person. See docs/corpus.md.

    text      random English
    speech    espeak-ng and flite -> sound with phone times
    visemes   phones -> articulation -> blendshape weights
    pack      ICT-FaceKit (MIT) -> one mesh file
    model     random identities, posed
    texture   skin, brows, beard, palette, background
    glasses   frames and lenses that fit an identity
    shaders   render   OpenGL without a window (EGL)
    motion    head, eyes, blinks, camera
    clip      one clip, from seed to files
    files     results that appear whole or not at all
    pool      many clips, in several processes

One-way: each imports only what stands above it (clip imports all, pool imports clip).
"""
