"""What a step costs on accelerators that are not there: compiled, counted and predicted."""
