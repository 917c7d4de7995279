"""Our models inside other evaluation programs, so that their tasks run on them."""
