"""Starting the library on machines: installing, testing, the demo, jobs of many processes, pods.

It may use the library and the commands; only `tools` use it.
"""

import sdtt_jax.renamed  # noqa: F401 - a module that has moved is answered by its new name
