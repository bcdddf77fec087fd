"""Launch files for clouds, Kubernetes and Slurm; `cluster.launch` checks them."""
