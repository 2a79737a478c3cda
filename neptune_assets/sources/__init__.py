"""Sources: where runs come from, one module or package a kind, all of one shape (:mod:`protocol`). Never written to."""
