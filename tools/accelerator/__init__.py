"""Everything worth knowing about one GPU or TPU VM: `python -m tools.accelerator --output=DIR`.

Each part of the measurements is a process of its own with its share of the time (`__main__`, `worker`), and
fills tables of figures (`bench`), from which the page is written (`page`). It may use all of the library, the
benchmark's cases in `experiments`, and the table of accelerators in `launch`.
"""
