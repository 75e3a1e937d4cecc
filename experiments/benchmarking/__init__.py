"""The benchmark: lean path and naive twin side by side, each in a process of its own."""
