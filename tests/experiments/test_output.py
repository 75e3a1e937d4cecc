"""What commands say of other libraries' errors. Oracle: the line on stderr."""

import logging
import sys

from experiments.cli.output import shorten


def test_a_failed_save_is_a_line_and_not_pages_of_orbax_s_stack(caplog):
    """Of other modules' records the stack stays."""
    logger = logging.getLogger("a test")
    logger.addHandler(caplog.handler)
    logger.addFilter(shorten)
    try:
        raise OSError("No space left on device")
    except OSError:
        fault = sys.exc_info()
    logger.propagate = False
    for path in ("/lib/orbax/checkpoint/checkpoint_manager.py", "/lib/other.py"):
        record = logging.LogRecord("a test", logging.ERROR, path, 1, "Save failed.", None, fault)
        logger.handle(record)
    assert [record.exc_info for record in caplog.records] == [None, fault]
    assert caplog.text.count("Traceback") == 1
