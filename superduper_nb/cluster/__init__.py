"""The parts that the other rooms run on: an embedded MongoDB, a Dask cluster, the notebook server that is ours."""
