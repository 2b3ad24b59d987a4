"""Files <-> frames and samples: the only room that knows containers and codecs (PyAV)."""
