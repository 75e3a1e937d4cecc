"""Starting the library on machines: installing, testing, demo, and jobs of many processes."""
