"""Judges of footage, on pictures and samples: how well lips follow their sound, and how good pictures look. For preparing data and for evaluation."""
