"""The steps of preparation: each a plain function over one file, whose numbers (`measure`) and whose decision (`decide`) are apart."""
