"""Our own T5 decode: rows join and leave in flight over fixed slots. `engine.load` is the way in."""
