"""Starting the library on machines: installing, testing, demo, and jobs of many processes."""

import sdtt_jax.renamed  # noqa: F401 - a module that has moved is answered by its new name
