"""Samples -> one speech context per moment: mel, Whisper encoder, windows."""
