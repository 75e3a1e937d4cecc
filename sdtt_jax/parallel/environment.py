"""Names of the environment variables that connect the processes of a job; importing them needs no JAX."""

# Set by `launch.local`, and by hand on a cluster that JAX does not recognise.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
