"""Files and commands that start a run on a pod: from one spec, for tools that exist."""
