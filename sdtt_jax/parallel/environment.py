"""Names by which the processes of a job are told of each other, for launchers too, which import no JAX."""

# Set by `launch.local`, and by hand on a cluster that JAX does not recognise.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
