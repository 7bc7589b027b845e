"""The life of a study: workflow, diagram, log, and the changes people make to it."""
